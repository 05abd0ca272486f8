"""What verl ships as the value of a setting, and which settings of a config differ from that."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.schema import verl_file

_ABSENT = object()


def shipped() -> DictConfig:
    """Load verl's whole trainer config with its defaults, interpolations not resolved; do not change what you get."""
    # verl keeps this flat copy of ppo_trainer.yaml for reference. Composing again would disturb Hydra's global state.
    return verl_file("_generated_ppo_trainer.yaml")


def changed(cfg: DictConfig, key: str) -> dict[str, Any]:
    """Settings at or below ``key`` that differ from verl's defaults, by their full keys, with their values.

    A default that is an interpolation follows ``cfg``: what verl derives from other settings counts as unchanged.
    """
    default = _shipped_leaves(key)
    found = {}
    for name, raw in _leaves(_raw(cfg, key), key):
        if raw == default.get(name, _ABSENT):
            continue
        value = OmegaConf.select(cfg, name)
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        if value != _resolved(cfg, name, default.get(name, _ABSENT)):
            found[name] = value
    return found


@functools.cache
def _shipped_leaves(key: str) -> dict[str, Any]:
    return dict(_leaves(_raw(shipped(), key), key))


def _raw(cfg: DictConfig, key: str) -> Any:
    """The value at ``key`` with its interpolations as they are written; None where there is none."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    raw = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else None
    return raw.get(name) if isinstance(raw, Mapping) else None


def _resolved(cfg: DictConfig, key: str, value: Any) -> Any:
    """``value`` as it would be at ``key`` of this config."""
    if not (isinstance(value, str) and "${" in value):
        return value
    other = copy.deepcopy(cfg)
    OmegaConf.set_struct(other, False)
    OmegaConf.update(other, key, value)
    return OmegaConf.select(other, key)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from _leaves(below, f"{key}.{name}")
    else:
        yield key, value


def listed(settings: Mapping[str, Any]) -> str:
    """Settings for a message: ``key=value, key=value``."""
    return ", ".join(f"{key}={value!r}" for key, value in settings.items())
