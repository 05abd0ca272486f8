"""The controllers' states in ``global_step_N/entropy_control.json``: versioned, written atomically."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent_verl._util import write_json
from aent_verl.core.controllers import Controller, ControllerState, SavedState
from aent_verl.core.diagnostics import EntropyChange
from aent_verl.methods import live_changes
from aent_verl.methods.parsing import controller_with
from aent_verl.methods.settings import EntropyControlConfig
from aent_verl.plugin.coefficients import States
from aent_verl.runs.live_changes import Change

NAME = "entropy_control.json"
VERSION = 6
# Until version 3 the states of all controllers had the fields of each, null where they meant nothing.
_FIELDS_OF_OTHERS = ("level", "entropy_smoothed")
RESTART = "entropy_control.restart_controller=true"
AFRESH = f"to continue with the controllers at their initial state, add {RESTART}"


class StateFileError(RuntimeError):
    """The controller's saved state is missing or cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Saved:
    """What a run continues with.

    Attributes:
        controllers: by axis, with what was changed while the run trained.
        states: of the controllers, by axis.
        change: the fit of the entropy's change.
        rewards: of the reward shaping.
        changes: what was changed while the run trained, and is in force.
        differences: a sentence on each difference between this run and the one that saved them.
    """

    controllers: dict[str, Controller]
    states: States
    change: EntropyChange
    rewards: SavedState
    changes: tuple[Change, ...]
    differences: list[str]


def write(
    folder: str | os.PathLike[str],
    *,
    control: EntropyControlConfig,
    states: States,
    changes: Sequence[Change] = (),
    change: EntropyChange | None = None,
    rewards: SavedState | None = None,
) -> None:
    """Write the states into a checkpoint folder so that a reader sees the whole file or none.

    Args:
        folder: verl's ``global_step_N`` folder; made if absent.
        control: the settings that the states belong to.
        states: what to save, by axis.
        changes: what was changed while the run trained.
        change: the fit of the entropy's change, a diagnostic.
        rewards: the state of the reward shaping; None: its initial one.
    """
    names = control.controller_names
    content = {
        "version": VERSION,
        "method": control.method,
        "functional": str(control.functional),
        "anchor": control.anchor,
        "live_changes": [each.to_dict() for each in changes],
        "entropy_change": (change or EntropyChange()).to_dict(),
        "rewards": {
            "shaping": control.rewards_name,
            "state": (rewards or control.rewards.initial_state()).to_dict(),
        },
    } | {axis: {"controller": names[axis], "state": state.to_dict()} for axis, state in states.items()}
    write_json(Path(folder) / NAME, content)


def read(
    folder: str | os.PathLike[str], *, control: EntropyControlConfig, controllers: Mapping[str, Controller]
) -> Saved:
    """Read the states back from a checkpoint folder, under the settings of this run.

    Args:
        folder: verl's ``global_step_N`` folder.
        control: the settings of this run.
        controllers: its controllers by axis.

    Raises:
        StateFileError: no such file, not ours, of a later version, of other controllers or another reward shaping,
            or with an initial entropy that is not what this run's bonus is tied to. The message names the file and the
            option that starts the controllers at their initial state.
    """
    path = Path(folder) / NAME
    content = _content(path)
    changed: dict[str, tuple[Any, Any]] = {
        "method": (content.get("method"), control.method),
        "functional": (content.get("functional"), str(control.functional)),
    }
    states: States = {}
    try:
        change = EntropyChange.from_dict(content["entropy_change"]) if "entropy_change" in content else EntropyChange()
        if content["version"] == 1:  # it knew only the bonus
            state = ControllerState(1.0, step=content["bonus"]["state"]["step"])
            content["advantages"] = {"controller": control.controller_names["advantages"], "state": state.to_dict()}
        for axis, name in control.controller_names.items():
            _check_name(path, "controller", f"{axis}.controller", content[axis]["controller"], name)
        # Until version 5 nothing could be changed.
        made = [Change(**each) for each in content.get("live_changes", [])]
        controllers, changes, said = _as_changed(made, control, controllers)
        for axis, controller in controllers.items():
            state = controller.state_class.from_dict(_fields(content[axis]["state"], content["version"]))
            # The checks before a run's start do not know its length.
            states[axis] = controller.restore(state) if controller.knows_its_run else state
            name = "coefficient" if axis == "bonus" else f"{axis} coefficient"
            changed[name] = (state.coefficient, states[axis].coefficient)
        # Until version 4 nothing could shape rewards.
        saved = content.get("rewards", {"shaping": "none", "state": {}})
        _check_name(path, "reward shaping", "rewards", saved["shaping"], control.rewards_name)
        rewards = control.rewards.state_class.from_dict(saved["state"])
        if control.anchor is not None:
            _check_anchor(path, content, states["bonus"].initial_entropy, control.anchor)
    except (KeyError, TypeError, ValueError) as error:
        raise StateFileError(f"{path} is damaged or does not fit this run ({error}); {AFRESH}") from error
    differences = [
        f"the checkpoint {folder} was saved with {name} {old}, and this run continues with {new}"
        for name, (old, new) in changed.items()
        if old != new
    ]
    return Saved(controllers, states, change, rewards, changes, said + differences)


