"""What `aent-verl set` changed in a run that trains: a list in its checkpoint folder; and whom it asks."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aent_verl._util import write_json

FILE = "entropy_control_changes.json"
# Of the name of the actor that holds a run's coefficients, on a Ray cluster; the job's id follows.
ACTOR_PREFIX = "aent_verl_coefficient_"


@dataclass(frozen=True)
class Change:
    """One setting that was changed while the run trained.

    Attributes:
        step: the first training step that it is in force for.
        key: the setting, as in ``entropy_control.bonus.controller.low``.
        old: its value before.
        new: its value since.
        by: user and machine.
        at: when, ISO 8601 in UTC.
    """

    step: int
    key: str
    old: Any
    new: Any
    by: str
    at: str

    def __str__(self) -> str:
        """Say what was changed, and who did it when."""
        return f"{self.key}: {self.old} -> {self.new} from step {self.step} on (by {self.by}, {self.at})"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def write(folder: Path, changes: Sequence[Change]) -> None:
    """Write the changes of a run into its checkpoint folder ``trainer.default_local_dir``, atomically."""
    write_json(folder / FILE, [change.to_dict() for change in changes])


def read(folder: Path) -> list[Change]:
    """Read them back, the first one first; none where nothing was changed.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FILE
    try:
        return [Change(**change) for change in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it; the checkpoints hold the same changes") from None
