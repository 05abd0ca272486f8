"""The driver's part: ask for the coefficients, send them with the batch, measure, apply the controllers once."""

import dataclasses
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import ray
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.padding import response_from_nested

from aent_verl.core.controllers import Schedule
from aent_verl.core.diagnostics import EntropyChange
from aent_verl.methods.settings import EntropyControlConfig
from aent_verl.methods.step import StepValues
from aent_verl.platforms import cpu
from aent_verl.plugin import (
    coefficients,
    losses,
    measurements,
    micro_batch,
    rewards,
    samples,
    saved_state,
)
from aent_verl.plugin.actor_config import EntropyControlActorConfig
from aent_verl.plugin.coefficients import Snapshot
from aent_verl.plugin.engine import EntropyControlEngine
from aent_verl.plugin.guard import LINE, PlugInNotActiveError
from aent_verl.plugin.micro_batch import ACCURACY, ENTROPY
from aent_verl.plugin.minibatch_stats import StatsPass, initial_entropy
from aent_verl.plugin.worker import CpuReadyTrainingWorker, EntropyControlWorker
from aent_verl.runs import live_changes, worker_reports
from aent_verl.runs.checkpoints import step_folder
from aent_verl.runs.live_changes import Change

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

# How often to look whether all responses are there. verl's two seconds, twice a step, are most of a small model's step.
_CPU_POLL_SECONDS = 0.2


