"""One JSON file of what a machine showed, filled by `make test-gpu` and `make bench`; needs torch alone.

Its sections stand next to the machine that they were measured on, so a file of another machine, version or commit is
not added to but replaced.
"""

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from aent_verl import __version__

_ROOT = Path(__file__).parents[1]


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} cores, {names[0]}" if names else platform.processor()


def no_gpu() -> str:
    """Why there is nothing to test, and what to do, in one line."""
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return (
        f"no GPU: torch {torch.__version__} of {sys.executable}, {build}, finds no CUDA device; nothing was tested. "
        "PYTHON=/path/to/python is another interpreter, ARGS='--on cpu' a rehearsal at small sizes"
    )


def environment(device: str) -> dict[str, Any]:
    """Device, versions and commit: equal if and only if numbers may stand side by side."""
    found: dict[str, Any] = {"device": processor()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found = {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "host": processor(),
        }
    return found | {
        "python": platform.python_version(),
        **{name: version(name) for name in ("triton", "verl", "flash-attn")},
        "torch": torch.__version__,
        "aent-verl": __version__,
        "commit": _commit(),
    }


def _driver() -> str | None:
    module = Path("/sys/module/nvidia/version")
    if module.exists():
        return module.read_text().strip()
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")


def _commit() -> str | None:
    commit = _output("git", "-C", str(_ROOT), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}, changed" if commit and changed else commit


def _output(*command: str) -> str | None:
    """What a program prints; None without it, or if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def save(file: Path, device: str, section: str, data: dict[str, Any]) -> None:
    """Put ``data`` into the file as its ``section``, beside the other sections of this machine and commit."""
    here = environment(device)
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    if known.get("environment") != here:
        known = {}
    known |= {"environment": here, section: {"date": now(), **data}}
    file.parent.mkdir(parents=True, exist_ok=True)
    # Written beside it first: whoever stops the program must not lose what is there.
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(known, indent=1, default=vars) + "\n")
    os.replace(part, file)
