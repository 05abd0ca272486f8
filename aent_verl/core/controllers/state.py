"""The state of a controller, what every controller does with it, and the checks that they share."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_type_hints

Saved = TypeVar("Saved", bound="SavedState")
State = TypeVar("State", bound="ControllerState")


def is_finite(value: Any) -> bool:
    """Tell whether ``value`` is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Tell whether ``value`` is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def require(key: str, value: Any, ok: bool, allowed: str) -> None:
    """Raise ``ValueError`` that names key, value and range unless ``ok``."""
    if not ok:
        raise ValueError(f"{key}={value!r} is not allowed: must be {allowed}")


def require_finite(**values: Any) -> None:
    """Raise ``ValueError`` for the first value that is not a finite number."""
    for key, value in values.items():
        require(key, value, is_finite(value), "a finite number")


def require_whole(lowest: int, **values: Any) -> None:
    """Raise ``ValueError`` for the first value that is not an integer >= ``lowest``."""
    for key, value in values.items():
        require(key, value, is_whole(value) and value >= lowest, f"an integer >= {lowest}")


_CHECKS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    float: (is_finite, "a finite number"),
    float | None: (lambda value: value is None or is_finite(value), "a finite number or null"),
    int: (is_whole, "an integer"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
}


def field_types(cls: type) -> dict[str, Any]:
    """Return the annotations of the fields of the dataclass ``cls``; Any where one cannot be resolved at run time."""
    try:
        hints = get_type_hints(cls)
    except NameError:
        hints = {}
    return {field.name: hints.get(field.name, Any) for field in dataclasses.fields(cls)}


def checked_fields(cls: type, data: Any, *, name: str, optional: Collection[str] = ()) -> dict[str, Any]:
    """Check ``data``, read from JSON, as keyword arguments of the dataclass ``cls``.

    Fields are checked whose annotation is a number, true or false, or a number or null; others may be anything.

    Raises:
        ValueError: not a mapping, a field that is unknown, or missing and not ``optional``, or a value that is not what
            the field's annotation says; the message starts with ``name``.
    """
    kinds = field_types(cls)
    if not isinstance(data, dict):
        raise ValueError(f"{name} needs the fields {sorted(kinds)}, found {data!r}")
    unknown, missing = sorted(set(data) - set(kinds)), sorted(set(kinds) - set(optional) - set(data))
    if unknown or missing:
        raise ValueError(f"{name} has unknown fields {unknown} and lacks {missing}")
    for key, value in data.items():
        ok, allowed = _CHECKS.get(kinds[key], (lambda _: True, ""))
        if not ok(value):
            raise ValueError(f"{name} field {key}={value!r} is not {allowed}")
    return data


# What the state files of all releases have.
_FIRST_FIELDS = {"coefficient", "step", "entropy", "band_side", "at_bound", "nonfinite"}


@dataclass(frozen=True)
class SavedState:
    """What a checkpoint keeps: a frozen dataclass derives from this, all of whose fields are JSON types."""

    _kind: ClassVar[str] = "saved state"

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON types; floats survive JSON exactly."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[Saved], data: dict[str, Any]) -> Saved:
        """Rebuild a state from `to_dict`; fields that older state files lack take their defaults.

        A class from elsewhere that renames a field overrides this to read its older states.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type, or a number is not finite.
        """
        later = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}
        return cls(**checked_fields(cls, data, name=cls._kind, optional=later - _FIRST_FIELDS))


@dataclass(frozen=True)
class ControllerState(SavedState):
    """Everything that a controller needs to continue, and what it says about its last step. Entropies are in nats.

    A controller that remembers more derives a frozen dataclass from this one, all of whose fields are JSON types, and
    names it in `Controller.state_class`.

    Attributes:
        coefficient: the value in force for the next training step.
        step: the last training step seen, counted from 1; 0 before the first.
        entropy: the last finite entropy measured; None before the first.
        band_side: -1 below the band or target, 0 inside (or no band), +1 above, at the last finite measurement.
        at_bound: whether the coefficient stands on one of its bounds.
        nonfinite: how many measurements were NaN or infinite, and therefore ignored.
        bound_hits: how many updates by a finite entropy ended with the coefficient on one of its bounds.
        initial_entropy: measured before the first update of the model: AER's ``H_0``; None where it was not measured.
        entropy_mean: mean of all finite measurements so far; None before the first.
        measurements: their number.
    """

    coefficient: float
    step: int = 0
    entropy: float | None = None
    band_side: int = 0
    at_bound: bool = False
    nonfinite: int = 0
    bound_hits: int = 0
    initial_entropy: float | None = None
    entropy_mean: float | None = None
    measurements: int = 0
    _kind: ClassVar[str] = "controller state"

    @classmethod
    def from_dict(cls: type[State], data: dict[str, Any]) -> State:
        """Rebuild a state from `to_dict`, see `SavedState.from_dict`.

        Raises:
            ValueError: as there, or mean and number of the measurements contradict each other.
        """
        state = super().from_dict(data)
        if state.measurements < 0 or (state.measurements == 0) != (state.entropy_mean is None):
            raise ValueError(
                f"controller state has entropy_mean={state.entropy_mean!r} of measurements={state.measurements!r}"
            )
        return state


def record(state: ControllerState, *, entropy: float, step: int) -> ControllerState:
    """Enter a training step and its entropy, in nats; one that is not finite is only counted."""
    if not math.isfinite(entropy):
        return dataclasses.replace(state, step=step, nonfinite=state.nonfinite + 1)
    number = state.measurements + 1
    before = 0.0 if state.entropy_mean is None else state.entropy_mean
    return dataclasses.replace(
        state, step=step, entropy=entropy, entropy_mean=before + (entropy - before) / number, measurements=number
    )


@dataclass(frozen=True, kw_only=True)
class Controller(ABC):
    """A rule, with its hyper-parameters, that maps one `ControllerState` to the next.

    Attributes:
        needs_initial_entropy: whether the rule cannot start before `observe_initial`.
        state_class: what it remembers.
    """

    needs_initial_entropy: ClassVar[bool] = False
    state_class: ClassVar[type[ControllerState]] = ControllerState

    @abstractmethod
    def initial_state(self) -> ControllerState:
        """Return the state before the first step."""

    def observe_initial(self, state: ControllerState, *, entropy: float) -> ControllerState:
        """Record the entropy measured before the first update of the model, in nats; the first one recorded stays.

        Raises:
            ValueError: ``entropy`` is not finite.
        """
        require_finite(initial_entropy=entropy)
        if state.initial_entropy is not None:
            return state
        return dataclasses.replace(state, initial_entropy=entropy)

    @abstractmethod
    def restore(self, state: ControllerState) -> ControllerState:
        """Fit a saved state of this kind of controller to this controller's settings."""

    @abstractmethod
    def update(self, state: ControllerState, *, entropy: float, step: int) -> ControllerState:
        """Return the state after training step ``step``, counted from 1, whose entropy was ``entropy`` nats."""

    def metrics(self, state: ControllerState) -> dict[str, float]:
        """Return what else to log of the state in force during a step, by name."""
        return {}

    @property
    def knows_its_run(self) -> bool:
        """Whether `for_run` has nothing to fill in: without the run's lengths a schedule has no coefficient."""
        return True

    def for_run(self, *, total_steps: int, steps_per_epoch: int) -> "Controller":
        """Fill in the run's lengths where a schedule needs them and its settings leave them open."""
        return self
