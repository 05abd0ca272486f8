"""Controllers that follow the step alone. They record the entropy, and move even where it is not finite."""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass

from aent_verl.core.controllers.state import (
    Controller,
    ControllerState,
    record,
    require_finite,
    require_whole,
)


@dataclass(frozen=True, kw_only=True)
class Schedule(Controller):
    """A coefficient that is a function of the training step, without bounds."""

    @abstractmethod
    def coefficient_at(self, step: int) -> float:
        """Return the coefficient in force at training step ``step``, counted from 1."""

    def initial_state(self) -> ControllerState:
        """Return the state before the first step."""
        return self.state_class(coefficient=self.coefficient_at(1))

    def restore(self, state: ControllerState) -> ControllerState:
        """Fit a saved state to this controller's settings: the next step's coefficient is theirs, whatever it was."""
        return dataclasses.replace(state, coefficient=self.coefficient_at(state.step + 1))

    def update(self, state: ControllerState, *, entropy: float, step: int) -> ControllerState:
        """Record the step and its entropy (nats; counted where not finite) and move on to the next step."""
        return dataclasses.replace(record(state, entropy=entropy, step=step), coefficient=self.coefficient_at(step + 1))


@dataclass(frozen=True, kw_only=True)
class ConstantController(Schedule):
    """A coefficient that never moves: the plain entropy bonus; ``init=0`` means no bonus at all.

    Raises:
        ValueError: ``init`` is not a finite number.
    """

    init: float

    def __post_init__(self) -> None:
        require_finite(init=self.init)

    def coefficient_at(self, step: int) -> float:
        """Return ``init``, at every step."""
        return self.init


@dataclass(frozen=True, kw_only=True)
class _RunSchedule(Schedule):
    """A schedule over the ``K = total_steps`` training steps of a run."""

    total_steps: int | None = None

    def __post_init__(self) -> None:
        if self.total_steps is not None:
            require_whole(1, total_steps=self.total_steps)

    @property
    def knows_its_run(self) -> bool:
        """Whether all lengths are set."""
        return self.total_steps is not None

    def for_run(self, *, total_steps: int, steps_per_epoch: int) -> Controller:
        """Return this schedule for a run of that length; a length among its settings stays.

        Raises:
            ValueError: a length that is needed is not an integer >= 1.
        """
        return self if self.total_steps is not None else dataclasses.replace(self, total_steps=total_steps)


def _known(key: str, length: int | None) -> int:
    if length is None:
        raise ValueError(f"{key}=None is not allowed: must be an integer >= 1; for_run sets it from the run's length")
    return length


@dataclass(frozen=True, kw_only=True)
class LinearDecayController(_RunSchedule):
    """A straight line from ``init`` at the first step to ``final`` at the last.

    At step k of K: ``init + (final - init) * (k - 1) / (K - 1)``, ``final`` beyond K; a run of one step has ``init``.

    Attributes:
        init: coefficient at step 1.
        final: coefficient at step ``total_steps``.
        total_steps: K >= 1; None: `for_run` sets it.

    Raises:
        ValueError: a value outside its range, or a length that is still None when a coefficient is asked for.
    """

    init: float
    final: float
    total_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(init=self.init, final=self.final)

    def coefficient_at(self, step: int) -> float:
        """Evaluate the line above."""
        total = _known("total_steps", self.total_steps)
        if step == 1:
            return self.init
        if step >= total:
            return self.final
        return self.init + (self.final - self.init) * (step - 1) / (total - 1)


@dataclass(frozen=True, kw_only=True)
class StageController(_RunSchedule):
    """PAR's stage weight (arXiv 2511.05993): no positive advantages in the first half of training, then linear to all.

    At step k of K, with ``f = (k - 1) / (K - 1)``: ``mu = max(0, 2 f - 1)``; 1 at the last step and beyond.

    Attributes:
        total_steps: K >= 1; None: `for_run` sets it.

    Raises:
        ValueError: a length that is not an integer >= 1, or that is still None when a coefficient is asked for.
    """

    def coefficient_at(self, step: int) -> float:
        """Evaluate the weight above, in [0, 1]."""
        total = _known("total_steps", self.total_steps)
        if step >= total:
            return 1.0
        return max(0, 2 * (step - 1) - (total - 1)) / (total - 1)


@dataclass(frozen=True, kw_only=True)
class EpochController(_RunSchedule):
    """PAR's epoch weight (arXiv 2511.05993): no positive advantages in the first epoch, all in the last.

    In epoch e of E: ``mu = (e - 1) / (E - 1)``, with ``e = (k - 1) // steps_per_epoch + 1`` at step k and
    ``E = ceil(total_steps / steps_per_epoch)``; 1 beyond. A run of one epoch has 1.

    Attributes:
        total_steps: >= 1; None: `for_run` sets it.
        steps_per_epoch: >= 1; None: `for_run` sets it.

    Raises:
        ValueError: a length that is not an integer >= 1, or that is still None when a coefficient is asked for.
    """

    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_per_epoch is not None:
            require_whole(1, steps_per_epoch=self.steps_per_epoch)

    @property
    def knows_its_run(self) -> bool:
        """Whether all lengths are set."""
        return self.total_steps is not None and self.steps_per_epoch is not None

    def for_run(self, *, total_steps: int, steps_per_epoch: int) -> Controller:
        """Return this schedule for a run of those lengths; a length among its settings stays.

        Raises:
            ValueError: a length that is needed is not an integer >= 1.
        """
        return dataclasses.replace(
            self,
            total_steps=total_steps if self.total_steps is None else self.total_steps,
            steps_per_epoch=steps_per_epoch if self.steps_per_epoch is None else self.steps_per_epoch,
        )

    def coefficient_at(self, step: int) -> float:
        """Evaluate the weight above, in [0, 1]."""
        per_epoch = _known("steps_per_epoch", self.steps_per_epoch)
        epochs = -(-_known("total_steps", self.total_steps) // per_epoch)
        past = (step - 1) // per_epoch
        return past / (epochs - 1) if past < epochs - 1 else 1.0
