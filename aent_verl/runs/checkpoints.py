"""Where verl keeps a run's checkpoints: folders ``global_step_N``, and alongside them a file that names the latest."""

import re
from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"
_PREFIX = "global_step_"


def step_folder(checkpoints: str | Path, step: int) -> Path:
    """Return the folder of the checkpoint after a training step."""
    return Path(checkpoints) / f"{_PREFIX}{step}"


def step_of(path: str | Path) -> int | None:
    """Return the training step that a path to a checkpoint, or to something in one, names; None if it names none."""
    steps = re.findall(rf"{_PREFIX}(\d+)", str(path))
    return int(steps[-1]) if steps else None


def step_folders(checkpoints: Path) -> list[Path]:
    """List all checkpoints in a folder by step; it need not exist."""
    return sorted(checkpoints.glob(f"{_PREFIX}*"), key=lambda folder: (step_of(folder) or 0, folder))


def latest_step(checkpoints: str | Path) -> int:
    """Read the step of the latest complete checkpoint, from verl's tracker; 0 if there is none.

    Raises:
        ValueError: the tracker is damaged.
    """
    tracker = Path(checkpoints) / TRACKER
    if not tracker.is_file():
        return 0
    text = tracker.read_text().strip()
    if not text.isdecimal():
        raise ValueError(f"{tracker} holds {text!r} and not a step, as after a kill: put the last {_PREFIX}N's N there")
    return int(text)
