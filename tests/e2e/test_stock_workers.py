"""In `grpo` our actor workers train as verl's own do, in every trainer mode: the same updates of the same batches.

What a mode runs of the worker is taken from verl's trainer. `sync` and `colocate_async` share a worker: one pass over
old log-probs and one update of several mini-batches a step. `separate_async` has several updates a step, and goes back
to the weights of the first for the old log-probs of each.

verl's own copy of those weights follows the current ones on a CPU. So ours are compared with verl's worker after that
one line is mended in the test, and with the worker as it comes in all that the line does not touch.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from tests.engine_harness import SEQUENCES, batch

pytestmark = pytest.mark.slow

RANKS, STEPS, UPDATES = 2, 2, 2
COMPARED = ("loss", "grad_norm", "actor/pg_loss", "actor/ppo_kl", "actor/pg_clipfrac")
WORKERS = ("stock sync", "ours sync", "stock separate", "stock mended", "ours separate")
Outcome = dict[str, Any]


def _settings(model: str) -> Any:
    from hydra import compose, initialize_config_module

    overrides = [
        *("experiment=cpu_arithmetic", "entropy_control=grpo", f"actor_rollout_ref.model.path={model}"),
        *("actor_rollout_ref.actor.optim.lr=0.0005", "actor_rollout_ref.actor.clip_ratio=0.2"),
    ]
    with initialize_config_module("aent_verl._config", version_base=None):
        return compose("aent_trainer", overrides=overrides).actor_rollout_ref


def _build(name: str, settings: Any) -> Any:
    from verl.experimental.separation.engine_workers import DetachActorWorker
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from aent_verl.plugin.worker import CpuReadyTrainingWorker, DetachedEntropyControlWorker, EntropyControlWorker

    class Mended(DetachActorWorker):
        """verl's, with a copy that is one."""

        @property
        def copy_handler(self) -> Any:
            def copy(module: Any) -> Any:
                shards, layout = super(Mended, self).copy_handler(module)
                return {key: (shard.clone(), spec) for key, (shard, spec) in shards.items()}, layout

            return copy

    kinds = {
        "stock sync": ActorRolloutRefWorker,
        "ours sync": EntropyControlWorker,
        "stock separate": DetachActorWorker,
        "stock mended": Mended,
        "ours separate": DetachedEntropyControlWorker,
    }
    worker = kinds[name](settings.copy(), role="actor")
    if name.startswith("stock"):
        # Its processes need the CPU platform's process group; engine and loss are verl's.
        worker.actor_worker_cls = CpuReadyTrainingWorker
    worker.init_model()
    return worker


def _train(worker: Any, name: str, rank: int, ranks: int) -> Outcome:
    separate = not name.endswith("sync")
    found: list[dict[str, Any]] = []
    before = _weights(worker)
    for step in range(1, STEPS + 1):
        for update in range(UPDATES if separate else 1):
            data = batch(rank, ranks)
            # Another batch each time, as far as gradients go.
            data["advantages"] = data["advantages"] * (1.5 - update - 0.2 * step)
            found.append(_update(worker, data, step, update if separate else None))
    return {"metrics": found, "weights": _weights(worker), "moved": (_weights(worker) - before).norm()}


def _weights(worker: Any) -> torch.Tensor:
    return torch.cat([p.full_tensor().detach().flatten() for p in worker.actor.engine.module.parameters()])


def _update(worker: Any, data: Any, step: int, update: int | None) -> dict[str, Any]:
    """What verl's trainer asks of the worker for one update; ``update`` is its number in a step of separate_async."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import response_from_nested

    from aent_verl.methods.step import StepValues
    from aent_verl.plugin.micro_batch import STEP

    common = {"temperature": 1.0, "pad_token_id": 0, "calculate_entropy": True, "compute_loss": False}
    asked = data.copy()
    tu.assign_non_tensor(asked, **common)
    if update is not None:
        worker.save_model_to_cpu(update)
    if update:
        worker.restore_model_from_cpu(0)
    old = worker.compute_log_prob(asked)
    if update:
        worker.restore_model_from_cpu(update)
        worker.clear_cpu_model(update)
    data["old_log_probs"] = response_from_nested(old["log_probs"], data["response_mask"])
    size = SEQUENCES if update is not None else SEQUENCES // 2
    tu.assign_non_tensor(
        data,
        **common | {"calculate_entropy": False, "global_batch_size": size, "mini_batch_size": size, "epochs": 1},
        seed=42,
        dataloader_kwargs={"shuffle": False},
        **{STEP: StepValues(step=step, total_steps=STEPS, bonus_coefficient=0.0)},
    )
    return dict(tu.get(worker.update_actor(data), "metrics"))


def _rank(rank: int, ranks: int, model: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        VERL_PLATFORM="cpu",
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
        DIST_INIT_METHOD=f"file://{folder}/store",
    )
    from aent_verl.platforms import cpu
    from tests import hydra_cache

    hydra_cache.install()
    cpu.initialize_gloo()
    settings = _settings(model)
    outcomes = {name: _train(_build(name, settings), name, rank, ranks) for name in WORKERS}
    if rank == 0:
        torch.save(outcomes, Path(folder) / "outcomes.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tiny_model_folder: str) -> dict[str, Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(RANKS, tiny_model_folder, folder), nprocs=RANKS, join=True)
        return torch.load(Path(folder) / "outcomes.pt", weights_only=False)


def compared(outcome: Outcome) -> list[list[float]]:
    """The metrics of each update, of all its mini-batches."""
    return [[float(x) for key in COMPARED for x in _listed(metrics[key])] for metrics in outcome["metrics"]]


def _listed(value: Any) -> list[Any]:
    value = getattr(value, "values", value)
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize(("mine", "theirs"), [("ours sync", "stock sync"), ("ours separate", "stock mended")])
def test_updates_are_those_of_verls_worker(outcomes: dict[str, Outcome], mine: str, theirs: str) -> None:
    for ours, stock in zip(compared(outcomes[mine]), compared(outcomes[theirs]), strict=True):
        assert ours == pytest.approx(stock, rel=1e-4, abs=1e-5)
    # Adam divides by the gradient's own size, so that rounding moves weights whose gradients are nearly 0.
    change = outcomes[mine]["weights"] - outcomes[theirs]["weights"]
    assert change.norm() < 1e-3 * outcomes[theirs]["moved"]


def test_the_batches_tell_workers_apart(outcomes: dict[str, Outcome]) -> None:
    """They move the weights and clip ratios, and the old policy of a step's second update is not the current one."""
    sync, separate = outcomes["ours sync"], outcomes["ours separate"]
    assert (sync["weights"] - separate["weights"]).norm() > 0.1 * sync["moved"]
    second = separate["metrics"][1]
    assert all(abs(x) > 1e-4 for key in ("actor/ppo_kl", "actor/pg_clipfrac") for x in _listed(second[key]))


def test_verls_worker_as_it_comes_loses_the_old_policy_on_a_cpu(outcomes: dict[str, Outcome]) -> None:
    """So its second update is another one. Once this fails verl has mended it, and `copy_handler` of ours can go."""
    stock, ours = compared(outcomes["stock separate"]), compared(outcomes["ours separate"])
    assert ours[0] == pytest.approx(stock[0], rel=1e-5, abs=1e-6)
    assert _listed(outcomes["stock separate"]["metrics"][1]["actor/ppo_kl"]) == [0.0]
    assert ours[1] != pytest.approx(stock[1], rel=1e-2)
