"""verl's own defaults, and what a config sets that differs from them."""

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from typing import Any

from omegaconf import AnyNode, DictConfig, OmegaConf

# What no config holds; null is a value.
_ABSENT = object()


@functools.cache
def verl_folder() -> str:
    """Find where verl is installed without importing it."""
    spec = importlib.util.find_spec("verl")
    assert spec is not None
    assert spec.origin is not None
    return os.path.dirname(spec.origin)


@functools.cache
def verl_file(name: str) -> DictConfig:
    """Load a file of verl's config folder, or at an absolute path; do not change what you get."""
    loaded = OmegaConf.load(os.path.join(verl_folder(), "trainer", "config", name))
    assert isinstance(loaded, DictConfig)
    return loaded


def stock(cfg: DictConfig) -> DictConfig:
    """Load verl's defaults for the training engine of this config, as verl itself composes them."""
    engine = cfg.get("model_engine", "dp")
    return verl_file("_generated_ppo_trainer.yaml" if engine == "dp" else f"_generated_ppo_{engine}_trainer.yaml")


def node(cfg: DictConfig, key: str) -> Any:
    """Return the node at a dotted key, unresolved; a private object if there is none."""
    found: Any = cfg
    # Not `name in cfg`, which resolves interpolations: slow, and false where one cannot be resolved.
    for name in key.split("."):
        found = found._get_node(name, validate_access=False) if is_mapping(found) else None
        if found is None:
            return _ABSENT
    return found


def is_mapping(found: Any) -> bool:
    """Return whether this is a mapping with content of its own: no null, and no reference to another."""
    return isinstance(found, DictConfig) and not found._is_none() and not found._is_interpolation()


def has(cfg: DictConfig, key: str) -> bool:
    """Return whether there is anything at a dotted key, even null."""
    return node(cfg, key) is not _ABSENT


def value(cfg: DictConfig, key: str) -> Any:
    """Return the value at a dotted key with interpolations resolved, as plain Python; None if there is none."""
    found = OmegaConf.select(cfg, key, default=None)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def is_default(cfg: DictConfig, key: str) -> bool:
    """Return whether the key holds verl's default: the same text, for a default that refers to another key."""
    ours, theirs = node(cfg, key), node(stock(cfg), key)
    if ours is _ABSENT or theirs is _ABSENT:
        return ours is theirs
    return bool(ours == theirs) if OmegaConf.is_config(ours) else bool(ours._value() == theirs._value())


def changed(cfg: DictConfig, key: str) -> dict[str, Any]:
    """Find settings at or below ``key`` that differ from verl's defaults, with their values.

    A default that refers to another key follows ``cfg``: what verl derives from other settings counts as unchanged.
    """
    block = node(cfg, key)
    names = leaves(block, f"{key}.") if is_mapping(block) and len(block) else [key]
    different = {name: value(cfg, name) for name in names if not is_default(cfg, name)}
    return {name: given for name, given in different.items() if given != _default(cfg, name)}


def _default(cfg: DictConfig, key: str) -> Any:
    """Resolve verl's default for a key within this config."""
    default = node(stock(cfg), key)
    if default is _ABSENT:
        return default
    block, _, name = key.rpartition(".")
    given = AnyNode(default._value(), key=name, parent=node(cfg, block)) if default._is_interpolation() else default
    found = given._dereference_node()
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found._value()


def leaves(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield dotted keys of everything that is not a mapping, and of empty mappings, without ``_target_``."""
    for name in map(str, cfg):
        inner: Any = cfg._get_node(name)
        key = f"{prefix}{name}"
        if is_mapping(inner) and len(inner):
            yield from leaves(inner, f"{key}.")
        elif name != "_target_":
            yield key


def override(key: str, given: Any, *, exists: bool = True) -> str:
    """Write a setting as an override in Hydra's grammar."""
    text = {None: "null", True: "true", False: "false"}[given] if given is None or isinstance(given, bool) else given
    return f"{'' if exists else '+'}{key}={text}"


def has_critic(cfg: DictConfig) -> bool:
    """Return whether verl trains a critic; its warning that none is needed is not repeated."""
    from verl.trainer.ppo.utils import need_critic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(need_critic(cfg))
