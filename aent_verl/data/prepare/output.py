"""The output folder: its parquet files, `prepare.json`, which says how each was made, and the report about them."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aent_verl._util import atomic_path, file_sha256, hydra_quoted, read_json, write_json
from aent_verl.data.prepare.checks import short
from aent_verl.data.prepare.jobs import Job, Split
from aent_verl.data.prepare.sources import open_file
from aent_verl.data.tasks.cache import package_versions
from aent_verl.data.tasks.reasoning_gym_data import write_parquet
from aent_verl.data.tasks.warm_start import prompt_ids

MANIFEST = "prepare.json"
# A path that needs no quotes, neither in a shell nor in Hydra.
_PLAIN = re.compile(r"[\w./-]+")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what was prepared in the folder, by name; empty when nothing was.

    Raises:
        ValueError: the file is damaged.
    """
    return read_json(folder / MANIFEST, "remove it, or name another --output") or {}


def is_done(folder: Path, job: Job, request: Mapping[str, Any]) -> bool:
    """Return whether the folder holds this data set, made by this request, its files unchanged.

    Args:
        folder: The output folder.
        job: The data set.
        request: Everything that decides the output, as plain JSON values. A revision of None, when the hub could not
            be asked for its newest, agrees with any; so do paths, whose contents have hashes.

    Raises:
        ValueError: it holds these files, but made differently; the message says what differs.
    """
    entry = read_manifest(folder).get(job.name)
    if entry is None:
        files = [file for file in job.files.values() if (folder / file).exists()]
        why = f"{MANIFEST} does not know them"
    else:
        files, why = list(entry["files"]), ""
        differences = _differences(entry["request"], json.loads(json.dumps(request)))
        digests = {file: file_sha256(folder / file) if (folder / file).is_file() else "" for file in files}
        if changed := [file for file, digest in digests.items() if digest != entry["files"][file]["sha256"]]:
            why = f"{', '.join(changed)} changed or went missing since"
        elif differences:
            why = f"made differently ({'; '.join(differences)})"
    if files and why:
        raise ValueError(
            f"{folder} already has {', '.join(files)}: {why}. Nothing was changed: name another --output, or add "
            "--overwrite to replace them"
        )
    return entry is not None


def write(
    folder: Path, job: Job, made: Mapping[str, Split], *, request: Mapping[str, Any], tokenizer: Any, limit: int | None
) -> dict[str, Any]:
    """Write a job's files and its entry in `prepare.json`.

    Args:
        folder: Where.
        job: The data set.
        made: What it built.
        request: Everything that decided the output, as plain JSON values.
        tokenizer: Measures prompts; None for no measurement.
        limit: See `lengths`.

    Returns:
        The entry.
    """
    splits: dict[str, dict[str, Any]] = {}
    files = {}
    for split, file in job.files.items():
        with atomic_path(folder / file) as partial:
            write_parquet(made[split].rows, partial)
        files[file] = {"sha256": file_sha256(folder / file)}
        findings = [asdict(finding) for finding in made[split].findings]
        splits[split] = {"file": file, "rows": len(made[split].rows), "read": made[split].read, "findings": findings}
        if tokenizer:
            splits[split]["lengths"] = lengths(folder / file, tokenizer, limit)
    entry = {
        "request": request,
        "files": files,
        "splits": splits,
        "remarks": [made[split].remark for split in splits if made[split].remark],
        "versions": package_versions(*job.versions),
    }
    write_json(folder / MANIFEST, {**read_manifest(folder), job.name: entry})
    return entry


def lengths(path: Path, tokenizer: Any, limit: int | None) -> dict[str, int]:
    """Measure prompts in tokens, chat template and generation prompt included, as verl counts them.

    Args:
        path: A file in verl's format.
        tokenizer: With a chat template.
        limit: Length from which on verl drops a prompt, if that is to be counted.

    Returns:
        "longest", and with a limit "limit" and "longer", the number of prompts above it.
    """
    counts = [len(prompt_ids(tokenizer, row["prompt"])) for row in open_file(path).read(["prompt"])]
    longer = {} if limit is None else {"limit": limit, "longer": sum(count > limit for count in counts)}
    return {"longest": max(counts), **longer}


def describe(folder: Path, name: str, entry: Mapping[str, Any]) -> list[str]:
    """Describe a data set that was just prepared, from its entry in `prepare.json`, in lines of text."""
    lines = [f"{name}: {_source(entry['request']['source'])}"]
    for made in entry["splits"].values():
        lines.append(f"  {folder / made['file']}: {made['rows']:,} of {made['read']:,} rows")
        lines += [] if made["findings"] else ["    checked, nothing found"]
        for finding in made["findings"]:
            action = "left out" if finding["left_out"] else "kept"
            lines.append(f"    {action:8} {finding['count']:>6,}  {finding['what']}")
            lines += [f"{'':21}{example}" for example in finding["examples"]]
        lines += [f"    {describe_lengths(made['lengths'])}"] if "lengths" in made else []
    return [*lines, *(f"  note: {remark}" for remark in entry["remarks"])]


def describe_lengths(measured: Mapping[str, int]) -> str:
    """Describe the prompts of a file in a line, from what `lengths` returned."""
    line = f"longest prompt {measured['longest']:,} tokens"
    if "limit" in measured:
        line += f"; {measured['longer']:,} prompts are longer than {measured['limit']:,}, which verl drops"
    return line


def usage(folder: Path, jobs: Sequence[Job]) -> list[str]:
    """Say how to train on the files of the jobs in a folder, as Hydra overrides."""
    overrides = []
    for split, key in (("train", "data.train_files"), ("test", "data.val_files")):
        if paths := [str(folder / job.files[split]) for job in jobs if split in job.files]:
            values = [path if _PLAIN.fullmatch(path) else hydra_quoted(path) for path in paths]
            override = f"{key}={values[0] if len(values) == 1 else '[' + ','.join(values) + ']'}"
            overrides.append(override if values == paths else shlex.quote(override))
    lines = ["use: " + " \\\n     ".join(overrides)]
    rewards = list(dict.fromkeys(job.reward for job in jobs))
    if len(rewards) > 1:
        return [*lines, f"     these need different rewards, so different runs: {' and '.join(rewards)}"]
    path = f"reward.custom_reward_function.path=pkg://{rewards[0]}"
    return [*lines, f"     {path} reward.custom_reward_function.name=compute_score"]


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [line for name in names for line in _differences(old.get(name), new.get(name), str(name))]
    # A renamed file is the same data; a hub that could not be asked for its newest commit contradicts nothing.
    if old == new or key == "path" or (key == "revision" and new is None):
        return []
    then, now = (short(json.dumps(value, ensure_ascii=False), 80) for value in (old, new))
    return [f"{key}: {then} then, {now} now"]


def _source(source: Mapping[str, Any]) -> str:
    if "hub" in source:
        config = f", config {source['config']}" if source["config"] else ""
        return f"{source['hub']}{config}, revision {source['revision'] or 'newest in the cache'}"
    if "reasoning_gym" in source:
        settings = " ".join(f"{key}={value}" for key, value in source["settings"].items())
        return f"reasoning-gym {source['reasoning_gym']} {settings}".rstrip()
    return ", ".join(f"{one['path']} (sha256 {one['sha256'][:12]})" for one in source.values())
