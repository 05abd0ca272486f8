"""Controllers that answer the measured entropy. One that is not finite is only counted, and the coefficient stays."""

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from aent_verl.core.controllers.state import (
    Controller,
    ControllerState,
    State,
    record,
    require,
    require_finite,
    require_whole,
)


@dataclass(frozen=True, kw_only=True)
class _BoundedController(Controller):
    """A coefficient that starts at ``init`` and is moved by each finite entropy inside ``[min, max]``."""

    init: float
    min: float
    max: float

    def __post_init__(self) -> None:
        require_finite(init=self.init, min=self.min, max=self.max)
        require("max", self.max, self.max >= self.min, f">= min={self.min!r}")
        require("init", self.init, self.min <= self.init <= self.max, f"in [min, max] = [{self.min!r}, {self.max!r}]")

    def initial_state(self) -> ControllerState:
        """Return the state before the first step."""
        return self.state_class(coefficient=self.init, at_bound=self._at_bound(self.init))

    def restore(self, state: ControllerState) -> ControllerState:
        """Fit a saved state to this controller's settings: the coefficient is brought into ``[min, max]``."""
        coefficient = self._clip(state.coefficient)
        return dataclasses.replace(state, coefficient=coefficient, at_bound=self._at_bound(coefficient))

    def update(self, state: ControllerState, *, entropy: float, step: int) -> ControllerState:
        """One step of the rule above with ``entropy`` in nats; one that is not finite is only counted."""
        state = record(state, entropy=entropy, step=step)
        return self._react(state, entropy) if math.isfinite(entropy) else state

    @abstractmethod
    def _react(self, state: ControllerState, entropy: float) -> ControllerState:
        """Apply the rule: ``state`` already holds this step's number and its finite ``entropy``."""

    def _settle(self, state: State, coefficient: float, side: int) -> State:
        hit = self._at_bound(coefficient)
        return dataclasses.replace(
            state, coefficient=coefficient, band_side=side, at_bound=hit, bound_hits=state.bound_hits + hit
        )

    def _clip(self, coefficient: float) -> float:
        return min(max(coefficient, self.min), self.max)

    def _at_bound(self, coefficient: float) -> bool:
        return coefficient in (self.min, self.max)


@dataclass(frozen=True, kw_only=True)
class BandController(_BoundedController):
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
        super().__post_init__()
        require_finite(low=self.low, high=self.high, lr=self.lr, reg=self.reg)
        require("low", self.low, self.low >= 0, ">= 0 nats")
        require("high", self.high, self.high >= self.low, f">= low={self.low!r}")
        require("lr", self.lr, self.lr >= 0, ">= 0")
        require("reg", self.reg, self.reg >= 0, ">= 0")
        require_whole(0, warmup_steps=self.warmup_steps)

    def _react(self, state: ControllerState, entropy: float) -> ControllerState:
        excess = min(0.0, entropy - self.low) + max(0.0, entropy - self.high)
        coefficient = state.coefficient
        if state.step >= self.warmup_steps:
            pull = self.reg * (coefficient - self.init)
            coefficient = self._clip(coefficient - self.lr * (excess + pull))
        return self._settle(state, coefficient, (excess > 0) - (excess < 0))


@dataclass(frozen=True)
class StepToTargetState(ControllerState):
    """The state of `StepToTargetController`.

    Attributes:
        level: the coefficient before its gate.
    """

    level: float = field(kw_only=True)


