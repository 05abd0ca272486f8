"""What must be equal before two runs can be compared: model, data, rollouts, reward, length of training, evaluation.

Everything else, the learning rate included, is a setting that a method may choose; the report lists what differs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MODEL = "actor_rollout_ref.model.path"
FILES = ("data.train_files", "data.val_files")
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
    "reward.custom_reward_function.path",
    "reward.custom_reward_function.name",
    "trainer.total_training_steps",
    "trainer.total_epochs",
)
# One seed of a comparison sets all of them: order of the questions, of the samples in an update, and rollouts.
SEED_KEYS = ("data.seed", "actor_rollout_ref.actor.data_loader_seed", "actor_rollout_ref.rollout.seed")
# Names, places and loggers, which say nothing about how a run learns, and copies of other keys by interpolation.
_INCIDENTAL = (
    *("run.", "hydra.", "ray_kwargs.", "transfer_queue.", "recommended."),
    *("actor_rollout_ref.actor.entropy_control.", "entropy_control.host."),
)
_INCIDENTAL_ENDS = (".path", "_dir", "_files", "_freq", ".logger", ".method", ".experiment_name", ".project_name")
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")

Protocol = dict[str, str]


def protocol_of(config: Mapping[str, Any]) -> Protocol:
    """The protocol of a run with this resolved config; files that are still there are named by their content."""
    flat = dict(flatten(config))
    protocol = {key: str(flat[key]) for key in KEYS if key in flat}
    if flat.get(MODEL):
        protocol[MODEL] = fingerprint(str(flat[MODEL]))
    for key in FILES:
        given = flat.get(key)
        files = given if isinstance(given, list | tuple) else [given] if given else []
        protocol[key] = ", ".join(fingerprint(str(file)) for file in files)
    return protocol


def differences(protocols: Mapping[str, Protocol]) -> list[str]:
    """One line for each part of the protocol in which runs differ, or which is not known of all of them.

    Args:
        protocols: by name of the run.
    """
    unknown = [name for name, protocol in protocols.items() if not protocol]
    lines = [f"the protocol of {', '.join(unknown)} is not known (no run.json, no config beside it)"] if unknown else []
    known = {name: protocol for name, protocol in protocols.items() if protocol}
    for key in sorted({key for protocol in known.values() for key in protocol}):
        by_value: dict[str, list[str]] = {}
        for name, protocol in known.items():
            by_value.setdefault(protocol.get(key, "not recorded"), []).append(name)
        if len(by_value) > 1:
            lines.append(f"{key}: " + "; ".join(f"{value} in {_some(names)}" for value, names in by_value.items()))
    return lines


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a run by dotted key, without its protocol, seeds, names and places."""
    skipped = {*KEYS, *SEED_KEYS, *FILES, MODEL}
    return {
        key: str(value)
        for key, value in flatten(config)
        if key not in skipped and not key.startswith(_INCIDENTAL) and not key.endswith(_INCIDENTAL_ENDS)
    }


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested config as (dotted key, value); lists are leaves."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def fingerprint(path: str) -> str:
    """Name and content hash of a file or model folder; the text itself where there is none, as of a hub's model."""
    given = Path(path).expanduser()
    if given.is_file():
        return f"{given.name} {_sha256([given])}"
    if given.is_dir():
        files = sorted({file for pattern in _WEIGHTS for file in given.glob(pattern)})
        if files:
            return f"{given.resolve().name} {_sha256(files)}"
    return path


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(file.name) + b"\0")
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
