"""The driver's part: ask for the coefficient, send it with the batch, measure the step, move the controller once."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, open_dict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass

from aent_verl.core.controllers import ControllerState
from aent_verl.integration import coefficient, loss, report, state_file
from aent_verl.integration.config import EntropyControlConfig
from aent_verl.integration.engine import EntropyControlEngine
from aent_verl.integration.worker import CpuReadyTrainingWorker, EntropyControlWorker

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


class PlugInNotActiveError(RuntimeError):
    """A worker does not run our code; going on would train without entropy control."""


class EntropyControlMixin(PPOTrainer):
    """Entropy control for a v1 trainer; ``base_mode`` is verl's name of the trainer underneath."""

    base_mode: str

    def __init__(self, config: DictConfig) -> None:
        # verl compares the mode's name and looks its settings up by it: under ours it would take other branches.
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.base_mode
        self.entropy_control: EntropyControlConfig = omega_conf_to_dataclass(
            config.actor_rollout_ref.actor
        ).entropy_control
        self._coefficient = coefficient.start(self.entropy_control.controller)
        super().__init__(config)
        if self.parameter_sync_step != 1:
            raise ValueError(
                f"trainer.v1.{self.base_mode}.parameter_sync_step={self.parameter_sync_step} is not allowed with "
                "entropy_control: must be 1, because the controller moves once per training step"
            )

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in self.role_worker_mapping:
            worker = CpuReadyTrainingWorker if role == Role.Critic else EntropyControlWorker
            self.role_worker_mapping[role] = ray.remote(worker)

    def _setup(self) -> None:
        super()._setup()
        reports = self.actor_rollout_wg.entropy_control_report()
        check_reports(reports, self.entropy_control)
        folder = Path(self.config.trainer.default_local_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / report.FILE).write_text(json.dumps(reports, indent=2), encoding="utf-8")
        print(report.banner(reports), flush=True)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        before: ControllerState = ray.get(self._coefficient.state.remote())
        batch.extra_info[loss.COEFFICIENT] = before.coefficient
        batch = super()._update_actor(batch, metrics)
        measured = step_means(metrics, sent=before.coefficient)
        after: ControllerState = ray.get(
            self._coefficient.update.remote(entropy=measured["aent/entropy"], step=self.global_steps)
        )
        if after.nonfinite > before.nonfinite:
            logger.warning(
                "step %d: the measured entropy is %r; the coefficient stays at %g (%d such steps so far)",
                self.global_steps,
                measured["aent/entropy"],
                after.coefficient,
                after.nonfinite,
            )
        metrics |= measured | {
            "aent/coefficient": before.coefficient,
            "aent/coefficient_next": after.coefficient,
            "aent/coefficient_at_bound": float(after.at_bound),
            "aent/band_side": after.band_side,
            "aent/nonfinite_steps": after.nonfinite,
        }
        return batch

    def _save_checkpoint(self) -> None:
        # Before verl's own files: its tracker names this folder only once it is complete.
        folder = os.path.join(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}")
        state = ray.get(self._coefficient.state.remote())
        state_file.write(folder, control=self.entropy_control, state=state)
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        if self.entropy_control.restart_controller:
            logger.warning("resuming at step %d with the controller at its initial state", self.global_steps)
            return
        trainer = self.config.trainer
        folder = os.path.join(trainer.default_local_dir, f"global_step_{self.global_steps}")
        if trainer.resume_mode == "resume_path":
            folder = trainer.resume_from_path
        state, changes = state_file.read(folder, control=self.entropy_control)
        for change in changes:
            logger.warning(change)
        ray.get(self._coefficient.restore.remote(state))
        logger.info("controller resumed from %s: %s", folder, state)


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
        "loss": loss.entropy_control_loss.__name__,
        "method": expected.method,
        "functional": str(expected.functional),
        "controller": str(expected.controller),
    }
    for actor in actors:
        for key, value in wanted.items():
            if actor.get(key) != value:
                raise PlugInNotActiveError(
                    f"rank {actor.get('rank')} reports {key}={actor.get(key)!r}, the driver expects {value!r}: "
                    "is the same version of aent_verl installed on every node?"
                )


def step_means(metrics: dict[str, Any], *, sent: float) -> dict[str, float]:
    """Take our sums out of verl's metrics and return the token-weighted means of the step, in nats.

    verl sums a SUM metric over micro-batches and averages it over ranks and mini-batches; the ratio of two such metrics
    is the exact token-weighted mean over all of them.

    Raises:
        PlugInNotActiveError: no such sums, or a rank that used another coefficient than the one ``sent``.
    """
    prefix = "actor/"
    try:
        tokens = metrics.pop(prefix + loss.TOKENS)
        bonus_loss = metrics.pop(prefix + loss.BONUS_LOSS)
        sums = {key: metrics.pop(prefix + name) for key, name in loss.SUMS.items()}
        lowest, highest = (metrics.pop(prefix + k) for k in (loss.COEFFICIENT_LOWEST, loss.COEFFICIENT_HIGHEST))
    except KeyError as error:
        raise PlugInNotActiveError(f"the actor's update returned no {error}: our loss did not run") from None
    if not lowest == highest == sent:
        raise PlugInNotActiveError(f"ranks used coefficients in [{lowest!r}, {highest!r}], the driver sent {sent!r}")
    mean = {key: float(value / tokens) if tokens > 0 else float("nan") for key, value in sums.items()}
    return {
        "aent/entropy": mean[loss.ENTROPY],
        "aent/entropy_full": mean[loss.ENTROPY_FULL],
        "aent/removed_mass": mean[loss.REMOVED_MASS],
        "aent/bonus_loss": float(bonus_loss),
    }


@register_trainer("aent_sync")
class EntropyControlTrainerSync(EntropyControlMixin, PPOTrainerSync):
    """verl's synchronous trainer with entropy control: ``trainer.v1.trainer_mode=aent_sync``."""

    base_mode = "sync"
