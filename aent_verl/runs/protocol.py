"""What must be equal before two runs can be compared: model, data, rollouts, reward, length of training, evaluation.

Everything else, the learning rate included, is a setting that a method may choose; the report lists what differs.
"""

import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from aent_verl._util import file_sha256, first_few

MODEL = "actor_rollout_ref.model.path"
FILES = ("data.train_files", "data.val_files")
# Files of code: a path, or verl's pkg://package.module.
CODE = ("reward.custom_reward_function.path", "data.custom_cls.path")
STEPS, EPOCHS = "trainer.total_training_steps", "trainer.total_epochs"
# Where verl's config says it.
KEYS = (
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.rollout.top_p",
    "actor_rollout_ref.rollout.top_k",
    "actor_rollout_ref.rollout.val_kwargs.n",
    "actor_rollout_ref.rollout.val_kwargs.do_sample",
    "actor_rollout_ref.rollout.val_kwargs.temperature",
    "actor_rollout_ref.rollout.val_kwargs.top_p",
    "actor_rollout_ref.rollout.val_kwargs.top_k",
    "algorithm.adv_estimator",
    "algorithm.norm_adv_by_std_in_grpo",
    "algorithm.use_kl_in_reward",
    "actor_rollout_ref.actor.use_kl_loss",
    "reward.custom_reward_function.name",
    STEPS,
    EPOCHS,
)
# Only where they do something, so that a version of verl that does not know one of them differs in nothing.
OPTIONAL = (
    "data.train_max_samples",
    "data.val_max_samples",
    "data.filter_overlong_prompts",
    "actor_rollout_ref.model.custom_chat_template",
)
_OFF = (None, "", -1, False)
# Blocks that take any key.
_BLOCKS = ("data.apply_chat_template_kwargs.", "reward.custom_reward_function.reward_kwargs.")
# One seed of a comparison sets all of them: order of the questions, of the samples in an update, and rollouts.
SEED_KEYS = ("data.seed", "actor_rollout_ref.actor.data_loader_seed", "actor_rollout_ref.rollout.seed")
# Names, places and loggers, which say nothing about how a run learns, and copies of other keys by interpolation.
_INCIDENTAL = (
    *("run.", "hydra.", "ray_kwargs.", "transfer_queue.", "recommended."),
    *("actor_rollout_ref.actor.entropy_control.", "entropy_control.host."),
)
_INCIDENTAL_ENDS = (".path", "_dir", "_files", "_freq", ".logger", ".method", ".experiment_name", ".project_name")
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")
_HASH = 12
# A name before the hash of its content.
_NAME = re.compile(rf"(?:^|(?<=, ))[^,]* (?=[0-9a-f]{{{_HASH}}}(?:, |$))")
# Longer texts, as chat templates, are shown by their beginning.
_LONGEST = 80
# Nanoseconds; a file that was written just now may be written again without another time of change.
_SETTLED = 2_000_000_000

Protocol = dict[str, str]
NOT_RECORDED = "not recorded"


def protocol_of(config: Mapping[str, Any]) -> Protocol:
    """Return the protocol of a run with this resolved config; files that are still there are named by their content."""
    flat = dict(flatten(config))
    protocol = {key: str(flat[key]) for key in KEYS if key in flat}
    protocol |= {key: shortened(str(flat[key])) for key in OPTIONAL if flat.get(key) not in _OFF}
    protocol |= {key: shortened(str(value)) for key, value in flat.items() if key.startswith(_BLOCKS)}
    protocol |= {key: fingerprint(str(flat[key])) for key in (MODEL, *CODE) if flat.get(key)}
    return protocol | {key: fingerprint_all(flat.get(key)) for key in FILES}


def differences(protocols: Mapping[str, Protocol]) -> list[str]:
    """Write one line for each part of the protocol in which runs differ, or which is not known of all of them.

    Files are the same if their content is, whatever their names. Epochs do not count where all runs have their steps.

    Args:
        protocols: by name of the run.
    """
    unknown = [name for name, protocol in protocols.items() if not protocol]
    lines = [f"the protocol of {', '.join(unknown)} is not known (no run.json, no config there)"] if unknown else []
    known = {name: protocol for name, protocol in protocols.items() if protocol}
    keys = {key for protocol in known.values() for key in protocol}
    if all(protocol.get(STEPS, "None") != "None" for protocol in known.values()):
        keys.discard(EPOCHS)
    for key in sorted(keys):
        found = by_value(known, key)
        if len(found) > 1:
            lines.append(f"{key}: " + "; ".join(f"{value} in {first_few(names, 3)}" for value, names in found.items()))
    return lines


def by_value(protocols: Mapping[str, Protocol], key: str) -> dict[str, list[str]]:
    """Group the names of runs by their value of a key; `NOT_RECORDED` where a run has none.

    Copies of a file under several names are one value, under the first name.
    """
    shown: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for name, protocol in protocols.items():
        value = protocol.get(key, NOT_RECORDED)
        found.setdefault(shown.setdefault(_NAME.sub("", value), value), []).append(name)
    return found


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a run by dotted key, without its protocol, seeds, names and places."""
    skipped = {*KEYS, *OPTIONAL, *SEED_KEYS, *FILES, *CODE, MODEL}
    return {
        key: str(value)
        for key, value in flatten(config)
        if key not in skipped and not key.startswith((*_INCIDENTAL, *_BLOCKS)) and not key.endswith(_INCIDENTAL_ENDS)
    }


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nested config as (dotted key, value); lists are leaves."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def fingerprint(path: str) -> str:
    """Name a file or model folder with its content hash; the text itself where there is none, as on a hub."""
    given = Path(path.removeprefix("file://")).expanduser()
    if given.is_file():
        return f"{given.name} {_content(given)[:_HASH]}"
    if files := sorted({file for pattern in _WEIGHTS for file in given.glob(pattern)}):
        listed = "".join(f"{_content(file)} {file.relative_to(given)}\n" for file in files)
        return f"{given.resolve().name} {_sha256(listed)}"
    return path


def fingerprint_all(value: str | Sequence[str] | None) -> str:
    """Join the fingerprints of a file or of several, in their order."""
    files = value if isinstance(value, list | tuple) else [value] if value else []
    return ", ".join(fingerprint(str(file)) for file in files)


def shortened(text: str) -> str:
    """Put a text in one line; a long one as its beginning and the hash of all of it."""
    line = " ".join(text.split())
    return line if line == text and len(text) <= _LONGEST else f"{line[: _LONGEST // 2]}... {_sha256(text)}"


def _content(file: Path) -> str:
    """Hash a file's content, read once in a process while it stays the same."""
    stat = file.stat()
    if time.time_ns() - stat.st_mtime_ns < _SETTLED:
        return file_sha256(file)
    return _cached_content(file.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _cached_content(file: Path, size: int, changed: int) -> str:
    return file_sha256(file)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
