"""Training a comparison longer: its runs go on from their last checkpoints, if only the number of steps is higher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aent_verl.comparison.grid.plan import Cell
from aent_verl.runs.protocol import EPOCHS, STEPS

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Controllers whose coefficient depends on the length of the run.
SCHEDULES = ("linear_decay", "stage", "epoch")
_BONUS, _OPTIMIZER = "entropy_control.bonus.name", "actor_rollout_ref.actor.optim."
_CONTROLLERS = ("entropy_control.bonus.controller.name", "entropy_control.advantages.controller.name")


def is_longer(cell: Cell, record: Mapping[str, Any]) -> bool:
    """Whether a run that has begun is now asked for with more training steps.

    Raises:
        ValueError: with fewer; or a run of that length would have differed from its first step on.
    """
    before, now = record["protocol"].get(STEPS), cell.total_steps
    if now is None or before in (None, "None", str(now)):
        return False
    asked = f"{STEPS}={now}: {cell.folder} has {before} training steps, asked for are {now}"
    other = "choose another folder, results=..."
    if now < int(before):
        raise ValueError(f"{asked}: it can only get more; {other}")
    planned = _planned(cell.config)
    if planned:
        raise ValueError(
            f"{asked}, and {', '.join(planned)} goes by the length of the run: a longer one is another from its first "
            f"step on; {other}"
        )
    return True


def without_steps(overrides: Sequence[str]) -> list[str]:
    """The overrides that do not set the number of training steps, or of the epochs that must hold them."""
    return [text for text in overrides if text.lstrip("+").partition("=")[0] not in (STEPS, EPOCHS)]


def _planned(config: DictConfig) -> list[str]:
    """Settings whose effect at a step depends on how many will follow."""
    from omegaconf import OmegaConf

    goes_by_length = {_BONUS: ("smoothed",), **dict.fromkeys(_CONTROLLERS, SCHEDULES)}
    found = {key: OmegaConf.select(config, key) for key in goes_by_length}
    planned = [f"{key}={value}" for key, value in found.items() if value in goes_by_length[key]]
    for key in ("lr_scheduler_type", "warmup_style"):  # The second is verl's older name, and wins where it is set.
        decay = OmegaConf.select(config, f"{_OPTIMIZER}{key}")
        if decay not in (None, "constant"):
            planned.append(f"{_OPTIMIZER}{key}={decay}")
    share = OmegaConf.select(config, f"{_OPTIMIZER}lr_warmup_steps_ratio", default=0.0)
    if share and (OmegaConf.select(config, f"{_OPTIMIZER}lr_warmup_steps") or 0) <= 0:
        planned.append(f"{_OPTIMIZER}lr_warmup_steps_ratio={share}")
    return planned
