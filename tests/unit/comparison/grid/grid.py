"""A grid whose runs are the stand-in of trainer.py; run as a script, so that a test can kill it."""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from aent_verl.comparison.grid.plan import GridRun
from aent_verl.comparison.grid.scheduler import Scheduler
from aent_verl.launch.processes import Handle, LocalProcess
from tests.unit.comparison.grid.trainer import STEPS


def start(arguments: list[str], log: Path) -> Handle:
    assert arguments[0] == "-m"
    return LocalProcess(["-m", "tests.unit.comparison.grid.trainer", *arguments[1:]], log)


def grid_run(
    results: Path,
    method: str,
    seed: int,
    *,
    evaluated: bool = False,
    pause: int = 1,
    steps: int = STEPS,
    extra: tuple[str, ...] = (),
) -> GridRun:
    folder = results / "runs" / f"{method}_seed{seed}"
    overrides = (
        f"entropy_control={method}",
        f"data.seed={seed}",
        f"data.train_batch_size={pause}",
        f"run.dir='{folder}'",
        *((f"trainer.total_training_steps={steps}",) if steps != STEPS else ()),
        *extra,
    )
    config = {
        "trainer": {
            "total_training_steps": steps,
            "default_local_dir": str(folder / "checkpoints"),
            "device": "cpu",
            "nnodes": 1,
            "n_gpus_per_node": 1,
            "val_before_train": True,
        },
        "actor_rollout_ref": {"rollout": {"tensor_model_parallel_size": 1}},
        "data": {"train_batch_size": pause, "seed": seed},
        "entropy_control": {"method": method},
    }
    return GridRun(method, seed, folder, overrides, ["n=2"] if evaluated else None, OmegaConf.create(config))


def scheduler(grid: list[GridRun], *, parallel: int = 1, stall_seconds: float = 0) -> Scheduler:
    return Scheduler(grid, start, parallel=parallel, stall_seconds=stall_seconds, poll_seconds=0.02)


def small_grid(results: Path) -> list[GridRun]:
    """Three runs, of which one is another seed's."""
    return [grid_run(results, method, seed, evaluated=True) for method, seed in (("grpo", 1), ("aent", 1), ("aent", 2))]


if __name__ == "__main__":
    scheduler(small_grid(Path(sys.argv[1]))).run(lambda _: None)
