"""Composing the shipped configs as users do."""

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from aent_verl.methods.settings import EntropyControlConfig
from aent_verl.plugin.actor_config import EntropyControlActorConfig

MICRO_BATCHES = [
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        return compose("aent_trainer", overrides=list(overrides))


def actor_config(cfg: DictConfig) -> EntropyControlActorConfig:
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(cfg.actor_rollout_ref.actor)


def control(*overrides: str) -> EntropyControlConfig:
    """Through verl's own conversion of the actor's config, as in the workers."""
    parsed = actor_config(composed(*MICRO_BATCHES, *overrides)).entropy_control
    assert parsed is not None
    return parsed
