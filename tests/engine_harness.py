"""Runs verl's and our FSDP2 engine on the same small batch, on 1 or 2 gloo ranks, without Ray and vLLM."""

import os
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.multiprocessing as mp

SEQUENCES = 8
LOSS_AGG_MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")


@dataclass(frozen=True)
class Case:
    """One forward and backward pass over the whole mini-batch at the initial weights."""

    engine: str = "ours"  # or "stock"
    remove_padding: bool = True
    micro_batch: int = 2
    dynamic: bool = False
    loss_agg_mode: str = "token-mean"
    coefficient: float = 0.0
    clamp_p: float | None = None
    temperature: float = 1.0
    evaluate: bool = False
    # Overrides such as "entropy_control=steer": the actor's settings are then composed as in a run.
    preset: tuple[str, ...] = ()
    mu: float = 0.3
    measure_initial: bool = False
    stock_entropy_coeff: float = 0.0
    send_step: bool = True
    # verl changes the class of a fused model: cases with and without a head belong into different calls of `run`.
    fused_head: str | None = None
    param_dtype: str = "fp32"
    # Folder of a LoRA adapter; with `reference` it is switched off, as in verl's pass for the reference policy.
    adapter: str | None = None
    reference: bool = False


@dataclass(frozen=True)
class Result:
    loss: float
    gradient: torch.Tensor
    metrics: dict[str, Any]
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    gathers: int = 0


