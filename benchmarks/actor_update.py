"""The actor update of the CPU experiment: stock verl's GRPO with its entropy on, against ours with AEnt.

    python -m benchmarks.actor_update

Both are whole updates of verl's training worker, `train_mini_batch`: micro-batches, forward and backward pass, gradient
clipping, optimizer step, metrics; in this process, without Ray and vLLM. All settings are those of
``experiment=cpu_arithmetic``, the data are its right answers, the model is its own with random weights. Stock and ours
take turns on copies of one batch, in an order that alternates.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from aent_verl.launch.terminal import redirected_output
from benchmarks.measure import Quantiles
from benchmarks.report import Report, add_output_options, milliseconds, progress, ratio, stamp

EXPERIMENT = "cpu_arithmetic"
# What verl's users set for an entropy bonus; its value does not change the cost, 0 included once entropy is on.
STOCK_COEFFICIENT = 0.001
# The pair's two kinds, with the preset that each is composed with.
PRESETS = {"stock": "grpo", "ours": "aent"}
LABELS = {"stock": "verl: GRPO with its entropy on", "ours": "ours: GRPO with AEnt"}


def compose(preset: str, model: Path) -> Any:
    """The experiment's config under a preset, with another model."""
    import hydra

    overrides = [f"experiment={EXPERIMENT}", f"entropy_control={preset}", f"actor_rollout_ref.model.path={model}"]
    with hydra.initialize_config_module("aent_verl._config", version_base="1.3"):
        return hydra.compose("aent_trainer", overrides=overrides)


def worker(kind: str, config: Any) -> Any:
    """verl's training worker as `ActorRolloutRefWorker.init_model` makes it, with its or our engine and loss."""
    import dataclasses

    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import TrainingWorkerConfig
    from verl.workers.utils.losses import ppo_loss

    from aent_verl.plugin.losses import entropy_control_loss
    from aent_verl.plugin.minibatch_stats import StatsPass
    from aent_verl.plugin.worker import CpuReadyTrainingWorker, EntropyControlTrainingWorker

    settings = config.actor_rollout_ref.actor
    actor = omega_conf_to_dataclass(settings)
    if kind == "stock":
        actor = dataclasses.replace(actor, entropy_coeff=STOCK_COEFFICIENT)
    actor.model_config = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    actor.optim.total_training_steps = config.trainer.total_training_steps
    actor.engine.use_dynamic_bsz = settings.use_dynamic_bsz
    actor.engine.max_token_len_per_gpu = settings.ppo_max_token_len_per_gpu
    actor.engine.micro_batch_size_per_gpu = settings.ppo_micro_batch_size_per_gpu
    built = (CpuReadyTrainingWorker if kind == "stock" else EntropyControlTrainingWorker)(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=actor.model_config,
            engine_config=actor.engine,
            optimizer_config=actor.optim,
            checkpoint_config=actor.checkpoint,
            profiler_config=None,
        )
    )
    built.reset()
    built.set_loss_fn(partial(ppo_loss if kind == "stock" else entropy_control_loss, config=actor))
    if kind == "ours":
        built.engine.functional = actor.entropy_control.functional
        built.engine.stats_pass = StatsPass(actor)
    return built


def sequences(tokenizer: Any, count: int, longest: int) -> dict[str, list[torch.Tensor]]:
    """Sums of two two-digit numbers with their answers: the lengths that the experiment's trajectories have."""
    generator = torch.Generator().manual_seed(0)
    fields: dict[str, list[torch.Tensor]] = {}
    for left, right in torch.randint(10, 100, (count, 2), generator=generator).tolist():
        chat = [{"role": "user", "content": f"{left} + {right} ="}]
        prompt = tokenizer.encode(
            tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False), add_special_tokens=False
        )
        answer = [*tokenizer.encode(str(left + right), add_special_tokens=False)[: longest - 1], tokenizer.eos_token_id]
        tokens = torch.tensor(prompt + answer)
        mask = torch.ones(len(answer))
        row = {
            "input_ids": tokens,
            "prompts": tokens[: len(prompt)],
            "responses": tokens[len(prompt) :],
            "position_ids": torch.arange(len(tokens)),
            "response_mask": mask,
            "loss_mask": torch.cat([torch.zeros(len(prompt)), mask]),
            "old_log_probs": -5.5 + 0.1 * torch.randn(len(answer), generator=generator),
            "advantages": torch.randn((), generator=generator).expand(len(answer)).clone(),
        }
        for key, value in row.items():
            fields.setdefault(key, []).append(value)
    return fields


