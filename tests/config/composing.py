"""Composing the shipped configs as users do."""

from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from aent_verl.methods.settings import EntropyControlConfig
from aent_verl.plugin.actor_config import EntropyControlActorConfig

MICRO_BATCHES = [
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
]
# Groups whose name has no slash.
GROUPS = ("entropy_control", "experiment", "platform", "model_engine")


def composed(*overrides: str) -> DictConfig:
    """Compose with overrides; those of single keys are applied, as Hydra does it, to what the others compose.

    So most configs are copies of a few that tests/hydra_cache.py remembers.
    """
    values = [text for text in overrides if _is_value(text)]
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        config = compose("aent_trainer", overrides=[text for text in overrides if not _is_value(text)])
    parsed = OverridesParser.create().parse_overrides(values)
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    return config


def _is_value(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+")
    return "/" not in key and key not in GROUPS and not key.startswith(("~", "hydra."))


def actor_config(cfg: DictConfig) -> EntropyControlActorConfig:
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(cfg.actor_rollout_ref.actor)


def control(*overrides: str) -> EntropyControlConfig:
    """Through verl's own conversion of the actor's config, as in the workers."""
    parsed = actor_config(composed(*MICRO_BATCHES, *overrides)).entropy_control
    assert parsed is not None
    return parsed
