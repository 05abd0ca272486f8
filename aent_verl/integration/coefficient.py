"""The controller as a named Ray actor: the one shared state of the run."""

import ray

from aent_verl.core.controllers import Controller, ControllerState


class Coefficient:
    """Holds a controller and its state; every process that asks sees the same value.

    It runs as a Ray actor, which serves one call at a time, so that a read never meets half an update.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._state = controller.initial_state()

    def state(self) -> ControllerState:
        """The current state; its ``coefficient`` is the one in force for the next training step."""
        return self._state

    def update(self, *, entropy: float, step: int) -> ControllerState:
        """Apply the controller once, with the step's entropy in nats, and return the new state."""
        self._state = self._controller.update(self._state, entropy=entropy, step=step)
        return self._state

    def restore(self, state: ControllerState) -> None:
        """Go on from a saved state."""
        self._state = state


def actor_name() -> str:
    """Name under which this job's actor is found; it holds the job's id, so that jobs may share a Ray namespace."""
    return f"aent_verl_coefficient_{ray.get_runtime_context().get_job_id()}"


def start(controller: Controller) -> "ray.actor.ActorHandle":
    """Start the actor of this job; it takes no CPU slot, and ends with the driver that holds the handle."""
    return ray.remote(Coefficient).options(name=actor_name(), num_cpus=0).remote(controller)
