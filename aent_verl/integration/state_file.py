"""The controller's state in ``global_step_N/entropy_control.json``: versioned, written atomically."""

import json
import os
from pathlib import Path
from typing import Any

from aent_verl.core.controllers import ControllerState
from aent_verl.integration.config import EntropyControlConfig

NAME = "entropy_control.json"
VERSION = 1
RESTART = "entropy_control.restart_controller=true"


class StateFileError(RuntimeError):
    """The controller's saved state is missing or cannot be used; the message says what to do."""


def write(folder: str | os.PathLike[str], *, control: EntropyControlConfig, state: ControllerState) -> Path:
    """Write the state into a checkpoint folder so that a reader sees the whole file or none.

    Args:
        folder: verl's ``global_step_N`` folder; made if absent.
        control: the settings that the state belongs to.
        state: what to save.

    Returns:
        The file's path.
    """
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "version": VERSION,
        "method": control.method,
        "functional": str(control.functional),
        "bonus": {"controller": control.controller_name, "state": state.to_dict()},
    }
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def read(folder: str | os.PathLike[str], *, control: EntropyControlConfig) -> tuple[ControllerState, list[str]]:
    """Read the state back from a checkpoint folder, under the settings of this run.

    Args:
        folder: verl's ``global_step_N`` folder.
        control: the settings of this run.

    Returns:
        The state to go on with, and a sentence on each thing in which this run differs from the one that saved it.

    Raises:
        StateFileError: no such file, not ours, of a later version, or of another controller. The message names the file
            and the option that starts the controller afresh.
    """
    path = Path(folder) / NAME
    afresh = f"to go on with the controller at its initial state, add {RESTART}"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StateFileError(
            f"the checkpoint {folder} has no {NAME}: it was written without entropy control, and the coefficient that "
            f"the run had reached is not known; {afresh}"
        ) from None
    except (OSError, ValueError) as error:
        raise StateFileError(f"{path} cannot be read ({error}); {afresh}") from error
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int) or version < 1:
        raise StateFileError(f"{path} is not an entropy-control state file (version={version!r}); {afresh}")
    if version > VERSION:
        raise StateFileError(
            f"{path} has version {version}, and this aent_verl reads up to {VERSION}: upgrade aent_verl; or, {afresh}"
        )
    try:
        saved, state = content["bonus"]["controller"], ControllerState.from_dict(content["bonus"]["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise StateFileError(f"{path} is damaged ({error}); {afresh}") from error
    if saved != control.controller_name:
        raise StateFileError(
            f"{path} holds the state of controller {saved!r}, and the run is set to {control.controller_name!r}; set "
            f"entropy_control.bonus.controller.name={saved}; or, {afresh}"
        )
    restored = control.controller.restore(state)
    changed = {
        "method": (content.get("method"), control.method),
        "functional": (content.get("functional"), str(control.functional)),
        "coefficient": (state.coefficient, restored.coefficient),
    }
    return restored, [
        f"the checkpoint {folder} was saved with {name} {old}, and this run goes on with {new}"
        for name, (old, new) in changed.items()
        if old != new
    ]
