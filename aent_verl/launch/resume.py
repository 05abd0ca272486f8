"""Where a run resumes, and whether there is anything left of it to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from omegaconf import DictConfig

from aent_verl.launch.environment import LaunchError
from aent_verl.runs import checkpoints, last_start, metrics

if TYPE_CHECKING:
    from aent_verl.methods.settings import EntropyControlConfig


def resume_folder(cfg: DictConfig) -> Path | None:
    """The checkpoint folder ``global_step_N`` that verl will resume from, or None for a fresh start.

    Raises:
        LaunchError: the folder to resume from is not there, or verl's tracker is damaged.
    """
    trainer = cfg.trainer
    if trainer.resume_mode == "resume_path":
        if trainer.resume_from_path is None or not Path(trainer.resume_from_path).is_dir():
            raise LaunchError(
                f"trainer.resume_from_path={trainer.resume_from_path!r} is no folder: with trainer.resume_mode="
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
    """Whether the run that would be resumed is complete already; reads the controller's saved state on the way.

    A state that is missing or damaged stops the run here, before it starts.
    """
    from aent_verl.plugin import saved_state

    folder = resume_folder(cfg)
    if folder is None:
        return False
    if not control.restart_controller:
        _, _, changes = saved_state.read(folder, control=control, controllers=control.controllers)
        for change in changes:
            print(f"warning: {change}", file=terminal)
    if (other := last_start.warning(cfg)) is not None:
        print(f"warning: {other}", file=terminal)
    done, last = checkpoints.step_of(folder.name), cfg.trainer.total_training_steps
    if last is None or done is None or done < last:
        print(f"resuming from {folder}", file=terminal)
        return False
    if cfg.trainer.val_before_train and not is_logged(cfg.run.dir, last):
        # verl saves, validates and logs in this order: a kill in between takes the last validation with it.
        print(f"resuming from {folder} to validate it: the run was killed before it could", file=terminal)
        return False
    print(
        f"this run is complete: step {done} of {last} in {cfg.run.dir}\n"
        "to train again choose another name, trainer.experiment_name=..., or remove that folder",
        file=terminal,
    )
    return True


def is_logged(folder: str, step: int) -> bool:
    """Whether a run's metrics file, where it has one, reaches this step."""
    try:
        return max(metrics.read_run(folder)) >= step
    except FileNotFoundError:
        return True
    except ValueError:
        return False
