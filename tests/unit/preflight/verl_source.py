"""Which names verl's source reads in the code that its v1 trainers reach."""

import ast
import functools
from collections import defaultdict
from pathlib import Path

from aent_verl.preflight.schema import verl_folder

ROOT = Path(verl_folder())
START = ("verl.trainer.main_ppo", "verl.trainer.ppo.v1")
# Imported by what is reached, and never run by a v1 trainer: the old trainer, rollouts and rewards of its time.
OLD = (
    *("verl.trainer.main_ppo_v0", "verl.trainer.ppo.ray_trainer", "verl.workers.rollout.hf_rollout"),
    *("verl.workers.rollout.naive", "verl.workers.reward_manager", "verl.trainer.ppo.prefix_grouper_utils"),
)


@functools.cache
def modules():
    """Every module of verl and its syntax tree."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path, ast.parse(path.read_text(encoding="utf-8"))
    return found


@functools.cache
def reached():
    """Modules that can be reached from verl's v1 entry, lazy imports and dotted paths in strings included."""
    seen, todo = set(), list(START)
    while todo:
        name = todo.pop()
        if name not in seen and not name.startswith(OLD):
            seen.add(name)
            todo += imports(name)
    return seen


def imports(name):
    path, tree = modules()[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("verl."):
            found |= {node.value, node.value.rpartition(".")[0]}
    return sorted(each for each in found if each in modules())


@functools.cache
def readers():
    """Modules, by the name that they read: as an attribute, or as a string.

    ``self.x = config.get("x")`` is not a reader of x; whoever reads the attribute is.
    """
    found = defaultdict(set)
    for name in reached():
        tree = modules()[name][1]
        kept = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                attribute = node.targets[0].attr
                kept |= {id(each) for each in ast.walk(node.value) if getattr(each, "value", None) == attribute}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found[node.attr].add(name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in kept:
                found[node.value].add(name)
    return found
