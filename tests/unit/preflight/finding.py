"""Configs with some settings changed, and what a check of settings says of them, as keys and kinds."""

from collections.abc import Callable, Iterator

import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict

from aent_verl.preflight.findings import Finding, PreflightError

GROUPS = ("entropy_control", "experiment", "platform")


def config(*overrides: str, name: str = "aent_trainer") -> DictConfig:
    """Override a config composed of groups alone, a copy of one that tests/hydra_cache.py remembers."""
    pairs = [override.lstrip("+").split("=", 1) for override in overrides]
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        cfg = compose(name, [f"{key}={value}" for key, value in pairs if key in GROUPS])
    for key, value in pairs:
        if key not in GROUPS:
            OmegaConf.update(cfg, key, yaml.safe_load(value), force_add=True)
    return cfg


def put(cfg: DictConfig, key: str, value: object) -> DictConfig:
    """Set a key, also one that the config does not have."""
    with open_dict(cfg):
        OmegaConf.update(cfg, key, value, force_add=True)
    return cfg


def findings(check: Callable[[DictConfig], Iterator[Finding]], cfg: DictConfig) -> dict[str, Finding]:
    """By key; a key is found once."""
    found = list(check(cfg))
    keys = [finding.key for finding in found]
    assert len(keys) == len(set(keys)), found
    return dict(zip(keys, found, strict=True))


def stops_and_warns(check: Callable[[DictConfig], Iterator[Finding]], cfg: DictConfig) -> tuple[set[str], set[str]]:
    """Keys that stop the run, and keys that are warned about."""
    found = findings(check, cfg)
    stop = {key for key, finding in found.items() if isinstance(finding, PreflightError)}
    return stop, set(found) - stop


def stops(check: Callable[[DictConfig], Iterator[Finding]], cfg: DictConfig) -> set[str]:
    """Keys that stop the run."""
    return stops_and_warns(check, cfg)[0]
