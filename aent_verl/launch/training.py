"""A training run: everything is checked, then verl's PPO runs on the composed config, or resumes."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from omegaconf import DictConfig

from aent_verl._util import exclusive_folder
from aent_verl.launch.compose import prepare_task
from aent_verl.launch.environment import LaunchError, choose_platform, hand_to_workers
from aent_verl.runs import checkpoints, last_start, metrics, worker_reports
from aent_verl.runs.run import LOG

if TYPE_CHECKING:
    from aent_verl.methods.settings import EntropyControlConfig


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


def resume_folder(cfg: DictConfig) -> Path | None:
    """Find the checkpoint folder ``global_step_N`` that verl will resume from; None for a fresh start.

    Raises:
        LaunchError: the folder to resume from is not there, or verl's tracker is damaged.
    """
    trainer = cfg.trainer
    if trainer.resume_mode == "resume_path":
        if trainer.resume_from_path is None or not Path(trainer.resume_from_path).is_dir():
            raise LaunchError(
                f"trainer.resume_from_path={trainer.resume_from_path!r} is not a folder: with trainer.resume_mode="
                "resume_path it must be a checkpoint's global_step_N folder"
            )
        return Path(trainer.resume_from_path)
    if trainer.resume_mode != "auto":
        return None
    try:
        step = checkpoints.latest_step(trainer.default_local_dir)
    except ValueError as error:
        raise LaunchError(str(error)) from None
    folder = checkpoints.step_folder(trainer.default_local_dir, step)
    return folder if step and folder.is_dir() else None


def is_complete(cfg: DictConfig, control: EntropyControlConfig, terminal: TextIO) -> bool:
    """Return whether the run that would be resumed is complete already; read the controllers' saved state on the way.

    A state that is missing or damaged stops the run here, before it starts.
    """
    from aent_verl.plugin import saved_state

    folder = resume_folder(cfg)
    if folder is None:
        return False
    if not control.restart_controller:
        saved = saved_state.read(folder, control=control, controllers=control.controllers)
        for change in saved.differences:
            print(f"warning: {change}", file=terminal)
    if (other := last_start.warning(cfg)) is not None:
        print(f"warning: {other}", file=terminal)
    done, last = checkpoints.step_of(folder.name), cfg.trainer.total_training_steps
    if last is None or done is None or done < last:
        print(f"resuming from {folder}", file=terminal)
        return False
    if cfg.trainer.val_before_train and not is_logged(cfg.run.dir, last):
        # verl saves, validates and logs in this order: a kill in between loses the last validation.
        print(f"resuming from {folder} to validate it: the run was killed before it could", file=terminal)
        return False
    print(
        f"this run is complete: step {done} of {last} in {cfg.run.dir}\n"
        "to train again choose another name, trainer.experiment_name=..., or remove that folder",
        file=terminal,
    )
    return True


def is_logged(folder: str, step: int) -> bool:
    """Return whether a run's metrics file, where it has one, reaches this step."""
    try:
        return max(metrics.read_run(folder)) >= step
    except FileNotFoundError:
        return True
    except ValueError:
        return False


def exclusive_run(folder: Path) -> AbstractContextManager[None]:
    """Hold a run's folder: two trainings would mix their metrics and overwrite each other's checkpoints.

    Raises:
        LaunchError: on entering: another process trains in it.
    """
    setting = f"run.dir={str(folder)!r}"
    remedy = "wait until it ends, or give this run another name, trainer.experiment_name=..."
    return exclusive_folder(folder, setting, LaunchError(f"{setting}: another process trains in it; {remedy}"))


def run_verl(cfg: DictConfig, terminal: TextIO) -> None:
    """Hand over to verl, with the progress display around it if the config asks for one."""
    import ray
    from rich.console import Console
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    from aent_verl.viewing.plot import plot_run
    from aent_verl.viewing.progress import TrainingDisplay

    run_dir, plot = Path(cfg.run.dir), ""
    metrics.rotate(run_dir)
    display = TrainingDisplay(
        Console(file=terminal),
        cfg.trainer.total_training_steps,
        metrics_path=run_dir / metrics.METRICS_FILE,
        report_path=Path(cfg.trainer.default_local_dir) / worker_reports.FILE,
        log_path=run_dir / LOG,
    )
    with display if cfg.run.progress else nullcontext():
        try:
            run_ppo(cfg, task_runner_class=TaskRunnerV1)
        finally:
            # While the log still catches what the workers say last.
            ray.shutdown()
    try:
        plot = f", plot {plot_run(run_dir)}"
    except (ImportError, OSError, ValueError) as error:
        print(f"no plot: {error}", file=sys.stderr)
    print(f"results in {run_dir}{plot}", file=terminal)
