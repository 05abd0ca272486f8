"""A grid whose runs are the stand-in of trainer.py; run as a script, so that a test can kill it."""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from aent_verl.comparison.grid.plan import Cell
from aent_verl.comparison.grid.scheduler import Schedule
from aent_verl.launch.processes import Handle, LocalProcess
from tests.unit.comparison.grid.trainer import STEPS


def start(arguments: list[str], log: Path) -> Handle:
    assert arguments[0] == "-m"
    return LocalProcess(["-m", "tests.unit.comparison.grid.trainer", *arguments[1:]], log)


def cell(
    results: Path,
    method: str,
    seed: int,
    *,
    evaluated: bool = False,
    pause: int = 1,
    steps: int = STEPS,
    extra: tuple[str, ...] = (),
) -> Cell:
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
    return Cell(method, seed, folder, overrides, ("n=2",) if evaluated else None, OmegaConf.create(config))


def schedule(grid: list[Cell], *, parallel: int = 1, stall_seconds: float = 0) -> Schedule:
    return Schedule(grid, start, parallel=parallel, stall_seconds=stall_seconds)


if __name__ == "__main__":
    results = Path(sys.argv[1])
    schedule([cell(results, m, s, evaluated=True, pause=20) for s in (1, 2) for m in ("grpo", "aent")]).run(
        lambda _: None
    )
