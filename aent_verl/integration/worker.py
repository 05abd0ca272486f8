"""Actor workers that run our engine and loss, and say so when asked."""

import dataclasses
import os
from functools import partial
from typing import Any

import ray
from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from aent_verl.core.controllers import ControllerState
from aent_verl.integration import coefficient, engine, platform_cpu
from aent_verl.integration.loss import entropy_control_loss

engine.register()
platform_cpu.register_engines()


class CpuReadyTrainingWorker(TrainingWorker):
    """verl's training worker, on the CPU platform with a process group that torch accepts."""

    def __init__(self, config: TrainingWorkerConfig) -> None:
        platform_cpu.initialize_gloo()
        super().__init__(config)


class EntropyControlTrainingWorker(CpuReadyTrainingWorker):
    """A training worker with our engine in place of verl's language-model engine."""

    def __init__(self, config: TrainingWorkerConfig) -> None:
        super().__init__(dataclasses.replace(config, model_type=engine.MODEL_TYPE))


class EntropyControlWorker(ActorRolloutRefWorker):
    """verl's hybrid worker with entropy control in the actor; rollout and reference stay verl's own."""

    actor_worker_cls = EntropyControlTrainingWorker
    ref_worker_cls = CpuReadyTrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Build the models as verl does, then give the actor our loss and functional."""
        super().init_model()
        if self.actor is None:
            return
        config = self.loss_fn.keywords["config"]
        self.actor.engine.functional = config.entropy_control.functional
        self.actor.engine.kernel = config.entropy_control.kernel
        self.actor.set_loss_fn(partial(entropy_control_loss, config=config))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    async def entropy_control_report(self) -> dict[str, Any]:
        """What this rank really runs: the driver's proof that the plug-in is active, and the text of the banner."""
        if self.actor is None:
            return {"rank": self.rank, "pid": os.getpid(), "role": self.role}
        loss = self.actor.loss_fn
        control = loss.keywords["config"].entropy_control if loss.func is entropy_control_loss else None
        state: ControllerState = await ray.get_actor(coefficient.actor_name()).state.remote()
        return {
            "rank": self.rank,
            "pid": os.getpid(),
            "role": self.role,
            "engine": type(self.actor.engine).__name__,
            "device": self.actor.device_name,
            "loss": getattr(loss.func, "__name__", str(loss.func)),
            "method": control and control.method,
            "functional": str(self.actor.engine.functional),
            "controller": control and str(control.controller),
            "coefficient": state.coefficient,
        }