class EntropyControlMixin(PPOTrainer):
    """Entropy control for a v1 trainer; ``base_mode`` is verl's name of the trainer underneath.

    A training step is what lies between two updates of the rollouts' weights: one update of the actor, or with
    ``separate_async.parameter_sync_step`` several, each with a part of the step's batch. They share the coefficients,
    and the controllers move once after the last.
    """

    base_mode: str
    worker_class: type[EntropyControlWorker] = EntropyControlWorker

    def __init__(self, config: DictConfig) -> None:
        # verl compares the mode's name and looks its settings up by it: under ours it would take other branches.
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.base_mode
        self.use_entropy_control(omega_conf_to_dataclass(config.actor_rollout_ref.actor))
        self._entropy_change = EntropyChange()
        self._begin_step()
        super().__init__(config)

    def use_entropy_control(self, actor_config: EntropyControlActorConfig) -> None:
        """Follow these settings; the workers do the same.

        Raises:
            PlugInNotActiveError: there are none.
        """
        control: EntropyControlConfig | None = getattr(actor_config, "entropy_control", None)
        if control is None:
            raise PlugInNotActiveError(
                f"trainer.v1.trainer_mode=aent_{self.base_mode} has no method: the preset sets both. Type\n  {LINE}"
            )
        self.entropy_control = control
        self._needs_samples = StatsPass(actor_config).needs_samples or self.entropy_control.token_dump > 0

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()
        if cpu.is_selected():
            buffer.poll_interval = _CPU_POLL_SECONDS
        return buffer

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        # Only now is the length of the run known.
        self._total_steps = min(self.total_training_steps, self.steps_per_epoch * self.config.trainer.total_epochs)
        self.start_controllers()

    def start_controllers(self) -> None:
        """Start the controllers at their initial state, knowing the length of the run."""
        self._controllers = {
            axis: controller.for_run(total_steps=self._total_steps, steps_per_epoch=self.steps_per_epoch)
            for axis, controller in self.entropy_control.controllers.items()
        }
        self._coefficients = coefficients.start(self.entropy_control, self._controllers, self._about_run())
        self._changes: tuple[Change, ...] = ()
        self._rewards_state = self.entropy_control.rewards.initial_state()

    def _about_run(self) -> dict[str, Any]:
        """Describe the run for `aent-verl status`."""
        trainer, control = self.config.trainer, self.entropy_control
        return {
            "run": trainer.experiment_name,
            "project": trainer.project_name,
            "folder": OmegaConf.select(self.config, "run.dir") or trainer.default_local_dir,
            "node": socket.gethostname(),
            "trainer_mode": f"aent_{self.base_mode}",
            "method": control.method,
            "functional": str(control.functional),
            "total_steps": self._total_steps,
        }

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in self.role_worker_mapping:
            worker = CpuReadyTrainingWorker if role == Role.Critic else self.worker_class
            self.role_worker_mapping[role] = ray.remote(worker)

    def _setup(self) -> None:
        super()._setup()
        reports = self.actor_rollout_wg.entropy_control_report()
        check_reports(reports, self.entropy_control)
        folder = Path(self.config.trainer.default_local_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / worker_reports.FILE).write_text(json.dumps(reports, indent=2), encoding="utf-8")
        print(worker_reports.banner(reports), flush=True)

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, Any]) -> KVBatchMeta:
        """Do as verl's, and then apply the controllers to what all its updates of the actor measured."""
        self._begin_step()
        batch = super().step(metrics, timing_raw)
        # After verl has averaged the metrics of its updates, which would average ours by samples and by their names.
        if self._sent is not None:
            metrics |= self._finish_step(*self._sent)
        return batch

    def _begin_step(self) -> None:
        self._sent: tuple[StepValues, Snapshot] | None = None
        self._measured: list[dict[str, float]] = []
        self._of_rewards: list[dict[str, float]] = []
        self._samples_before = 0

    def _finish_step(self, sent: StepValues, before: Snapshot) -> dict[str, Any]:
        measured = measurements.of_step(measurements.pooled(self._measured), sent)
        entropies = {"bonus": measured["aent/entropy"], "advantages": measured["aent/entropy_full"]}
        after: Snapshot = ray.get(self._coefficients.update.remote(entropies, step=self.global_steps))
        measured |= rewards.of_step(self._of_rewards)
        return measured | self._about_controllers(before, after, measured)

    def _snapshot(self) -> Snapshot:
        now: Snapshot = ray.get(self._coefficients.snapshot.remote())
        self._note(now.changes)
        return now

    def _note(self, changes: tuple[Change, ...]) -> None:
        """Log what was changed since the last look, and keep the list for the plot."""
        if changes == self._changes:
            return
        for change in changes[len(self._changes) :]:
            logger.warning("changed by `aent-verl set`: %s", change)
        self._changes = changes
        live_changes.write(Path(self.config.trainer.default_local_dir), changes)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        control = self.entropy_control
        initial = control.needs_initial_entropy and self._snapshot().states["bonus"].initial_entropy is None
        if not (initial or control.shapes_rewards):
            return super()._compute_old_log_prob(batch, metrics)
        if initial and control.needs_accuracy:
            batch = self._add_sample_fields(batch)
        batch.extra_info[micro_batch.MEASURE] = True
        batch = super()._compute_old_log_prob(batch, metrics)
        batch.extra_info.pop(micro_batch.MEASURE, None)
        if not initial:
            return batch
        entropy = self._initial_entropy(batch)
        ray.get(self._coefficients.observe_initial.remote(entropy))
        logger.info("entropy before the first update: %g nats (%s)", entropy, self.entropy_control.functional)
        return batch

    def _initial_entropy(self, batch: KVBatchMeta) -> float:
        """Measure the entropy of the step's batch as the bonus aggregates it, or its token mean, in nats."""
        fields = [ENTROPY, "response_mask", *([ACCURACY] if self.entropy_control.needs_accuracy else [])]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        data[ENTROPY] = response_from_nested(data[ENTROPY], data["response_mask"])
        padded = data.select(ENTROPY, "response_mask").to_padded_tensor()
        actor = self.config.actor_rollout_ref.actor
        return initial_entropy(
            self.entropy_control,
            padded[ENTROPY],
            padded["response_mask"].bool(),
            accuracy=data.get(ACCURACY),
            loss_agg_mode=actor.loss_agg_mode,
            loss_scale_factor=actor.loss_scale_factor,
        )

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        shaping = self.entropy_control.rewards
        if not self.entropy_control.shapes_rewards:
            return super()._compute_advantage(batch, metrics)
        given, shaped, self._rewards_state, measured = rewards.shape(
            batch, shaping, self._rewards_state, self.tokenizer
        )
        self._of_rewards.append(measured)
        with rewards.replaced(batch, given, shaped):
            return super()._compute_advantage(batch, metrics)

    def _add_sample_fields(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Add the fields of each sample that the workers need to the batch."""
        fields = samples.fields_of(
            batch,
            # No index twice in a step, whatever the number of its updates.
            first_index=self._samples_before if self._needs_samples else None,
            accuracies=self.entropy_control.needs_accuracy,
        )
        # The metadata that comes back is fresh.
        extra_info = batch.extra_info
        batch = tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(batch))
        )
        batch.extra_info.update(extra_info)
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        if self._sent is None:
            now: Snapshot = ray.get(self._coefficients.begin.remote(self.global_steps))
            self._note(now.changes)
            self._sent = self._step_values(now), now
        if self._needs_samples or self.entropy_control.needs_accuracy:
            batch = self._add_sample_fields(batch)
        self._samples_before += len(batch)
        batch.extra_info[micro_batch.STEP] = self._sent[0]
        batch = super()._update_actor(batch, metrics)
        self._measured.append(measurements.taken(metrics))
        return batch

    def _step_values(self, now: Snapshot) -> StepValues:
        coefficient = {axis: now.coefficient(axis, self.global_steps) for axis in now.controllers}
        for axis, value in coefficient.items():
            self.entropy_control.check_coefficient(axis, value)
        return StepValues(
            step=self.global_steps,
            total_steps=self._total_steps,
            bonus_coefficient=coefficient["bonus"],
            advantages_coefficient=coefficient["advantages"],
            initial_entropy=now.states["bonus"].initial_entropy,
            entropy_mean=now.states["bonus"].entropy_mean,
        )

    def _about_controllers(self, before: Snapshot, after: Snapshot, measured: dict[str, float]) -> dict[str, Any]:
        old, new = before.states["bonus"], after.states["bonus"]
        if new.nonfinite > old.nonfinite:
            logger.warning(
                "step %d: the measured entropy is %r; it moves no coefficient, the next is %g (%d such steps so far)",
                self.global_steps,
                measured["aent/entropy"],
                new.coefficient,
                new.nonfinite,
            )
        self._entropy_change, change, estimate = self._entropy_change.update(
            entropy=measured["aent/entropy_full"], covariance=measured["aent/covariance"]
        )
        about = coefficients.metrics(before, after, self.global_steps) | {
            "aent/entropy_change": change,
            "aent/entropy_change_linear": estimate,
        }
        return {key: value for key, value in about.items() if value is not None}

    def _save_checkpoint(self) -> None:
        # Before verl's own files: its tracker names this folder only once it is complete.
        folder = step_folder(self.config.trainer.default_local_dir, self.global_steps)
        now = self._snapshot()
        saved_state.write(
            folder,
            control=self.entropy_control,
            states=now.states,
            changes=now.changes,
            change=self._entropy_change,
            rewards=self._rewards_state,
        )
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            self._take_up(())
            return
        if self.base_mode != "sync":
            self._clear_trained_responses()
        if self.entropy_control.restart_controller:
            self._restart_controllers()
            return
        trainer = self.config.trainer
        folder = step_folder(trainer.default_local_dir, self.global_steps)
        if trainer.resume_mode == "resume_path":
            folder = trainer.resume_from_path
        saved = saved_state.read(folder, control=self.entropy_control, controllers=self._controllers)
        for difference in saved.differences:
            logger.warning(difference)
        self._entropy_change, self._rewards_state = saved.change, saved.rewards
        self._restore(Snapshot(self.global_steps, saved.controllers, saved.states, saved.changes))
        logger.info("controllers resumed from %s: %s", folder, saved.states)

    def _restore(self, now: Snapshot) -> None:
        ray.get(self._coefficients.restore.remote(now))
        self._take_up(now.changes)

    def _take_up(self, changes: tuple[Change, ...]) -> None:
        """Start with these changes; name those of an earlier start that are not among them."""
        folder = Path(self.config.trainer.default_local_dir)
        if lost := [change for change in live_changes.read(folder) if change not in changes]:
            for change in lost:
                logger.warning("not in force, for this start does not continue from a step that had it: %s", change)
            live_changes.write(folder, changes)
        self._changes = changes

    def _clear_trained_responses(self) -> None:
        """Drop the responses of the step that the checkpoint had just trained.

        verl saves its queue before it clears them. Their prompts are gone, so nobody would ever train or clear them,
        and each later checkpoint would save them again.
        """
        items = (tq.kv_list("train") or {}).get("train", {})
        prompts = {key for key, tag in items.items() if tag.get("is_prompt", False)}
        orphans = [key for key in items if key not in prompts and samples.uid_of(key) not in prompts]
        if orphans:
            tq.kv_clear(keys=orphans, partition_id="train")
            logger.info("%d responses of step %d are trained already, and cleared", len(orphans), self.global_steps)

    def _restart_controllers(self) -> None:
        """Restart the controllers in the middle of a run: what depends on the step alone continues from it."""
        done = self.global_steps
        logger.warning("resuming at step %d with the controllers at their initial state", done)
        if self.entropy_control.needs_initial_entropy:
            logger.warning("the initial entropy is then measured before step %d, not before step 1", done + 1)
        states = {}
        for axis, controller in self._controllers.items():
            fresh = dataclasses.replace(controller.initial_state(), step=done)
            states[axis] = controller.restore(fresh) if isinstance(controller, Schedule) else fresh
        self._restore(Snapshot(done, self._controllers, states))


def check_reports(reports: list[dict[str, Any]], expected: EntropyControlConfig) -> None:
    """Stop unless every actor rank runs our engine and loss with the settings that the driver has.

    Raises:
        PlugInNotActiveError: names rank, what it should run and what it runs.
    """
    actors = [actor for actor in reports if "engine" in actor]
    if not actors:
        raise PlugInNotActiveError(f"no worker reports an actor: {reports}")
    wanted = {
        "engine": EntropyControlEngine.__name__,
        "loss": losses.entropy_control_loss.__name__,
        "method": expected.method,
        "functional": str(expected.functional),
        "bonus": str(expected.bonus),
        "advantages": str(expected.advantages),
        "rewards": str(expected.rewards),
    }
    for actor in actors:
        for key, value in wanted.items():
            if actor.get(key) != value:
                raise PlugInNotActiveError(
                    f"rank {actor.get('rank')} reports {key}={actor.get(key)!r}, the driver expects {value!r}: "
                    "is the same version of aent_verl installed on every node?"
                )