def run(model: str | Path, world_size: int, cases: list[Case]) -> list[Any]:
    """Run the cases on ``world_size`` fresh processes; results as rank 0 has them, metrics reduced as verl
    does, or the RuntimeError or ValueError that a case ended with.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(world_size, str(model), cases, folder), nprocs=world_size, join=True)
        return torch.load(Path(folder) / "results.pt", weights_only=False)


def _rank(rank: int, world_size: int, model: str, cases: list[Case], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        VERL_PLATFORM="cpu", RANK=str(rank), WORLD_SIZE=str(world_size), DIST_INIT_METHOD=f"file://{folder}/store"
    )
    from aent_verl.platforms import cpu
    from aent_verl.plugin import engine, losses
    from tests import hydra_cache

    hydra_cache.install()
    cpu.initialize_gloo()
    cpu.register_engines()
    engine.register()
    losses.register()
    engines: dict[Any, Any] = {}
    results = []
    for case in cases:
        built = case.engine, case.param_dtype, case.adapter
        if built not in engines:
            engines[built] = _build(case, model)
        try:
            results.append(_run_case(engines[built], case, rank, world_size))
        except (RuntimeError, ValueError) as error:
            results.append(error)
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _build(case: Case, model: str) -> Any:
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    from aent_verl.plugin.engine import MODEL_TYPE

    built = EngineRegistry.new(
        model_type=MODEL_TYPE if case.engine == "ours" else "language_model",
        backend="fsdp2",
        model_config=HFModelConfig(
            path=model,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
            use_fused_kernels=case.fused_head is not None,
            fused_kernel_options={"impl_backend": case.fused_head},
            lora_rank=0 if case.adapter is None else 8,
            lora_adapter_path=case.adapter,
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            use_torch_compile=False,
            mixed_precision={"param_dtype": case.param_dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        ),
        optimizer_config=FSDPOptimizerConfig(lr=0.0, total_training_steps=1),
        checkpoint_config=CheckpointConfig(),
    )
    built.initialize()
    return built


def batch(rank: int, world_size: int) -> Any:
    """This rank's share of one fixed mini-batch of sequences of different lengths, in verl's nested layout."""
    from tensordict import TensorDict

    generator = torch.Generator().manual_seed(7)
    rows: dict[str, list[torch.Tensor]] = {}
    for _ in range(SEQUENCES):
        prompt, response = (int(torch.randint(3, 12, (), generator=generator)) for _ in range(2))
        tokens = torch.randint(0, 250, (prompt + response,), generator=generator)
        mask = torch.ones(response)
        mask[-1] = float(torch.rand((), generator=generator) < 0.7)
        row = {
            "input_ids": tokens,
            "prompts": tokens[:prompt],
            "responses": tokens[prompt:],
            "position_ids": torch.arange(prompt + response),
            "response_mask": mask,
            "loss_mask": torch.cat([torch.zeros(prompt), mask]),
            "old_log_probs": -5.5 + 0.1 * torch.randn(response, generator=generator),
            "advantages": torch.randn((), generator=generator).expand(response).clone(),
        }
        for key, value in row.items():
            rows.setdefault(key, []).append(value)
    per_sample = {"aent_sample": torch.arange(SEQUENCES), "aent_accuracy": torch.arange(SEQUENCES) // 2 / 3}
    share = SEQUENCES // world_size
    mine = slice(rank * share, (rank + 1) * share)
    return TensorDict(
        {key: torch.nested.as_nested_tensor(values[mine], layout=torch.jagged) for key, values in rows.items()}
        | {key: values[mine] for key, values in per_sample.items()},
        batch_size=share,
    )


def _actor_config(case: Case) -> Any:
    from hydra import compose, initialize_config_module
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import FSDPEngineConfig

    from aent_verl.core.controllers import ConstantController
    from aent_verl.methods.axes import Linear
    from aent_verl.methods.settings import BonusConfig, EntropyControlConfig
    from aent_verl.plugin.actor_config import EntropyControlActorConfig

    if case.preset:
        overrides = ["experiment=cpu_arithmetic", f"actor_rollout_ref.actor.loss_agg_mode={case.loss_agg_mode}"]
        with initialize_config_module("aent_verl._config", version_base=None):
            return omega_conf_to_dataclass(
                compose("aent_trainer", overrides=[*overrides, *case.preset]).actor_rollout_ref.actor
            )
    bonus = BonusConfig(Linear(), ConstantController(init=case.coefficient))
    return EntropyControlActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        loss_agg_mode=case.loss_agg_mode,
        entropy_coeff=case.stock_entropy_coeff,
        # Without it this mode divides by the width of each padded micro-batch.
        loss_scale_factor=12 if case.loss_agg_mode == "seq-mean-token-sum-norm" else None,
        fsdp_config=FSDPEngineConfig(strategy="fsdp2"),
        entropy_control=EntropyControlConfig("test", functional(case), bonus),
    )


def functional(case: Case) -> Any:
    from aent_verl.methods.settings import FunctionalConfig

    return FunctionalConfig("full") if case.clamp_p is None else FunctionalConfig("clamped", case.clamp_p)


def step(case: Case) -> Any:
    """What the driver sends with the batch of a case."""
    from aent_verl.methods.step import StepValues

    return StepValues(
        step=3,
        total_steps=10,
        bonus_coefficient=case.coefficient,
        advantages_coefficient=case.mu,
        initial_entropy=5.0,
        entropy_mean=2.5,
    )


def _run_case(engine: Any, case: Case, rank: int, world_size: int) -> Result:
    from verl.utils import tensordict_utils as tu
    from verl.utils.metric import reduce_metrics
    from verl.utils.torch_functional import allgather_dict_into_dict
    from verl.workers.utils.losses import ppo_loss

    from aent_verl.plugin.losses import entropy_control_loss
    from aent_verl.plugin.micro_batch import MEASURE, STEP
    from aent_verl.plugin.minibatch_stats import StatsPass

    data = batch(rank, world_size)
    settings: dict[str, Any] = {
        "temperature": case.temperature,
        "use_remove_padding": case.remove_padding,
        "use_fused_kernels": case.fused_head is not None,
        "use_dynamic_bsz": case.dynamic,
        "max_token_len_per_gpu": 40,
        "micro_batch_size_per_gpu": case.micro_batch,
        "global_batch_size": SEQUENCES,
        "calculate_entropy": case.evaluate or case.stock_entropy_coeff != 0,
        "pad_token_id": 0,
    }
    if case.engine == "ours":
        if case.send_step:
            settings[STEP] = step(case)
        settings[MEASURE] = case.measure_initial
        config = _actor_config(case)
        engine.functional = config.entropy_control.functional
        engine.stats_pass = StatsPass(config)
        engine.needs_hidden_states = config.entropy_control.needs_hidden_states
        loss_function = partial(entropy_control_loss, config=config)
    else:
        loss_function = partial(ppo_loss, config=_actor_config(case))
    tu.assign_non_tensor(data, **settings)
    if case.evaluate:
        with engine.eval_mode(), engine.disable_adapter() if case.reference else nullcontext():
            outputs = engine.forward_backward_batch(data, None, forward_only=True)["model_output"]
        return Result(0.0, torch.zeros(()), {}, {key: value.values() for key, value in outputs.items()})
    # What FSDP2 gathers weights with, by its newer and its older name.
    name = next(n for n in ("all_gather_single", "all_gather_into_tensor") if hasattr(torch.distributed, n))
    gather = mock.patch.object(torch.distributed, name, wraps=getattr(torch.distributed, name))
    with engine.train_mode(), gather as gathers:
        engine.optimizer_zero_grad()
        output = engine.forward_backward_batch(data, loss_function)
        gradient = torch.cat([p.grad.full_tensor().flatten() for p in engine.module.parameters() if p.requires_grad])
    loss = torch.tensor(float(sum(output["loss"])))
    torch.distributed.all_reduce(loss)
    gathered = allgather_dict_into_dict(data=output["metrics"], group=engine.get_data_parallel_group())
    metrics = _reduce(gathered, reduce_metrics)
    return Result(loss.item() / world_size, gradient, metrics, gathers=gathers.call_count)


def _reduce(gathered: dict[str, list[Any]], reduce_metrics: Any) -> dict[str, Any]:
    from itertools import chain

    from verl.utils.metric import Metric

    flat = {
        f"actor/{key}": Metric.aggregate_dp(values)
        if isinstance(values[0], Metric)
        else list(chain.from_iterable(values))
        for key, values in gathered.items()
    }
    return reduce_metrics({k: [v] if isinstance(v, float) else v for k, v in flat.items()})
