"""Configs with some settings changed, and what a check of settings says of them, as keys and kinds."""

import copy
import functools
from collections.abc import Callable, Iterator

import yaml
from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.findings import Finding, PreflightError
from tests.config.composing import composed

GROUPS = ("entropy_control", "experiment", "platform")
_composed = functools.cache(composed)


def config(*overrides: str) -> DictConfig:
    """Override the composed config, which is composed once for each choice of groups: it takes a second."""
    pairs = [override.lstrip("+").split("=", 1) for override in overrides]
    cfg = copy.deepcopy(_composed(*(f"{key}={value}" for key, value in pairs if key in GROUPS)))
    for key, value in pairs:
        if key not in GROUPS:
            OmegaConf.update(cfg, key, yaml.safe_load(value), force_add=True)
    return cfg


def findings(check: Callable[[DictConfig], Iterator[Finding]], cfg: DictConfig) -> dict[str, Finding]:
    """By key; a key is found once."""
    found = list(check(cfg))
    keys = [finding.key for finding in found]
    assert len(keys) == len(set(keys)), found
    return dict(zip(keys, found, strict=True))


def stops(check: Callable[[DictConfig], Iterator[Finding]], cfg: DictConfig) -> set[str]:
    """Keys that stop the run."""
    return {key for key, finding in findings(check, cfg).items() if isinstance(finding, PreflightError)}


def warns(check: Callable[[DictConfig], Iterator[Finding]], cfg: DictConfig) -> set[str]:
    """Keys that are warned about."""
    return set(findings(check, cfg)) - stops(check, cfg)
