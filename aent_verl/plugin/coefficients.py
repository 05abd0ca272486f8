"""The controllers as a named Ray actor: the one shared state of the run, which any node reads and may change."""

import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import ray

from aent_verl.core.controllers import Controller, ControllerState, Schedule
from aent_verl.methods import live_changes
from aent_verl.methods.settings import EntropyControlConfig
from aent_verl.runs.live_changes import ACTOR_PREFIX, Change

logger = logging.getLogger(__name__)

States = dict[str, ControllerState]

# Steps whose measurements the actor keeps, for curves.
HISTORY = 240


@dataclass(frozen=True)
class Snapshot:
    """What is in force.

    Attributes:
        step: the last training step whose entropy the controllers have seen; 0 before the first.
        controllers: by axis.
        states: by axis; their ``coefficient`` is the one of the next training step.
        changes: what was changed while the run trained.
    """

    step: int
    controllers: dict[str, Controller]
    states: States
    changes: tuple[Change, ...] = ()

    def coefficient(self, axis: str, step: int) -> float:
        """Return the coefficient of ``step``; a schedule continues through steps without an update of the actor."""
        controller = self.controllers[axis]
        if isinstance(controller, Schedule):
            return controller.coefficient_at(step)
        return self.states[axis].coefficient

    def changed(
        self, values: Mapping[live_changes.Place, Any], control: EntropyControlConfig, *, by: str, at: str
    ) -> "Snapshot":
        """Return what is in force once these values are; those that are in force already change nothing.

        Raises:
            ValueError: a value is not allowed, see `methods.live_changes.apply`.
        """
        controllers, states = live_changes.apply(values, control, self.controllers, self.states)
        old = {place: place.value(self.controllers, self.states) for place in values}
        new = tuple(
            Change(self.step + 1, str(place), old[place], value, by, at)
            for place, value in values.items()
            if value != old[place]
        )
        return Snapshot(self.step, controllers, states, self.changes + new)