@dataclass(frozen=True, kw_only=True)
class StepToTargetController(_BoundedController):
    """Skywork-OR1's controller (arXiv 2505.22312): steps of one size, and a bonus only while the entropy is low.

    ``level <- clip(level + step_size if H < target else level - step_size, min, max)``, and the coefficient in force is
    ``level`` if ``H < target``, else 0, with ``H`` the entropy of the step before. Until one was measured it is 0:
    nothing says yet that the entropy is low. ``at_bound`` and ``bound_hits`` of the state speak of ``level``.

    Attributes:
        init: level before the first update, inside ``[min, max]``.
        target: nats, >= 0.
        step_size: >= 0.
        min: lower bound of the level, >= 0.
        max: upper bound of the level.

    Raises:
        ValueError: a value outside its range; the message names key, value and range.
    """

    state_class: ClassVar[type[ControllerState]] = StepToTargetState

    init: float = 0.0
    target: float
    step_size: float
    min: float
    max: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(target=self.target, step_size=self.step_size)
        require("min", self.min, self.min >= 0, ">= 0")
        require("target", self.target, self.target >= 0, ">= 0 nats")
        require("step_size", self.step_size, self.step_size >= 0, ">= 0")

    def initial_state(self) -> ControllerState:
        """Return the state before the first step: the level is ``init``, the coefficient 0."""
        return StepToTargetState(coefficient=0.0, at_bound=self._at_bound(self.init), level=self.init)

    def restore(self, state: ControllerState) -> ControllerState:
        """Fit a saved state to this controller's settings: the level inside its bounds, gated by the last entropy.

        Raises:
            ValueError: the state is of another controller.
        """
        state = _with_level(state)
        level = self._clip(state.level)
        is_low = state.entropy is not None and state.entropy < self.target
        return dataclasses.replace(
            state, level=level, coefficient=level if is_low else 0.0, at_bound=self._at_bound(level)
        )

    def _react(self, state: ControllerState, entropy: float) -> ControllerState:
        state, is_low = _with_level(state), entropy < self.target
        level = self._clip(state.level + (self.step_size if is_low else -self.step_size))
        settled = self._settle(state, level, -1 if is_low else 1)
        return dataclasses.replace(settled, level=level, coefficient=level if is_low else 0.0)

    def metrics(self, state: ControllerState) -> dict[str, float]:
        """Return the coefficient before the gate."""
        return {"coefficient_before_gate": _with_level(state).level}


def _with_level(state: ControllerState) -> StepToTargetState:
    if not isinstance(state, StepToTargetState):
        raise ValueError("the controller state has no level: it is not one of a step_to_target controller")
    return state


@dataclass(frozen=True, kw_only=True)
class AnchoredTargetController(_BoundedController):
    """A coefficient that tracks a share of the initial entropy, as in AER (arXiv 2510.10959). Reconstructed.

    ``H* = tau * H_0`` and ``alpha <- clip(alpha + eta * (H* - H), min, max)``, with ``H_0`` the entropy measured before
    the first update of the model. Reconstructed from the paper's abstract and summaries of it; ``tau`` of about 0.4 is
    reported best.

    Attributes:
        init: coefficient before the first update, inside ``[min, max]``.
        tau: target as a share of ``H_0``, > 0.
        eta: step size, per nat, >= 0.
        min: lower bound of the coefficient.
        max: upper bound of the coefficient.

    Raises:
        ValueError: a value outside its range; the message names key, value and range.
    """

    needs_initial_entropy: ClassVar[bool] = True

    init: float = 0.0
    tau: float
    eta: float
    min: float = 0.0
    max: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(tau=self.tau, eta=self.eta)
        require("tau", self.tau, self.tau > 0, "> 0")
        require("eta", self.eta, self.eta >= 0, ">= 0")

    def restore(self, state: ControllerState) -> ControllerState:
        """Fit a saved state to this controller's settings: the coefficient is brought into ``[min, max]``.

        Raises:
            ValueError: the state has no initial entropy, and after a resume it cannot be measured any more.
        """
        _initial_entropy(state)
        return super().restore(state)

    def update(self, state: ControllerState, *, entropy: float, step: int) -> ControllerState:
        """One step of the rule above with ``entropy`` in nats; one that is not finite is only counted.

        Raises:
            ValueError: the state has no initial entropy: `observe_initial` must come first.
        """
        _initial_entropy(state)
        return super().update(state, entropy=entropy, step=step)

    def _react(self, state: ControllerState, entropy: float) -> ControllerState:
        missing = self.tau * _initial_entropy(state) - entropy
        return self._settle(state, self._clip(state.coefficient + self.eta * missing), (missing < 0) - (missing > 0))


def _initial_entropy(state: ControllerState) -> float:
    if state.initial_entropy is None:
        raise ValueError(
            "controller state field initial_entropy=None: observe_initial must come first, with the entropy measured "
            "before the first update of the model"
        )
    return state.initial_entropy