def _as_changed(
    made: Sequence[Change], control: EntropyControlConfig, controllers: Mapping[str, Controller]
) -> tuple[dict[str, Controller], tuple[Change, ...], list[str]]:
    """Change the settings of this run as those of the one that saved were; its config wins where it was edited since.

    Returns:
        The controllers, the changes that stay, and a sentence on each setting that was changed.
    """
    first = {change.key: change.old for change in reversed(made)}
    last = {change.key: change for change in made}
    configured = {axis: dict(vars(controller)) for axis, controller in controllers.items()}
    settings: dict[str, dict[str, Any]] = {}
    dropped: set[str] = set()
    said = []
    for key, change in last.items():
        place = live_changes.find(key, control)
        # The state holds a coefficient that was changed.
        if place.name == live_changes.COEFFICIENT:
            continue
        now = configured[place.axis][place.name]
        # None: a length, which the run fills in.
        if now is None or now == first[key]:
            settings.setdefault(place.axis, {})[place.name] = change.new
            said.append(f"{key}={change.new} is kept, which {change.by} set for step {change.step} and later ones")
        else:
            dropped.add(key)
            said.append(
                f"{key}={now}, edited since, replaces {change.new}, which {change.by} set at step {change.step}"
            )
    changed = {
        axis: controller_with(settings[axis], control, axis, controller) if axis in settings else controller
        for axis, controller in controllers.items()
    }
    return changed, tuple(change for change in made if change.key not in dropped), said


def _check_name(path: Path, kind: str, block: str, saved: str, wanted: str) -> None:
    if saved != wanted:
        raise StateFileError(
            f"{path} holds the state of {kind} {saved!r}, and the run is set to {wanted!r}; "
            f"set entropy_control.{block}.name={saved}; or, {AFRESH}"
        )


def _fields(state: Any, version: int) -> Any:
    if version > 3 or not isinstance(state, dict):
        return state
    return {key: value for key, value in state.items() if value is not None or key not in _FIELDS_OF_OTHERS}


def _check_anchor(path: Path, content: dict[str, Any], initial: float | None, anchor: dict[str, Any]) -> None:
    """Refuse an initial entropy that was averaged differently: the two do not compare."""
    if initial is None:
        raise ValueError("it holds no initial entropy, to which entropy_control.bonus.name=anchored is tied")
    again = f"to measure it again before the next step and restart the controllers, add {RESTART}"
    if content["version"] < 3:
        raise StateFileError(
            f"{path} has version {content['version']} and holds the initial entropy {initial:g} of an aent_verl that "
            "divided it by all response tokens; entropy_control.bonus.name=anchored now divides by the tokens of its "
            f"mask, so that the two do not compare; {again}"
        )
    saved = content["anchor"] or {}
    differ = [
        f"{key}={saved.get(key)!r}, and this run has {value!r}"
        for key, value in anchor.items()
        if saved.get(key) != value
    ]
    if differ:
        raise StateFileError(
            f"{path} holds the initial entropy {initial:g} measured with {'; '.join(differ)}: the two do not compare; "
            f"set that back; or, {again}"
        )


def _content(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StateFileError(
            f"the checkpoint {path.parent} has no {NAME}: it was written without entropy control, and the coefficient "
            f"that the run had reached is not known; {AFRESH}"
        ) from None
    except (OSError, ValueError) as error:
        raise StateFileError(f"{path} cannot be read ({error}); {AFRESH}") from error
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int) or version < 1:
        raise StateFileError(f"{path} is not an entropy-control state file (version={version!r}); {AFRESH}")
    if version > VERSION:
        raise StateFileError(
            f"{path} has version {version}, and this aent_verl reads up to {VERSION}: upgrade aent_verl; or, {AFRESH}"
        )
    assert isinstance(content, dict)
    return content
