"""A run of the real stack whose preset changes from step to step: all of them for the price of one start.

python -m tests.e2e.family OVERRIDE...
"""

import os
import sys
from typing import Any

import ray
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.ppo.v1 import trainer_base
from verl.utils.config import omega_conf_to_dataclass

from aent_verl.plugin import trainers
from aent_verl.plugin.trainer import EntropyControlMixin
from aent_verl.plugin.worker import DetachedEntropyControlWorker, EntropyControlWorker

# One training step each, in this order.
FAMILY = """
grpo entreg aent skywork aer par_stage par_epoch par_entropy clip_cov kl_cov siren steer epo entropy_adv progrpo
clip_higher linear_decay repo_r tre ares
"""
PRESETS = FAMILY.split()
AENT = "entropy_control=aent"
PAR = ("entropy_control/advantages=positive_reweight", "entropy_control/advantages_controller=stage")
LOSS = "actor_rollout_ref.actor.policy_loss.loss_mode="
COMBINATIONS = (
    (AENT, LOSS + "gspo"),
    (AENT, LOSS + "cispo"),
    (AENT, LOSS + "vanilla", "actor_rollout_ref.actor.clip_ratio_c=1.5"),
    (AENT, *PAR),
    (AENT, "entropy_control/token_mask=peak", "entropy_control.token_dump=3"),
)
# With another policy loss nothing of the stack around the engine changes: those stay with the engine's test.
# SIREN's nucleus of .8 often holds one token of this model, whose likeliest token has .85: no entropy, hence no peak.
EXTRA = {"siren": ("entropy_control.functional.top_p=0.95",)}
STEPS: tuple[tuple[str, ...], ...] = (
    *((f"entropy_control={name}", *EXTRA.get(name, ())) for name in PRESETS),
    *COMBINATIONS[-2:],
)
OVERRIDES, CHOSEN = "AENT_VERL_TEST_OVERRIDES", "AENT_VERL_TEST_PRESETS"


def steps() -> tuple[tuple[str, ...], ...]:
    """The overrides of each step: of all presets and some combinations, or of the presets that `CHOSEN` lists."""
    chosen = os.environ.get(CHOSEN, "").split()
    return tuple(STEPS[PRESETS.index(name)] for name in chosen) or STEPS


def config(*overrides: str) -> DictConfig:
    given = os.environ[OVERRIDES].split("\n")
    with initialize_config_module("aent_verl._config", version_base=None):
        return compose("aent_trainer", overrides=[*given, *overrides])


class Reconfigured:
    """An actor's worker that takes another preset."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reconfigure(self, actor: DictConfig) -> None:
        worker: Any = self
        old = worker.actor.loss_fn.keywords["config"]
        new = omega_conf_to_dataclass(actor)
        new.model_config, new.engine = old.model_config, old.engine
        worker.use_entropy_control(new)


class FamilyWorker(Reconfigured, EntropyControlWorker):
    pass


class DetachedFamilyWorker(Reconfigured, DetachedEntropyControlWorker):
    pass


class Family(EntropyControlMixin):
    """Takes the next of the presets at the beginning of each step."""

    worker_class = FamilyWorker

    def on_step_begin(self) -> None:
        super().on_step_begin()
        if self.global_steps <= len(steps()):
            self.reconfigure(config(*steps()[self.global_steps - 1]))

    def reconfigure(self, cfg: DictConfig) -> None:
        OmegaConf.resolve(cfg)
        self.use_entropy_control(omega_conf_to_dataclass(cfg.actor_rollout_ref.actor))
        ray.kill(self._coefficients)
        self.start_controllers()
        self.actor_rollout_wg.reconfigure(cfg.actor_rollout_ref.actor)


class FamilySync(Family, trainers.EntropyControlTrainerSync):
    pass


class FamilyColocateAsync(Family, trainers.EntropyControlTrainerColocateAsync):
    pass


class FamilySeparateAsync(Family, trainers.EntropyControlTrainerSeparateAsync):
    worker_class = DetachedFamilyWorker


trainer_base.TRAINER_REGISTRY |= {
    "aent_sync": FamilySync,
    "aent_colocate_async": FamilyColocateAsync,
    "aent_separate_async": FamilySeparateAsync,
}


def main() -> None:
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    from aent_verl.launch import compose, environment

    os.environ[OVERRIDES] = "\n".join(sys.argv[1:])
    modules = ["tests.e2e.family_plugin", os.environ.get("VERL_USE_EXTERNAL_MODULES")]
    os.environ["VERL_USE_EXTERNAL_MODULES"] = ",".join(filter(None, modules))
    cfg: Any = config(f"trainer.total_training_steps={len(steps())}")
    compose.make_paths_absolute(cfg)
    platform = environment.choose_platform(cfg)
    environment.hand_to_workers(cfg, platform)
    with open_dict(cfg):
        for name in (OVERRIDES, CHOSEN):
            cfg.ray_kwargs.ray_init.runtime_env.env_vars[name] = os.environ.get(name, "")
    run_ppo(cfg, task_runner_class=TaskRunnerV1)


if __name__ == "__main__":
    # Under its own name, so that Ray's workers find the classes.
    from tests.e2e import family

    family.main()
