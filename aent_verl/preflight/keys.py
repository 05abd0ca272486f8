"""Settings that compose and that nothing reads: keys of an older verl, keys without a reader, keys of no schema."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.errors import Finding, PreflightError, PreflightWarning
from aent_verl.preflight.schema import (
    has,
    has_critic,
    is_default,
    is_mapping,
    leaves,
    node,
    override,
    stock,
    value,
    verl_file,
    verl_folder,
)
from aent_verl.preflight.unread import UNREAD, Unread

LEGACY = "legacy_reward_impl.yaml"
# What verl hands on as a whole (to Ray, a rollout engine, TransferQueue, MindSpeed, Nsight, Megatron), and what is ours
# and looked at elsewhere.
FREE = (
    *("ray_kwargs.ray_init", "transfer_queue", "distillation.teacher_models", "global_profiler.global_tool_config"),
    *("actor_rollout_ref.rollout.custom", "actor_rollout_ref.actor.entropy_control"),
    *("entropy_control", "recommended", "defaults", "hydra", "model_engine"),
)
FREE_NAMES = ("engine_kwargs", "turbo_config", "override_transformer_config", "reward_kwargs", "runtime_env")
# Blocks that verl turns into dataclasses, which refuse a field that they do not have.
TYPED = ("actor_rollout_ref.", "critic.")
# How near a name must be to be taken for a slip of the keyboard.
CLOSE = 0.8


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Yield a finding for each key that the run would not read.

    An error where the run would compute something else than asked, or fail in a worker; a warning where it would not.
    """
    yield from legacy(cfg)
    yield from unread(cfg)
    yield from unknown(cfg)


def legacy(cfg: DictConfig) -> Iterator[Finding]:
    """Reward keys of verl before 0.9, which its v1 entry neither moves nor reads."""
    given = {
        key: found
        for block in map(str, verl_file(LEGACY))
        if is_mapping(node(cfg, block))
        for key in leaves(cfg[block], f"{block}.")
        if (found := value(cfg, key)) is not None
    }
    if not given:
        return
    targets = moves(cfg)
    for key, found in given.items():
        target = targets.get(key)
        if target is None:
            yield PreflightError(
                key,
                found,
                "verl no longer reads it, and nothing takes its place",
                hint="Remove it; see reward.* instead",
            )
            continue
        current = value(cfg, target)
        hint = f"Type {override(target, found, exists=has(stock(cfg), target))} instead{_managers(target, found)}"
        if current == found:
            yield PreflightWarning(key, found, f"verl no longer reads it; {target} says the same", hint=hint)
            continue
        effect = f"{target} stays {current!r}"
        if (
            target.startswith("reward.custom_reward_function")
            and value(cfg, "reward.custom_reward_function.path") is None
        ):
            effect = "the run would train on verl's default reward"
        yield PreflightError(key, found, f"verl no longer reads it: {effect}", hint=hint)


def _managers(target: str, found: Any) -> str:
    """What to add where the old name of a reward manager is gone, too."""
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

    gone = target == "reward.reward_manager.name" and found not in REWARD_MANAGER
    return f", with a manager that verl 0.9.1 has: {', '.join(sorted(REWARD_MANAGER))}" if gone else ""


def moves(cfg: DictConfig) -> dict[str, str]:
    """Where verl's own migration puts each key of the legacy reward blocks, those that a user added among them."""
    from verl.experimental.reward_loop.reward_loop import migrate_legacy_reward_impl

    blocks = [str(name) for name in verl_file(LEGACY)]
    old = OmegaConf.merge(verl_file(LEGACY), {name: cfg[name] for name in blocks if is_mapping(node(cfg, name))})
    assert isinstance(old, DictConfig)
    marks = {key: f"<{key}>" for key in leaves(old)}
    probe = OmegaConf.merge(old, {"reward": stock(cfg).reward})
    for key, mark in marks.items():
        OmegaConf.update(probe, key, mark)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        moved = migrate_legacy_reward_impl(probe)
    found = {node(moved, key)._value(): key for key in leaves(moved)}
    return {key: found[mark] for key, mark in marks.items() if mark in found}


def unread(cfg: DictConfig) -> Iterator[Finding]:
    """Keys of verl's config that nothing reads under FSDP."""
    if not str(value(cfg, "actor_rollout_ref.actor.strategy")).startswith("fsdp"):
        return
    critic = has_critic(cfg)
    for key, entry in UNREAD.items():
        if not has(cfg, key) or is_default(cfg, key) or (key.startswith("critic.") and not critic):
            continue
        found = value(cfg, key)
        if found is None or found in entry.harmless or _says_the_same(cfg, entry, found):
            continue
        yield _no_reader(cfg, key, found, entry)


