"""Build a set of files once: a manifest says what a cache holds, and a killed build leaves no half-done result.

The manifest is also the mark of ownership: files in the way without one belong to someone else and are never
overwritten.
"""

import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aent_verl._util import locked, read_json, require, write_json
from aent_verl._version import __version__

MANIFEST = "manifest.json"
_BUILD_FOLDER = ".build"


def build_task(
    cache: str | Path,
    label: str,
    *,
    recipe: int,
    settings: Mapping[str, Any],
    files: Sequence[str],
    build: Callable[[Path], Mapping[str, Any]],
    packages: Sequence[str] = (),
) -> tuple[dict[str, str], dict[str, Any]]:
    """Make sure that `cache` holds a task's files, built from these settings and versions; prints one line.

    Args:
        cache: Folder, created when absent. Anything in it that is not one of `files` is left alone.
        label: The task's name.
        recipe: Raised when the code builds something else from the same settings: caches made before are then rebuilt.
        settings: Everything else that decides the result, as plain JSON values.
        files: Names of the files and folders that `build` creates.
        build: Fills the empty folder that it is given; what it returns (plain JSON) is kept in the manifest.
        packages: Distributions whose versions decide the result, other than those of every task.

    Returns:
        The path of each of `files` by its name without suffix, and what `build` returned, now or when the cache was
        built.

    Raises:
        ImportError: the extra `data` is not installed.
        ValueError: one of `files` exists in `cache` and was not built by this function.
    """
    require("data", f"the {label} task")
    versions = package_versions("reasoning-gym", "torch", "transformers", "pyarrow", *packages)
    task = {"task": label.lower(), "recipe": recipe, "settings": settings, "versions": versions}
    identity = json.loads(json.dumps(task))
    folder = Path(cache).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {Path(name).stem: str(folder / name) for name in files}
    start = time.monotonic()
    with locked(folder / ".lock"):
        shutil.rmtree(folder / _BUILD_FOLDER, ignore_errors=True)  # left by a killed build
        manifest = read_json(folder / MANIFEST, "remove it and the files next to it") or {}
        present = [name for name in files if (folder / name).exists()]
        if manifest.get("complete") and manifest.get("recipe") == identity and len(present) == len(files):
            print(f"{label} task: using {folder}", flush=True)
            return paths, manifest["result"]
        if present and not manifest:
            raise ValueError(
                f"cache={folder}: has {', '.join(present)} but no {MANIFEST}, so it is not our cache, and nothing "
                "in it was changed; name another folder, or remove these files"
            )
        result = _build(folder, identity, files, build)
    reason = "rebuilt (settings, versions or files changed)" if manifest else "built"
    print(f"{label} task: {reason} {folder} in {time.monotonic() - start:.0f} s", flush=True)
    return paths, result


def package_versions(*distributions: str) -> dict[str, str]:
    """Return installed versions by distribution, this one included, for a manifest."""
    return {"aent-verl": __version__} | {name: importlib.metadata.version(name) for name in distributions}


def _build(
    folder: Path, recipe: Mapping[str, Any], files: Sequence[str], build: Callable[[Path], Mapping[str, Any]]
) -> dict[str, Any]:
    workspace = folder / _BUILD_FOLDER
    workspace.mkdir()
    try:
        result = json.loads(json.dumps(build(workspace)))
        missing = [name for name in files if not (workspace / name).exists()]
        assert not missing, f"build did not create {missing}"
        # From here until the last line the folder is neither the old result nor the new one, and says so.
        write_json(folder / MANIFEST, {"complete": False})
        for name in files:
            old = folder / name
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink(missing_ok=True)
            os.replace(workspace / name, old)
        write_json(folder / MANIFEST, {"complete": True, "recipe": recipe, "result": result})
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return result
