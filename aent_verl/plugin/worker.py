"""Actor workers that run our engine and loss, and say so when asked."""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from tensordict import TensorDict
from torch import nn
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from aent_verl.core.sampled import Truncation
from aent_verl.platforms import cpu
from aent_verl.plugin import coefficients, engine, losses, measurements
from aent_verl.plugin.actor_config import EntropyControlActorConfig
from aent_verl.plugin.losses import entropy_control_loss
from aent_verl.plugin.minibatch_stats import StatsPass
from aent_verl.plugin.token_dump import TokenDump

engine.register()
losses.register()
cpu.register_engines()


class CpuReadyTrainingWorker(TrainingWorker):
    """verl's training worker, on the CPU platform with a process group that torch accepts."""

    def __init__(self, config: TrainingWorkerConfig) -> None:
        cpu.initialize_gloo()
        super().__init__(config)


class EntropyControlTrainingWorker(CpuReadyTrainingWorker):
    """A training worker with our engine in place of verl's language-model engine."""

    def __init__(self, config: TrainingWorkerConfig) -> None:
        super().__init__(dataclasses.replace(config, model_type=engine.MODEL_TYPE))

    def train_mini_batch(self, data: TensorDict) -> TensorDict | None:
        """Do as verl's; our metrics come from the first rank alone.

        All ranks return the same, the driver unpacks them all and reads those of the first.
        """
        output = super().train_mini_batch(data)
        if output is not None and self.engine.get_data_parallel_rank() != 0:
            metrics = tu.get(output, "metrics")
            for key in [key for key in metrics if key.startswith(measurements.OURS)]:
                del metrics[key]
        return output


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
        self.use_entropy_control(self.loss_fn.keywords["config"])

    def use_entropy_control(self, config: EntropyControlActorConfig) -> None:
        """Make the actor's engine and loss follow ``config``."""
        control = config.entropy_control
        assert control is not None
        actor_engine = self.actor.engine
        actor_engine.functional, actor_engine.kernel = control.functional, control.kernel
        actor_engine.stats_pass, actor_engine.needs_hidden_states = StatsPass(config), control.needs_hidden_states
        actor_engine.truncation = Truncation(self.config.rollout.top_k, self.config.rollout.top_p)
        tokenizer = self.actor.model_config.tokenizer
        # Of the ranks that share a sequence one writes it.
        writes = control.token_dump > 0 and actor_engine.is_mp_src_rank_with_outputs()
        dump = TokenDump(control, self.rank, tokenizer) if writes else None
        self.actor.set_loss_fn(partial(entropy_control_loss, config=config, dump=dump))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    async def entropy_control_report(self) -> dict[str, Any]:
        """Report what this rank runs: the driver's proof that the plug-in is active, and the text of the banner."""
        report = {"rank": self.rank, "pid": os.getpid(), "role": self.role}
        if self.actor is None:
            return report
        loss = self.actor.loss_fn
        control = loss.keywords["config"].entropy_control if loss.func is entropy_control_loss else None
        now: coefficients.Snapshot = await ray.get_actor(coefficients.actor_name()).snapshot.remote()
        return report | {
            "engine": type(self.actor.engine).__name__,
            "device": self.actor.device_name,
            "loss": getattr(loss.func, "__name__", str(loss.func)),
            "method": control and control.method,
            "functional": str(self.actor.engine.functional),
            "controller": str(now.controllers["bonus"]),
            "bonus": control and str(control.bonus),
            "advantages": control and str(control.advantages),
            "rewards": control and str(control.rewards),
            "coefficient": now.states["bonus"].coefficient,
            "advantages_coefficient": now.states["advantages"].coefficient,
        }


class DetachedEntropyControlWorker(EntropyControlWorker, DetachActorWorker):
    """The same for ``separate_async``: it keeps the weights of the step's first update, which are the old policy."""

    @property
    def copy_handler(self) -> Callable[..., Any]:
        """Save the weights as verl does, and so that the copy has memory of its own.

        verl's copy of weights that lie on the CPU already, those of our CPU platform or offloaded ones, is a view of
        them: the old policy would follow the current one, and every ratio would be 1.
        """
        save = super().copy_handler
        if self.config.actor.strategy != "fsdp2":
            return save

        def copy(module: nn.Module) -> Any:
            shards, layout = save(module)
            lies_there = {name: parameter.device.type == "cpu" for name, parameter in module.named_parameters()}
            return {
                name: (shard.clone() if lies_there[name] else shard, spec) for name, (shard, spec) in shards.items()
            }, layout

        return copy
