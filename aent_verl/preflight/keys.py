"""Keys that compose and that nothing reads, in a config and in overrides: of an older verl, unread, of no schema."""

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

from aent_verl.preflight import schema
from aent_verl.preflight.findings import Finding, PreflightError, Setting, at
from aent_verl.preflight.schema import has, has_critic, is_default, is_mapping, leaves, node, override, stock, value
from aent_verl.preflight.verl_keys import GONE, MOVED, UNREAD

LEGACY = "legacy_reward_impl.yaml"
# What verl passes on as a whole (to Ray, a rollout engine, TransferQueue, MindSpeed, Nsight, Megatron), and what is
# ours and checked elsewhere.
FREE = (
    *("ray_kwargs.ray_init", "transfer_queue", "distillation.teacher_models", "global_profiler.global_tool_config"),
    *("actor_rollout_ref.rollout.custom", "actor_rollout_ref.actor.entropy_control"),
    *("entropy_control", "recommended", "defaults", "hydra", "model_engine"),
)
FREE_NAMES = ("engine_kwargs", "turbo_config", "override_transformer_config", "reward_kwargs", "runtime_env")
# Blocks that verl turns into dataclasses, which refuse a field that they do not have.
TYPED = ("actor_rollout_ref.", "critic.")
# Those that hold sampling parameters.
SAMPLING = ("actor_rollout_ref.rollout", "actor_rollout_ref.rollout.val_kwargs")
# How close a name must be to count as a typo.
CLOSE = 0.8
CONFIG = Path(__file__).parent.parent / "_config"


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Yield a finding for each key that the run would not read.

    An error where the run would compute something other than asked, or fail in a worker; a warning where it would not.
    """
    yield from legacy(cfg)
    yield from unread(cfg)
    own = (schema.verl_file(f"{CONFIG}/aent_{name}.yaml") for name in ("trainer", "evaluate"))
    yield from _unknown(cfg, cfg, [stock(cfg), *own], "")


def legacy(cfg: DictConfig) -> Iterator[Finding]:
    """Find reward keys of verl before 0.9, which its v1 entry neither moves nor reads."""
    blocks = [block for block in map(str, schema.verl_file(LEGACY)) if is_mapping(node(cfg, block))]
    settings = [at(cfg, key) for block in blocks for key in leaves(cfg[block], f"{block}.")]
    given = [setting for setting in settings if setting.value is not None]
    targets = moves(cfg) if given else {}
    for setting in given:
        target = targets.get(setting.key)
        if target is None:
            yield setting.error("verl no longer reads it, and nothing replaces it", "Remove it; see reward.* instead")
            continue
        current = value(cfg, target)
        replacement = override(target, setting.value, exists=has(stock(cfg), target))
        hint = f"Type {replacement} instead{_managers(target, setting.value)}"
        if current == setting.value:
            yield setting.warning(f"verl no longer reads it; {target} says the same", hint)
            continue
        function = "reward.custom_reward_function"
        lost = target.startswith(function) and value(cfg, f"{function}.path") is None
        effect = "the run would train on verl's default reward" if lost else f"{target} stays {current!r}"
        yield setting.error(f"verl no longer reads it: {effect}", hint)


def _managers(target: str, found: Any) -> str:
    """Return what to add where the old name of a reward manager is gone, too."""
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

    gone = target == "reward.reward_manager.name" and found not in REWARD_MANAGER
    return f", with a manager that verl 0.9.1 has: {', '.join(sorted(REWARD_MANAGER))}" if gone else ""


def moves(cfg: DictConfig) -> dict[str, str]:
    """Find where verl's own migration puts each key of the legacy reward blocks, including those that a user added."""
    from verl.experimental.reward_loop.reward_loop import migrate_legacy_reward_impl

    blocks = [str(name) for name in schema.verl_file(LEGACY)]
    given = {name: cfg[name] for name in blocks if is_mapping(node(cfg, name))}
    probe: Any = OmegaConf.merge(schema.verl_file(LEGACY), given, {"reward": stock(cfg).reward})
    keys = [key for block in blocks for key in leaves(probe[block], f"{block}.")]
    for key in keys:
        OmegaConf.update(probe, key, key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        moved = migrate_legacy_reward_impl(probe)
    found = {node(moved, key)._value(): key for key in leaves(moved)}
    return {key: found[key] for key in keys if key in found}


def unread(cfg: DictConfig) -> Iterator[Finding]:
    """Find keys of verl's config that nothing reads under FSDP."""
    if not str(value(cfg, "actor_rollout_ref.actor.strategy")).startswith("fsdp"):
        return
    critic = has_critic(cfg)
    for key, entry in UNREAD.items():
        if not has(cfg, key) or is_default(cfg, key) or (key.startswith("critic.") and not critic):
            continue
        setting, instead = at(cfg, key), entry.instead
        if setting.value is None or setting.value in entry.harmless:
            continue
        hint = f"Remove it, or revert to {value(stock(cfg), key)!r}"
        if instead is not None:
            current = value(cfg, instead)
            if current == setting.value:
                continue
            there = f"{instead} (now {current!r})" if has(cfg, instead) else f"+{instead}"
            hint = f"Set {there} instead, and remove this one"
        stops = entry.stops and not (entry.unless and value(cfg, entry.unless))
        yield (setting.error if stops else setting.warning)(f"verl's v1 trainers do not read it: {entry.effect}", hint)


def _unknown(cfg: DictConfig, block: DictConfig, schemas: Sequence[DictConfig], prefix: str) -> Iterator[Finding]:
    """Find keys of a block that are in no schema and that verl's source does not ask for.

    A mapping that no schema fills is open, and so is a dataclass's field beyond verl's YAML.
    """
    targets = filter(None, (each.get("_target_") for each in (block, *schemas)))
    fields = {field for target in targets for field in _fields(str(target))}
    names = set[str]().union(*schemas)
    typed = bool(fields) and prefix.startswith(TYPED)
    for name in map(str, block):
        key = f"{prefix}{name}"
        if name == "_target_" or key in FREE or name in FREE_NAMES or name in fields - names:
            continue
        known = [node(each, name) for each in schemas if has(each, name)]
        if not known and (typed or not (_is_read(name) or _is_trainer_mode(key))):
            yield _stranger(cfg, key, fields | names, typed=typed)
        inner, known = node(block, name), [each for each in known if is_mapping(each) and len(each)]
        if known and is_mapping(inner):
            yield from _unknown(cfg, inner, known, f"{key}.")


def _stranger(cfg: DictConfig, key: str, siblings: set[str], *, typed: bool) -> Finding:
    block, _, name = key.rpartition(".")
    close = difflib.get_close_matches(name, sorted(siblings), n=1, cutoff=CLOSE)
    hint = "Remove it; if your own code reads it, this is only a reminder"
    if close:
        near = f"{block}.{close[0]}" if block else close[0]
        hint = f"Did you mean {near}? If your own code reads this one, give it a name that is not so close"
    if typed:
        passed_on = "; of sampling parameters verl passes on only temperature, top_p and top_k"
        problem = f"verl has no such setting here, and its workers fail on it{passed_on if block in SAMPLING else ''}"
        return at(cfg, key).error(problem, hint if close else "Remove it")
    found = at(cfg, key)
    return (found.error if close else found.warning)("nothing in verl or aent_verl reads it", hint)


@functools.cache
def _fields(target: str) -> set[str]:
    """Name the fields of the dataclass at a dotted path; none if that fails, which whoever builds it will report."""
    from hydra.utils import get_object

    try:
        return {each.name for each in dataclasses.fields(get_object(target))}
    except Exception:
        return set()


def _is_trainer_mode(key: str) -> bool:
    """Return whether this is a block of settings under ``trainer.v1`` for a trainer that is registered."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    block, _, name = key.rpartition(".")
    return block == "trainer.v1" and name in TRAINER_REGISTRY


@functools.cache
def _verl_source() -> str:
    """Read all of verl's Python, once and only if a key is in no schema."""
    return "\n".join(path.read_text(encoding="utf-8") for path in Path(schema.verl_folder()).rglob("*.py"))


def _is_read(name: str) -> bool:
    """Return whether verl's source looks a name up in a config that may not have it."""
    quoted = rf"""["'](?:[\w.]+\.)?{re.escape(name)}["']"""
    lookup = rf"(?:get|getattr|hasattr|pop|select)\([^()\n]*{quoted}|\[{quoted}\]|{quoted} (?:not )?in "
    # Most names of no schema are nowhere in quotes, which is faster to find.
    return any(name + quote in _verl_source() for quote in "\"'") and re.search(lookup, _verl_source()) is not None


def unknown_overrides(overrides: Sequence[str], cfg_base: DictConfig) -> tuple[list[Finding], list[str]]:
    """Sort overrides into those whose key verl no longer has, or that Hydra's grammar refuses, and those that compose.

    Args:
        overrides: Hydra overrides, one a string.
        cfg_base: the config that they change, composed without them.

    Returns:
        An error for each that does not fit, and the remaining overrides in their order.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    findings: list[Finding] = []
    remaining = []
    for text in overrides:
        try:
            parsed = parser.parse_override(text)
        except HydraException as error:
            problem = f"Hydra cannot read it: {str(error).splitlines()[0]}"
            findings.append(Setting(text, None).error(problem, "Write key=value, quoted for the shell"))
            continue
        finding = None if _is_group(parsed.key_or_group) else _look_up(parsed, text, cfg_base)
        if finding is None:
            remaining.append(text)
        else:
            findings.append(finding)
    return findings, remaining


def group_choices(overrides: Sequence[str]) -> tuple[str, ...]:
    """Select the overrides that choose a file of a config group, or are Hydra's own."""
    return tuple(text for text in overrides if _is_group(text.partition("=")[0].lstrip("+~")))


def _is_group(key: str) -> bool:
    """Return whether this chooses a file of a config group, or is Hydra's own."""
    folders = CONFIG, Path(schema.verl_folder(), "trainer", "config")
    group = key.partition("@")[0]
    return "/" in key or "@" in key or key.startswith("hydra.") or any(os.path.isdir(each / group) for each in folders)


def _look_up(parsed: Any, text: str, cfg: DictConfig) -> Finding | None:
    """Find what is wrong with the key of an override that assigns, adds (+) or deletes (~); None if Hydra takes it."""
    key, given = parsed.key_or_group, text.partition("=")[2]
    setting, known = Setting(key, given), has(cfg, key)
    if not known and (moved := _moved(setting, cfg)) is not None:
        return moved
    if parsed.is_add() and known and not is_mapping(node(cfg, key)):
        return setting.error("verl has this key, so + cannot add it", f"Type {key}={given}")
    if known or parsed.is_add() or parsed.is_force_add():
        return None
    if _is_open(cfg, key):
        return setting.error("Hydra sets a new key only with +", f"Type +{key}={given}")
    close = difflib.get_close_matches(key, list(leaves(cfg)), n=1, cutoff=0.7)
    hint = f"The closest key is {close[0]}" if close else "Remove it, or type it with + if your own code reads it"
    return setting.error("verl 0.9.1 has no such key", hint)


def _moved(setting: Setting, cfg: DictConfig) -> PreflightError | None:
    """Find where a key is today, or why it is gone, from the tables' entry for it or the longest block around it."""
    for block in (setting.key, *reversed(_blocks(setting.key))):
        if block in MOVED or block in GONE:
            target = MOVED[block] + setting.key.removeprefix(block) if block in MOVED else block
            if target in GONE:
                return setting.error("verl 0.9.1 has no such key", f"Remove it: {GONE[target]}")
            there = override(target, setting.value, exists=has(cfg, target))
            return setting.error(f"has moved to {target}", f"Type {there}")
    return None


def _blocks(key: str) -> list[str]:
    """Return the blocks around a key, the outermost first."""
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _is_open(cfg: DictConfig, key: str) -> bool:
    """Return whether the key would be new in a mapping that takes any."""
    return any(
        block in FREE
        or block.rpartition(".")[2] in FREE_NAMES
        or (is_mapping(node(cfg, block)) and not node(cfg, block))
        for block in _blocks(key)
    )
