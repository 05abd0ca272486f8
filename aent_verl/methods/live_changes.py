"""Changes to the controllers of a running job: which settings there are, and what becomes of the state."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aent_verl._util import number
from aent_verl.core.controllers import Controller, ControllerState
from aent_verl.methods.parsing import controller_with
from aent_verl.methods.settings import ROOT, EntropyControlConfig

COEFFICIENT = "coefficient"


@dataclass(frozen=True)
class Place:
    """A setting of a controller, or the coefficient that it moves."""

    axis: str
    name: str

    def __str__(self) -> str:
        """Write the key that the config has, or for the coefficient one beside it."""
        return f"{ROOT}.{self.axis}.{COEFFICIENT if self.name == COEFFICIENT else f'controller.{self.name}'}"

    def value(self, controllers: Mapping[str, Controller], states: Mapping[str, ControllerState]) -> Any:
        """Return the value in force."""
        if self.name == COEFFICIENT:
            return states[self.axis].coefficient
        return getattr(controllers[self.axis], self.name)


def acting(control: EntropyControlConfig) -> list[str]:
    """List the axes whose coefficient does something."""
    return ["bonus", "advantages"] if control.advantages.shaping.has_coefficient else ["bonus"]


def find(key: str, control: EntropyControlConfig) -> Place:
    """Find what a key means: ``low``, ``bonus.low``, or ``entropy_control.bonus.controller.low``.

    Raises:
        ValueError: no controller of this run has it, or both have.
    """
    words = key.removeprefix(f"{ROOT}.").split(".")
    axis = [word for word in words[:-1] if word != "controller"]
    settings = {
        each: [COEFFICIENT, *(field.name for field in dataclasses.fields(control.controllers[each]))]
        for each in acting(control)
    }
    found = [Place(each, words[-1]) for each, names in settings.items() if words[-1] in names and axis in ([], [each])]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{key} is ambiguous: write {' or '.join(f'{one.axis}.{one.name}' for one in found)}")
    known = ", ".join(f"{each}.{name}" for each, names in settings.items() for name in names)
    raise ValueError(f"{key} cannot be changed while method {control.method} runs; these can: {known}")


def find_all(settings: Mapping[str, Any], control: EntropyControlConfig) -> dict[Place, Any]:
    """Find what each key of ``settings`` means.

    Raises:
        ValueError: as `find`; or two keys mean the same, or a value is null.
    """
    places: dict[Place, Any] = {}
    for key, value in settings.items():
        place = find(key, control)
        if place in places:
            raise ValueError(f"{key} is given twice: it is {place}")
        if value is None:
            raise ValueError(f"{key}=None is not allowed: give a value")
        places[place] = value
    return places


def apply(
    changes: Mapping[Place, Any],
    control: EntropyControlConfig,
    controllers: Mapping[str, Controller],
    states: Mapping[str, ControllerState],
) -> tuple[dict[str, Controller], dict[str, ControllerState]]:
    """Return controllers with the changed settings, and the states that fit them: all changes, or none.

    A new bound moves a coefficient beyond it at once; a schedule continues at its own value of the next step.

    Raises:
        ValueError: a value that the run's config could not have either, or a coefficient that the controller cannot
            have; names key, value and allowed range.
    """
    controllers, states = dict(controllers), dict(states)
    for axis in dict.fromkeys(place.axis for place in changes):
        settings = {place.name: value for place, value in changes.items() if place.axis == axis}
        coefficient = settings.pop(COEFFICIENT, None)
        controllers[axis] = controller_with(settings, control, axis, controllers[axis])
        states[axis] = controllers[axis].restore(states[axis])
        if coefficient is not None:
            states[axis] = _with_coefficient(coefficient, control, axis, controllers[axis], states[axis])
        control.check_coefficient(axis, states[axis].coefficient)
    return controllers, states


def _with_coefficient(
    value: Any, control: EntropyControlConfig, axis: str, controller: Controller, state: ControllerState
) -> ControllerState:
    key = str(Place(axis, COEFFICIENT))
    state = controller.restore(replace(state, coefficient=number(key, value, allowed="a number")))
    if state.coefficient != value:
        raise ValueError(
            f"{key}={value!r} is not allowed: with {controller} of "
            f"{ROOT}.{axis}.controller.name={control.controller_names[axis]} it becomes {state.coefficient!r}; change "
            "those settings, in the same command if need be"
        )
    return state
