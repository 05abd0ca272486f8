"""A training run: everything is checked, then verl's PPO runs on the composed config."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from omegaconf import DictConfig

from aent_verl._util import exclusive_folder
from aent_verl.launch.compose import prepare_task
from aent_verl.launch.environment import LaunchError, choose_platform, hand_to_workers
from aent_verl.launch.resume import is_complete
from aent_verl.runs import last_start, metrics
from aent_verl.runs.run import LOG

if TYPE_CHECKING:
    from aent_verl.viewing.progress import TrainingDisplay


def train(cfg: DictConfig, terminal: TextIO) -> None:
    """Check everything, then run verl's PPO on the composed config.

    Args:
        cfg: the composed config; paths and Ray's settings in it are filled in.
        terminal: where people look; the rest of what is printed may go elsewhere.

    Raises:
        LaunchError, ValueError, RuntimeError: something does not fit; nothing was started.
    """
    from aent_verl import preflight

    platform = choose_platform(cfg)
    preflight.say(preflight.check_settings(cfg), terminal)
    control = preflight.settings.control_of(cfg)
    with exclusive_run(Path(cfg.run.dir)):
        if is_complete(cfg, control, terminal):
            return
        prepare_task(cfg, terminal)
        preflight.say(preflight.check_run(cfg), terminal)
        last_start.write(cfg, Path(cfg.run.dir))
        hand_to_workers(cfg, platform)
        run_verl(cfg, terminal)


def exclusive_run(folder: Path) -> AbstractContextManager[None]:
    """Hold a run's folder: two trainings would mix their metrics and overwrite each other's checkpoints.

    Raises:
        LaunchError: on entering: another process trains in it.
    """
    setting = f"run.dir={str(folder)!r}"
    busy = LaunchError(
        f"{setting}: another process trains in it; wait until it ends, or give this run another name, "
        "trainer.experiment_name=..."
    )
    return exclusive_folder(folder, setting, busy)


def run_verl(cfg: DictConfig, terminal: TextIO) -> None:
    """Hand over to verl, with the progress display around it if the config asks for one."""
    import ray
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    metrics.rotate(cfg.run.dir)
    with display(cfg, terminal) if cfg.run.progress else nullcontext():
        try:
            run_ppo(cfg, task_runner_class=TaskRunnerV1)
        finally:
            # While the log still catches what the workers say last.
            ray.shutdown()
    picture = plot(cfg)
    print(f"results in {cfg.run.dir}" + (f", plot {picture}" if picture else ""), file=terminal)


def display(cfg: DictConfig, terminal: TextIO) -> TrainingDisplay:
    """The progress display of this run."""
    from rich.console import Console

    from aent_verl.runs import worker_reports
    from aent_verl.viewing.progress import TrainingDisplay

    run_dir = Path(cfg.run.dir)
    return TrainingDisplay(
        Console(file=terminal),
        cfg.trainer.total_training_steps,
        metrics_path=run_dir / metrics.METRICS_FILE,
        report_path=Path(cfg.trainer.default_local_dir) / worker_reports.FILE,
        log_path=run_dir / LOG,
    )


def plot(cfg: DictConfig) -> Path | None:
    """The run's picture, where matplotlib is installed."""
    from aent_verl.viewing.plot import plot_run

    try:
        return plot_run(cfg.run.dir)
    except (ImportError, OSError, ValueError) as error:
        print(f"no plot: {error}", file=sys.stderr)
        return None
