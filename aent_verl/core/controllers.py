"""Controllers: how a coefficient moves from one training step to the next. Frozen state, pure update.

A controller holds hyper-parameters and is itself immutable; what changes lives in a `ControllerState` that
``update(state, entropy=H, step=k)`` maps to the next one. Steps are counted from 1.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ControllerState:
    """Everything that a controller needs to go on, and what it says about its last step.

    Attributes:
        coefficient: the value in force for the next training step.
        step: the last training step seen, counted from 1; 0 before the first.
        entropy: the last finite entropy measured, in nats; None before the first.
        band_side: -1 below the band, 0 inside (or no band), +1 above, at the last finite measurement.
        at_bound: whether the coefficient stands on one of its bounds.
        nonfinite: how many measurements were NaN or infinite, and therefore ignored.
    """

    coefficient: float
    step: int = 0
    entropy: float | None = None
    band_side: int = 0
    at_bound: bool = False
    nonfinite: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON types; floats survive JSON exactly."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ControllerState":
        """Rebuild a state from `to_dict`.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type, or a number is not finite.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, dict) or set(data) != names:
            found = sorted(data) if isinstance(data, dict) else data
            raise ValueError(f"controller state needs exactly the fields {sorted(names)}, found {found!r}")
        if not _is_finite(data["coefficient"]) or not (data["entropy"] is None or _is_finite(data["entropy"])):
            raise ValueError(f"controller state holds a number that is not finite: {data!r}")
        for name in ("step", "band_side", "nonfinite"):
            if not isinstance(data[name], int) or isinstance(data[name], bool):
                raise ValueError(f"controller state field {name}={data[name]!r} is not an integer")
        if not isinstance(data["at_bound"], bool):
            raise ValueError(f"controller state field at_bound={data['at_bound']!r} is not true or false")
        return cls(**data)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(key: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{key}={value!r} is not allowed: must be {allowed}")


def _require_finite(**values: Any) -> None:
    for key, value in values.items():
        _require(key, value, _is_finite(value), "a finite number")


@dataclass(frozen=True, kw_only=True)
class ConstantController:
    """A coefficient that never moves: the plain entropy bonus; ``init=0`` is no bonus at all.

    Raises:
        ValueError: ``init`` is not a finite number.
    """

    init: float

    def __post_init__(self) -> None:
        _require_finite(init=self.init)

    def initial_state(self) -> ControllerState:
        """State before the first step."""
        return ControllerState(coefficient=self.init)

    def observe_initial(self, state: ControllerState, *, entropy: float) -> ControllerState:
        """An entropy measured before the first update; not used here."""
        return state

    def restore(self, state: ControllerState) -> ControllerState:
        """A saved state under this controller's settings: the coefficient is ``init``, whatever it was."""
        return dataclasses.replace(state, coefficient=self.init)

    def update(self, state: ControllerState, *, entropy: float, step: int) -> ControllerState:
        """Record the step; the coefficient stays, even where the entropy (nats) is NaN."""
        return _record(state, entropy=entropy, step=step)


@dataclass(frozen=True, kw_only=True)
class BandController:
    """AEnt's controller (arXiv 2509.03493): keep the entropy inside ``[low, high]`` nats.

    From step ``warmup_steps`` on, with ``H`` the step's entropy,
    ``lambda <- clip(lambda - lr * (min(0, H - low) + max(0, H - high) + reg * (lambda - init)), min, max)``.
    Public implementations differ by one in the warm-up; here it is ``step >= warmup_steps``, steps counted from 1.

    Attributes:
        init: coefficient before the first update, inside ``[min, max]``.
        low: lower end of the band, nats, >= 0.
        high: upper end of the band, nats, >= ``low``.
        lr: step size, >= 0.
        warmup_steps: updates start at this training step; >= 0.
        min: lower bound of the coefficient.
        max: upper bound of the coefficient.
        reg: pull towards ``init``, >= 0.

    Raises:
        ValueError: a value outside its range; the message names key, value and range.
    """

    init: float
    low: float
    high: float
    lr: float
    warmup_steps: int
    min: float
    max: float
    reg: float = 0.0

    def __post_init__(self) -> None:
        _require_finite(init=self.init, low=self.low, high=self.high, lr=self.lr)
        _require_finite(min=self.min, max=self.max, reg=self.reg)
        _require("low", self.low, self.low >= 0, ">= 0 nats")
        _require("high", self.high, self.high >= self.low, f">= low={self.low!r}")
        _require("lr", self.lr, self.lr >= 0, ">= 0")
        _require("reg", self.reg, self.reg >= 0, ">= 0")
        whole = isinstance(self.warmup_steps, int) and not isinstance(self.warmup_steps, bool)
        _require("warmup_steps", self.warmup_steps, whole and self.warmup_steps >= 0, "an integer >= 0")
        _require("max", self.max, self.max >= self.min, f">= min={self.min!r}")
        _require("init", self.init, self.min <= self.init <= self.max, f"in [min, max] = [{self.min!r}, {self.max!r}]")

    def initial_state(self) -> ControllerState:
        """State before the first step."""
        return ControllerState(coefficient=self.init, at_bound=self._at_bound(self.init))

    def observe_initial(self, state: ControllerState, *, entropy: float) -> ControllerState:
        """An entropy measured before the first update; not used here."""
        return state

    def restore(self, state: ControllerState) -> ControllerState:
        """A saved state under this controller's settings: the coefficient is brought into ``[min, max]``."""
        coefficient = min(max(state.coefficient, self.min), self.max)
        return dataclasses.replace(state, coefficient=coefficient, at_bound=self._at_bound(coefficient))

    def update(self, state: ControllerState, *, entropy: float, step: int) -> ControllerState:
        """One step of the rule above with ``entropy`` in nats; one that is not finite is only counted."""
        state = _record(state, entropy=entropy, step=step)
        if not math.isfinite(entropy):
            return state
        excess = min(0.0, entropy - self.low) + max(0.0, entropy - self.high)
        coefficient = state.coefficient
        if step >= self.warmup_steps:
            pull = self.reg * (coefficient - self.init)
            coefficient = min(max(coefficient - self.lr * (excess + pull), self.min), self.max)
        side = (excess > 0) - (excess < 0)
        return dataclasses.replace(state, coefficient=coefficient, band_side=side, at_bound=self._at_bound(coefficient))

    def _at_bound(self, coefficient: float) -> bool:
        return coefficient in (self.min, self.max)


Controller = ConstantController | BandController


def _record(state: ControllerState, *, entropy: float, step: int) -> ControllerState:
    if not math.isfinite(entropy):
        return dataclasses.replace(state, step=step, nonfinite=state.nonfinite + 1)
    return dataclasses.replace(state, step=step, entropy=entropy)