def batch(kind: str, fields: dict[str, list[torch.Tensor]], config: Any, pad_token: int) -> Any:
    """What verl's trainer hands to the actor's `train_mini_batch` in one step."""
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu

    from aent_verl.methods.step import StepValues
    from aent_verl.plugin.micro_batch import STEP

    settings, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    data = TensorDict(
        {key: torch.nested.as_nested_tensor(values, layout=torch.jagged) for key, values in fields.items()},
        batch_size=len(fields["prompts"]),
    )
    mini_batch = settings.ppo_mini_batch_size * rollout.n
    tu.assign_non_tensor(
        data,
        calculate_entropy=kind == "stock",
        global_batch_size=mini_batch,
        mini_batch_size=mini_batch,
        epochs=settings.ppo_epochs,
        seed=settings.data_loader_seed,
        dataloader_kwargs={"shuffle": settings.shuffle},
        temperature=rollout.temperature,
        pad_token_id=pad_token,
    )
    if kind == "ours":
        coefficient = config.entropy_control.bonus.controller.init
        tu.assign_non_tensor(data, **{STEP: StepValues(step=1, total_steps=1, bonus_coefficient=coefficient)})
    return data


def paired(prepare: dict[str, Callable[[], Callable[[], Any]]], rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of what each of ``prepare`` returns, in rounds over all, each round in the opposite order of the last."""
    taken: dict[str, list[float]] = {kind: [] for kind in prepare}
    for turn in range(-warm_up, rounds):
        for kind in sorted(prepare, reverse=turn % 2 == 0):
            update = prepare[kind]()
            start = time.perf_counter()
            update()
            if turn >= 0:
                taken[kind].append(time.perf_counter() - start)
    return taken


def run(rounds: int, warm_up: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds by kind, and the size of the batch."""
    from aent_verl.data.tasks import tiny_model
    from aent_verl.platforms import cpu

    cpu.initialize_gloo()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_model.build_tokenizer()
        # The sizes that `arithmetic.prepare` has by default.
        tiny_model.save(tiny_model.build_model(tokenizer, hidden_size=128, layers=2, seed=0), tokenizer, folder)
        configs = {kind: compose(preset, Path(folder)) for kind, preset in PRESETS.items()}
        workers = {kind: worker(kind, config) for kind, config in configs.items()}
    data = configs["ours"].data
    count = data.train_batch_size * configs["ours"].actor_rollout_ref.rollout.n
    fields = sequences(tokenizer, count, data.max_response_length)

    def prepare(kind: str) -> Callable[[], Any]:
        return partial(workers[kind].train_mini_batch, batch(kind, fields, configs[kind], tokenizer.pad_token_id))

    taken = paired({kind: partial(prepare, kind) for kind in PRESETS}, rounds, warm_up)
    return taken, {
        "sequences": count,
        "tokens": sum(map(len, fields["input_ids"])),
        "response_tokens": sum(map(len, fields["responses"])),
        "vocabulary": len(tokenizer),
    }


def prepare_process(folder: str) -> None:
    """One rank on the CPU platform; before verl is imported, which looks for its platform then."""
    os.environ.update(
        VERL_PLATFORM="cpu",
        RANK="0",
        WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
        DIST_INIT_METHOD=f"file://{folder}/store",
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.actor_update",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=40, help="updates of each kind")
    parser.add_argument("--warm-up", type=int, default=5, help="rounds before, which do not count")
    add_output_options(parser)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.warm_up < 0:
        parser.error("--rounds must be at least 1, --warm-up at least 0")
    if find_spec("verl") is None:
        print("actor update: left out, verl is not installed")
        return
    before = stamp("cpu", experiment=EXPERIMENT, rounds=options.rounds)
    progress("building both workers, updating in turns")
    # verl and its libraries print on every step.
    with tempfile.TemporaryDirectory() as folder, redirected_output(Path(folder) / "log"):
        prepare_process(folder)
        taken, sizes = run(options.rounds, options.warm_up)
        torch.distributed.destroy_process_group()
    report = Report(options, before | sizes, "actor_update")
    times = {kind: Quantiles.of(values) for kind, values in taken.items()}
    stock = times["stock"].median
    report.table(
        "Actor update of the CPU experiment; median (20% to 80% quantile)",
        ["update", "engine and loss", "ms", "ratio of medians"],
        [[kind, LABELS[kind], milliseconds(time), ratio(time.median, stock)] for kind, time in times.items()],
    )
    pairs = [ours / verl for ours, verl in zip(taken["ours"], taken["stock"], strict=True)]
    report.text(f"median of the ratios of the {len(pairs)} pairs: {statistics.median(pairs):.3f}")
    report.save(times=times, ratio_of_medians=times["ours"].median / stock, ratios_of_pairs=Quantiles.of(pairs))


if __name__ == "__main__":
    main()
