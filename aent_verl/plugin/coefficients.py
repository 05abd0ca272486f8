"""The controllers as a named Ray actor: the one shared state of the run."""

from collections.abc import Mapping

import ray

from aent_verl.core.controllers import Controller, ControllerState

States = dict[str, ControllerState]


class Coefficients:
    """Holds each axis's controller and its state; every process that asks sees the same values.

    It runs as a Ray actor, which serves one call at a time, so that a read never meets half an update.
    """

    def __init__(self, controllers: Mapping[str, Controller]) -> None:
        self._controllers = dict(controllers)
        self._states = {axis: controller.initial_state() for axis, controller in self._controllers.items()}

    def states(self) -> States:
        """Return the current states; their ``coefficient`` is the one in force for the next training step."""
        return self._states

    def observe_initial(self, entropy: float) -> States:
        """Tell all controllers the entropy before the first update, in nats."""
        self._states = {
            axis: controller.observe_initial(self._states[axis], entropy=entropy)
            for axis, controller in self._controllers.items()
        }
        return self._states

    def update(self, entropies: Mapping[str, float], *, step: int) -> States:
        """Apply each controller once, with its entropy of the step in nats, and return the new states."""
        self._states = {
            axis: controller.update(self._states[axis], entropy=entropies[axis], step=step)
            for axis, controller in self._controllers.items()
        }
        return self._states

    def restore(self, states: States) -> None:
        """Continue from saved states."""
        self._states = states


def actor_name() -> str:
    """Name this job's actor; the name holds the job's id, so that jobs may share a Ray namespace."""
    return f"aent_verl_coefficient_{ray.get_runtime_context().get_job_id()}"


def start(controllers: Mapping[str, Controller]) -> "ray.actor.ActorHandle":
    """Start the actor of this job; it takes no CPU slot, and ends with the driver that holds the handle."""
    return ray.remote(Coefficients).options(name=actor_name(), num_cpus=0).remote(controllers)