def _says_the_same(cfg: DictConfig, entry: Unread, found: Any) -> bool:
    return entry.instead is not None and has(cfg, entry.instead) and value(cfg, entry.instead) == found


def _no_reader(cfg: DictConfig, key: str, found: Any, entry: Unread) -> Finding:
    stops = entry.stops and not (entry.unless and value(cfg, entry.unless))
    problem = f"verl's v1 trainers do not read it: {entry.effect}"
    hint = f"Remove it, or revert to {value(stock(cfg), key)!r}"
    if entry.instead is not None:
        exists = has(cfg, entry.instead)
        current = f", which is {value(cfg, entry.instead)!r}" if exists else ""
        hint = f"The key that is read is {'' if exists else '+'}{entry.instead}{current}; set that and remove this one"
    return (PreflightError if stops else PreflightWarning)(key, found, problem, hint=hint)


def unknown(cfg: DictConfig) -> Iterator[Finding]:
    """Keys that stand in no schema and that verl's source does not ask for."""
    yield from _unknown(cfg, cfg, [stock(cfg), *_own_schemas()], "")


@functools.cache
def _own_schemas() -> tuple[DictConfig, ...]:
    """What our two primary configs set."""
    folder = Path(__file__).parent.parent / "_config"
    both = [OmegaConf.load(folder / f"aent_{name}.yaml") for name in ("trainer", "evaluate")]
    return tuple(each for each in both if isinstance(each, DictConfig))


def _unknown(cfg: DictConfig, block: DictConfig, schemas: Sequence[DictConfig], prefix: str) -> Iterator[Finding]:
    """Look at one block; a mapping that no schema fills is open, and so is a dataclass's field beyond verl's YAML."""
    fields = _fields([block, *schemas])
    for name in map(str, block):
        key = f"{prefix}{name}"
        if name == "_target_" or key in FREE or name in FREE_NAMES or name in fields - set().union(*schemas):
            continue
        known = [node(each, name) for each in schemas if has(each, name)]
        if not known and not _is_read(name) and not _is_trainer_mode(key):
            yield _stranger(cfg, key, set(fields).union(*schemas), typed=bool(fields))
        inner, known = node(block, name), [each for each in known if is_mapping(each) and len(each)]
        if known and is_mapping(inner):
            yield from _unknown(cfg, inner, known, f"{key}.")


def _stranger(cfg: DictConfig, key: str, siblings: set[str], *, typed: bool) -> Finding:
    block, _, name = key.rpartition(".")
    found = value(cfg, key)
    close = difflib.get_close_matches(name, sorted(siblings), n=1, cutoff=CLOSE)
    hint = "Remove it; if code of your own reads it, this is only a reminder"
    if close:
        near = f"{block}.{close[0]}" if block else close[0]
        hint = f"Did you mean {near}? If code of your own reads this one, give it a name that is not so near"
    if typed and key.startswith(TYPED):
        return PreflightError(key, found, "verl has no such setting here, and its workers fail on it", hint=hint)
    problem = "nothing in verl or aent_verl reads it"
    return (PreflightError if close else PreflightWarning)(key, found, problem, hint=hint)


def _fields(blocks: Sequence[DictConfig]) -> set[str]:
    """Fields of the dataclass that verl makes of a block, where it makes one."""
    found: set[str] = set()
    for block in blocks:
        target = block.get("_target_")
        made = _object(str(target)) if target else None
        if dataclasses.is_dataclass(made):
            found |= {each.name for each in dataclasses.fields(made)}
    return found


@functools.cache
def _object(path: str) -> Any:
    """What stands at a dotted path; None where it cannot be imported, which whoever builds the block will say."""
    from hydra.utils import get_object

    try:
        return get_object(path)
    except Exception:
        return None


def _is_trainer_mode(key: str) -> bool:
    """A block of settings under ``trainer.v1`` for a trainer that is registered."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    block, _, name = key.rpartition(".")
    return block == "trainer.v1" and name in TRAINER_REGISTRY


@functools.cache
def _verl_source() -> str:
    """All of verl's Python, read once and only if a key stands in no schema."""
    texts = []
    for folder, _, names in os.walk(verl_folder()):
        texts += [Path(folder, name).read_text(encoding="utf-8") for name in names if name.endswith(".py")]
    return "\n".join(texts)


def _is_read(name: str) -> bool:
    """Whether verl's source looks a name up in a config that may not have it."""
    quoted = rf"""["'](?:[\w.]+\.)?{re.escape(name)}["']"""
    lookup = rf"(?:get|getattr|hasattr|pop|select)\([^()\n]*{quoted}|\[{quoted}\]|{quoted} (?:not )?in "
    return re.search(lookup, _verl_source()) is not None
