"""What `aent-verl prepare` prints: findings, lengths, and how to train on the files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aent_verl._util import hydra_quoted
from aent_verl.data.prepare.sources import open_file

# A path that neither a shell nor Hydra takes for anything else.
_PLAIN = re.compile(r"[\w./-]+")


def lengths(path: Path, tokenizer: Any, limit: int | None) -> dict[str, int]:
    """Prompt lengths in tokens, chat template and generation prompt included, as verl counts them.

    Args:
        path: A file in verl's format.
        tokenizer: With a chat template.
        limit: Length from which on verl drops a prompt, if that is to be counted.

    Returns:
        "longest", and with a limit "limit" and "longer", the number of prompts above it.
    """
    from aent_verl.data.tasks.sampling import prompt_ids

    counts = [len(prompt_ids(tokenizer, row["prompt"])) for row in open_file(path).read(["prompt"])]
    longer = {} if limit is None else {"limit": limit, "longer": sum(count > limit for count in counts)}
    return {"longest": max(counts), **longer}


def describe(folder: Path, name: str, entry: Mapping[str, Any]) -> list[str]:
    """Lines about a data set that was just prepared, from its entry in `prepare.json`."""
    lines = [f"{name}: {_source(entry['request']['source'])}"]
    for made in entry["splits"].values():
        lines.append(f"  {folder / made['file']}: {made['rows']:,} of {made['read']:,} rows")
        lines += [] if made["findings"] else ["    checked, nothing found"]
        for finding in made["findings"]:
            lines.append(
                f"    {'left out' if finding['left_out'] else 'kept':8} {finding['count']:>6,}  {finding['what']}"
            )
            lines += [f"{'':21}{example}" for example in finding["examples"]]
        lines += [f"    {line}" for line in _length_lines(made.get("lengths"))]
    return [*lines, *(f"  note: {remark}" for remark in entry["remarks"])]


def length_lines(folder: Path, file: str, measured: Mapping[str, int]) -> list[str]:
    """Lines about the prompts of a file that was there already."""
    return [f"  {folder / file}: {line}" for line in _length_lines(measured)]


def usage(folder: Path, files: Mapping[str, Sequence[str]], rewards: Sequence[str]) -> list[str]:
    """How to train on the files: Hydra overrides.

    Args:
        folder: Where they are.
        files: Their names by split.
        rewards: The modules that score them.
    """
    overrides = []
    for split, key in (("train", "data.train_files"), ("test", "data.val_files")):
        paths = [_as_override(folder / file) for file in files.get(split, [])]
        if paths:
            value = paths[0] if len(paths) == 1 else "[" + ",".join(paths) + "]"
            plain = all(_PLAIN.fullmatch(path) for path in paths)
            overrides.append(f"{key}={value}" if plain else shlex.quote(f"{key}={value}"))
    lines = ["use: " + " \\\n     ".join(overrides)]
    if len(rewards) == 1:
        path = f"reward.custom_reward_function.path=pkg://{rewards[0]}"
        lines.append(f"     {path} reward.custom_reward_function.name=compute_score")
    else:
        lines.append(f"     these need different rewards, so different runs: {' and '.join(rewards)}")
    return lines


def _as_override(path: Path) -> str:
    """A path as Hydra reads it."""
    return str(path) if _PLAIN.fullmatch(str(path)) else hydra_quoted(path)


def _length_lines(measured: Mapping[str, int] | None) -> list[str]:
    if not measured:
        return []
    line = f"longest prompt {measured['longest']:,} tokens"
    if "limit" in measured:
        line += f"; {measured['longer']:,} prompts are longer than {measured['limit']:,}, which verl drops"
    return [line]


def _source(source: Mapping[str, Any]) -> str:
    if "hub" in source:
        config = f", config {source['config']}" if source["config"] else ""
        return f"{source['hub']}{config}, revision {source['revision'] or 'newest in the cache'}"
    if "reasoning_gym" in source:
        settings = " ".join(f"{key}={value}" for key, value in source["settings"].items())
        return f"reasoning-gym {source['reasoning_gym']} {settings}".rstrip()
    return ", ".join(f"{one['path']} (sha256 {one['sha256'][:12]})" for one in source.values())
