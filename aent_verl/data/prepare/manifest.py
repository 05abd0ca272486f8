"""`prepare.json`, which says of each data set in a folder what it was made from, how, and what was found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aent_verl._util import write_json
from aent_verl.data.prepare.sources import sha256

NAME = "prepare.json"


def read(folder: Path) -> dict[str, Any]:
    """What was prepared in the folder, by name; empty when nothing was.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); remove it, or name another --output") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not ours; name another --output")
    return found


def write(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Add or replace the entry of a data set."""
    write_json(folder / NAME, {**read(folder), name: entry})


def is_done(folder: Path, name: str, request: Mapping[str, Any], files: list[str]) -> bool:
    """Whether the folder holds this data set made by this request, its files unchanged.

    Args:
        folder: The output folder.
        name: The data set.
        request: Everything that decides the output, as plain JSON values. A revision of None, when the hub could not
            be asked for its newest, agrees with any; so do paths, whose contents have hashes.
        files: What the request writes.

    Raises:
        ValueError: it holds these files, but not made so; the message says what differs.
    """
    entry = read(folder).get(name)
    if entry is None:
        present = [file for file in files if (folder / file).exists()]
        if present:
            _refuse(folder, present, f"{NAME} does not know them")
        return False
    changed = [file for file, known in entry["files"].items() if not _is(folder / file, known["sha256"])]
    if changed:
        _refuse(folder, list(entry["files"]), f"{', '.join(changed)} changed or went missing since")
    request = json.loads(json.dumps(request))
    differences = _differences(entry["request"], request)
    if differences:
        _refuse(folder, list(entry["files"]), f"made differently ({'; '.join(differences)})")
    return True


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _refuse(folder: Path, files: list[str], why: str) -> None:
    raise ValueError(
        f"{folder} already has {', '.join(files)}: {why}. Nothing was changed: name another --output, or add "
        "--overwrite to replace them"
    )


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [line for name in names for line in _differences(old.get(name), new.get(name), str(name))]
    # A renamed file is the same data; a hub that could not be asked for its newest commit contradicts nothing.
    if old == new or key == "path" or (key == "revision" and new is None):
        return []
    return [f"{key}: {_short(old)} then, {_short(new)} now"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