class Coefficients:
    """Holds each axis's controller and its state; every process that asks sees the same values.

    It runs as a Ray actor, which serves one call at a time, so that a read never meets half an update. A training step
    is open from `begin` to `update`; what is changed meanwhile comes into force after its update, so that one step has
    one coefficient and one set of settings.

    Args:
        control: the settings of the run.
        controllers: by axis, those of ``control`` or of the same kinds.
        about: what `status` says of the run beside the controllers, in JSON types.
    """

    def __init__(
        self,
        control: EntropyControlConfig,
        controllers: Mapping[str, Controller],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._control, self._about = control, dict(about or {})
        states = {axis: controller.initial_state() for axis, controller in controllers.items()}
        self._now = Snapshot(0, dict(controllers), states)
        self._open: int | None = None
        self._begun = False
        self._waiting: list[Callable[[Snapshot], Snapshot]] = []
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._seen = time.monotonic()

    def snapshot(self) -> Snapshot:
        """Return what is in force."""
        return self._now

    def observe_initial(self, entropy: float) -> None:
        """Tell all controllers the entropy before the first update, in nats."""
        states = {
            axis: controller.observe_initial(self._now.states[axis], entropy=entropy)
            for axis, controller in self._now.controllers.items()
        }
        self._now = replace(self._now, states=states)

    def begin(self, step: int) -> Snapshot:
        """Open a training step and return what is in force during it; asked again, the same.

        Raises:
            ValueError: out of order: the controllers have seen this step, or another one is open.
        """
        if self._open not in (None, step) or step <= self._now.step:
            raise ValueError(
                f"training step {step} cannot begin: the controllers have seen step {self._now.step}, and "
                f"{'no step' if self._open is None else f'step {self._open}'} is open"
            )
        self._open, self._begun = step, True
        return self._now

    def update(self, entropies: Mapping[str, float], *, step: int) -> Snapshot:
        """Apply each controller once, with its entropy of the step in nats, and close the step.

        A call that is repeated, as by a retry, changes nothing.

        Raises:
            ValueError: out of order: the step is not the open one, nor the last one closed.
        """
        if self._open is None and step == self._now.step:
            return self._now
        if step != self._open:
            raise ValueError(
                f"an update of training step {step} is out of order: the controllers have seen step {self._now.step}, "
                f"and {'no step' if self._open is None else f'step {self._open}'} is open"
            )
        before = self._now
        states = {
            axis: controller.update(before.states[axis], entropy=entropies[axis], step=step)
            for axis, controller in before.controllers.items()
        }
        self._now = replace(self._now, step=step, states=states)
        self._open, self._seen = None, time.monotonic()
        self._history.append(
            {"step": step, "time": time.time()}
            | {axis: {"coefficient": before.coefficient(axis, step), "entropy": entropies[axis]} for axis in states}
        )
        for waiting in self._waiting:
            try:
                self._now = waiting(self._now)
            except ValueError as error:  # it was allowed in the state before; a training must not end here
                logger.warning("a change that was asked for during step %d is dropped: %s", step, error)
        self._waiting.clear()
        return self._now

    def restore(self, saved: Snapshot) -> None:
        """Continue from a checkpoint."""
        self._now = saved

    def change(self, settings: Mapping[str, Any], *, by: str) -> dict[str, Any]:
        """Change settings of the controllers, or coefficients, from the next training step on: all of them, or none.

        Args:
            settings: values by key, see `methods.live_changes.find`.
            by: who asks.

        Returns:
            ``step``: the first step that they are in force for; ``changes``: sentences on what changes then;
            ``warnings``: sentences on what has no effect.

        Raises:
            ValueError: not allowed in this run or not yet, an unknown key, a value outside its range.
        """
        if not self._control.live_changes:
            raise ValueError("this run was started with entropy_control.live_changes=false: restart it to change it")
        if not self._begun:
            raise ValueError("this run has not begun its first step: try again then, or set it on its command line")
        places = live_changes.find_all(settings, self._control)
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        # What is in force when this is: after the open step, and what was asked for before.
        before = self._now if self._open is None else replace(self._now, step=self._open)
        for waiting in self._waiting:
            before = waiting(before)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            after = before.changed(places, self._control, by=by, at=at)
        if self._open is None:
            self._now = after
        else:
            self._waiting.append(lambda snapshot: snapshot.changed(places, self._control, by=by, at=at))
        return {
            "step": before.step + 1,
            "changes": [str(change) for change in after.changes[len(before.changes) :]],
            "warnings": [str(one.message) for one in caught],
        }

    def status(self) -> dict[str, Any]:
        """Describe the run in JSON types: the settings and states in force, and the last steps."""
        now = self._now
        names = self._control.controller_names
        return self._about | {
            "step": now.step,
            "seconds_since_step": time.monotonic() - self._seen,
            "begun": self._begun,
            "axes": {
                axis: {
                    "controller": names[axis],
                    "settings": dict(vars(now.controllers[axis])),
                    "state": state.to_dict(),
                }
                for axis, state in now.states.items()
                if axis in live_changes.acting(self._control)
            },
            "history": list(self._history),
            "changes": [change.to_dict() for change in now.changes],
        }


def metrics(before: Snapshot, after: Snapshot, step: int) -> dict[str, float | None]:
    """Report a training step: what was in force during it, and what its entropy has moved; None where there is none."""
    old, new = before.states["bonus"], after.states["bonus"]
    own: dict[str, float | None] = {}
    for axis, controller in before.controllers.items():
        prefix = "aent/" if axis == "bonus" else f"aent/{axis}_"
        own |= {prefix + name: value for name, value in controller.metrics(before.states[axis]).items()}
    return own | {
        "aent/coefficient": before.coefficient("bonus", step),
        "aent/coefficient_next": new.coefficient,
        "aent/coefficient_at_bound": float(new.at_bound),
        "aent/bound_hits": new.bound_hits,
        "aent/band_side": new.band_side,
        "aent/nonfinite_steps": new.nonfinite,
        "aent/advantages_coefficient": before.coefficient("advantages", step),
        "aent/initial_entropy": new.initial_entropy,
        "aent/entropy_mean": old.entropy_mean,
        "aent/live_changes": len(before.changes),
    }


def actor_name() -> str:
    """Name this job's actor; the name holds the job's id, so that jobs may share a Ray namespace."""
    return f"{ACTOR_PREFIX}{ray.get_runtime_context().get_job_id()}"


def start(
    control: EntropyControlConfig, controllers: Mapping[str, Controller], about: Mapping[str, Any]
) -> ray.actor.ActorHandle:
    """Start the actor of this job; it takes no CPU slot, and ends with the driver that holds the handle."""
    job = {"job": ray.get_runtime_context().get_job_id()}
    return (
        ray.remote(Coefficients).options(name=actor_name(), num_cpus=0).remote(control, controllers, job | dict(about))
    )
