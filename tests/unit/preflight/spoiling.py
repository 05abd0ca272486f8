"""Configs to spoil, composed as users do."""

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict


def composed_with(*overrides, name="aent_trainer"):
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        return compose(name, list(overrides))


def put(cfg, key, value):
    """Set a key, also one that the config does not have."""
    with open_dict(cfg):
        OmegaConf.update(cfg, key, value, force_add=True)
    return cfg