@dataclass(frozen=True, kw_only=True)
class DoublingController(Controller):
    """REPO-R's controller (arXiv 2603.11682): a coefficient of either sign that doubles, halves and changes sign.

    A positive coefficient raises the entropy, a negative one lowers it. With ``H < target`` a positive one doubles, up
    to ``max``, and a negative one is halved; one that would come nearer to 0 than ``min`` becomes ``+min``. With
    ``H >= target`` it is the reverse. Sources give the rule and ``init``; target, ``min`` and ``max`` are ours.

    Attributes:
        init: coefficient before the first update; its absolute value in ``[min, max]``.
        target: nats, >= 0.
        min: smallest absolute value, > 0.
        max: largest absolute value, >= ``min``.

    Raises:
        ValueError: a value outside its range; the message names key, value and range.
    """

    init: float
    target: float
    min: float
    max: float

    def __post_init__(self) -> None:
        require_finite(init=self.init, target=self.target, min=self.min, max=self.max)
        require("target", self.target, self.target >= 0, ">= 0 nats")
        require("min", self.min, self.min > 0, "> 0")
        require("max", self.max, self.max >= self.min, f">= min={self.min!r}")
        inside = self.min <= abs(self.init) <= self.max
        require("init", self.init, inside, f"in [{self.min!r}, {self.max!r}], or the same below 0")

    def initial_state(self) -> ControllerState:
        """Return the state before the first step."""
        return ControllerState(coefficient=self.init, at_bound=abs(self.init) == self.max)

    def restore(self, state: ControllerState) -> ControllerState:
        """Fit a saved state to this controller's settings: the absolute value is brought into ``[min, max]``."""
        size = min(max(abs(state.coefficient), self.min), self.max)
        coefficient = math.copysign(size, state.coefficient)
        return dataclasses.replace(state, coefficient=coefficient, at_bound=size == self.max)

    def update(self, state: ControllerState, *, entropy: float, step: int) -> ControllerState:
        """One step of the rule above with ``entropy`` in nats; one that is not finite is only counted."""
        state = record(state, entropy=entropy, step=step)
        if not math.isfinite(entropy):
            return state
        wanted = 1.0 if entropy < self.target else -1.0
        size = abs(state.coefficient)
        if state.coefficient * wanted > 0:
            coefficient = wanted * min(2 * size, self.max)
        else:
            coefficient = -wanted * size / 2 if size / 2 >= self.min else wanted * self.min
        hit = abs(coefficient) == self.max
        return dataclasses.replace(
            state, coefficient=coefficient, band_side=-int(wanted), at_bound=hit, bound_hits=state.bound_hits + hit
        )


@dataclass(frozen=True)
class EntropyGuidedState(ControllerState):
    """The state of `EntropyGuidedController`.

    Attributes:
        entropy_smoothed: the moving average; None before the first measurement.
    """

    entropy_smoothed: float | None = None


@dataclass(frozen=True, kw_only=True)
class EntropyGuidedController(_BoundedController):
    """The entropy-guided weight of positive advantages (PAR, arXiv 2511.05993): less of them while the entropy is low.

    ``mu <- clip(mu - step_size if H < target else mu + step_size, min, max)``. With ``smoothing`` the moving average
    ``s <- smoothing * s + (1 - smoothing) * H``, started by the first measurement, takes the place of ``H``; the
    sources smooth the reported entropy and do not say whether the controller's too, so it is off by default.

    Attributes:
        init: weight before the first update, inside ``[min, max]``; the paper's mu_0.
        target: nats, >= 0; the paper's delta.
        step_size: >= 0; the paper's D.
        min: lower bound of the weight, >= 0.
        max: upper bound of the weight, <= 1.
        smoothing: weight of the past in the moving average, in ``[0, 1)``.

    Raises:
        ValueError: a value outside its range; the message names key, value and range.
    """

    state_class: ClassVar[type[ControllerState]] = EntropyGuidedState

    init: float = 0.0
    target: float = 0.2
    step_size: float = 0.05
    min: float = 0.0
    max: float = 1.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(target=self.target, step_size=self.step_size, smoothing=self.smoothing)
        require("min", self.min, self.min >= 0, ">= 0")
        require("max", self.max, self.max <= 1, "<= 1")
        require("target", self.target, self.target >= 0, ">= 0 nats")
        require("step_size", self.step_size, self.step_size >= 0, ">= 0")
        require("smoothing", self.smoothing, 0 <= self.smoothing < 1, "in [0, 1)")

    def _react(self, state: ControllerState, entropy: float) -> ControllerState:
        assert isinstance(state, EntropyGuidedState)
        before = entropy if state.entropy_smoothed is None else state.entropy_smoothed
        smoothed = self.smoothing * before + (1 - self.smoothing) * entropy
        is_low = smoothed < self.target
        weight = self._clip(state.coefficient + (-self.step_size if is_low else self.step_size))
        settled = self._settle(state, weight, -1 if is_low else 1)
        return dataclasses.replace(settled, entropy_smoothed=smoothed)
