"""Parquet files in verl's format from any reasoning-gym generator.

Columns: `data_source` ("reasoning_gym/<generator>"), `prompt` (chat messages), `ability`, `reward_model`
({"style": "rule", "ground_truth": str}) and `extra_info` ({"split", "index", "entry", "extract"}), of which
`aent_verl.data.tasks.reward.compute_score` needs `entry`, the generator's own record as JSON, and `extract`.
"""

import difflib
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from aent_verl import _util
from aent_verl.data.tasks.reward import DATA_SOURCE_PREFIX, compute_score

QUESTION_ONLY = ({"role": "user", "content": "{question}"},)

# A generator that has not filled a split after this many fresh batches of questions has run out of new ones.
_MAX_ROUNDS = 20
# Generators of problems with many solutions leave `answer` empty; some name one of them here.
_EXAMPLE_ANSWERS = ("possible_answer", "example_correct_answer", "example_answer")


def draw_entries(
    generator: str,
    config: Mapping[str, Any],
    *,
    size: int,
    seed: int,
    stream: str,
    exclude: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Draw entries whose questions are all different and none of which is in `exclude`.

    Generators seed entry `i` with `seed + i`, so neighbouring seeds share nearly all questions. Each stream and round
    therefore gets a seed from a hash of (seed, stream, round).

    Args:
        generator: Name of a reasoning-gym data set, such as "chain_sum".
        config: Its settings, without `seed` and `size`.
        size: Number of entries.
        seed: Seed of the whole data set.
        stream: Name of the split; different streams draw independently.
        exclude: Question texts that must not occur.

    Returns:
        The generator's records: {"question": str, "answer": str, "metadata": dict}.

    Raises:
        ValueError: unknown generator, a setting that it refuses, or fewer distinct questions than asked for.
    """
    seen = set(exclude)
    entries: list[dict[str, Any]] = []
    for round_index in range(_MAX_ROUNDS):
        digest = hashlib.sha256(f"{seed}/{stream}/{round_index}".encode()).digest()
        own_seed = int.from_bytes(digest[:4], "little") >> 1  # 31 bits: some generators pass it on to numpy
        for entry in _create(generator, config, seed=own_seed, size=2 * size):
            if entry["question"] not in seen:
                seen.add(entry["question"])
                entries.append(entry)
                if len(entries) == size:
                    return entries
    raise ValueError(
        f"{generator} with {dict(config)} gave {len(entries)} new distinct questions for {stream!r}, "
        f"{size} were asked for ({len(exclude)} are excluded): ask for fewer or widen the settings"
    )


def build_rows(
    entries: Sequence[Mapping[str, Any]],
    *,
    generator: str,
    split: str,
    chat: Sequence[Mapping[str, str]] = QUESTION_ONLY,
    extract: str = "whole",
) -> list[dict[str, Any]]:
    """Turn entries into rows in verl's format, each checked with its own scorer.

    Args:
        entries: What `draw_entries` returned.
        generator: Name of the generator they came from.
        split: "train" or "validation".
        chat: Messages in whose text the fields of an entry may stand in braces: {question}, {metadata[expression]}.
        extract: Which part of a response is the answer, see `aent_verl.data.tasks.reward`.

    Returns:
        One dict a row, ready for `write_parquet`.

    Raises:
        ValueError: the scorer does not accept the generator's own answer (its record does not survive JSON, or
            `extract` does not suit the answers).
    """
    source = DATA_SOURCE_PREFIX + generator
    rows = []
    for index, entry in enumerate(entries):
        truth = _truth(entry)
        record = json.dumps(entry, sort_keys=True, default=str)
        extra_info = {"split": split, "index": index, "entry": record, "extract": extract}
        if compute_score(source, truth, truth, extra_info)["acc"] != 1.0:
            raise ValueError(
                f"{generator} cannot be used with extract={extract!r}: its scorer does not accept its own answer "
                f"{truth!r} to {entry['question']!r}"
            )
        rows.append(
            {
                "data_source": source,
                "prompt": fill(chat, entry),
                "ability": "reasoning",
                "reward_model": {"style": "rule", "ground_truth": truth},
                "extra_info": extra_info,
            }
        )
    return rows


def write_parquet(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write rows to a parquet file; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def draw_splits(
    generator: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Draw splits with no question in common, and none twice, see `draw_entries`.

    They are drawn in the order of their sizes: no split depends on the size of a later one.
    """
    drawn: dict[str, list[dict[str, Any]]] = {}
    for split, size in sizes.items():
        seen = {entry["question"] for entries in drawn.values() for entry in entries}
        drawn[split] = draw_entries(generator, config, size=size, seed=seed, stream=split, exclude=seen)
    return drawn


def write_splits(
    splits: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path, **form: Any
) -> dict[str, list[dict[str, Any]]]:
    """Write the entries of each split to `<split>.parquet` in a folder, in the form that `build_rows` takes.

    Returns:
        The rows by split.
    """
    rows = {split: build_rows(entries, split=split, **form) for split, entries in splits.items()}
    for split in rows:
        write_parquet(rows[split], folder / f"{split}.parquet")
    return rows


def fill(chat: Sequence[Mapping[str, str]], entry: Mapping[str, Any]) -> list[dict[str, str]]:
    """Fill the fields of an entry into chat messages."""
    return [{"role": message["role"], "content": message["content"].format(**entry)} for message in chat]


def question_of(row: Mapping[str, Any]) -> str:
    """Return the generator's question text of a row in verl's format."""
    return json.loads(row["extra_info"]["entry"])["question"]


def _truth(entry: Mapping[str, Any]) -> str:
    """Return the entry's answer, or an example of one; the scorer has the last word on both."""
    metadata = entry.get("metadata") or {}
    examples = [metadata[name] for name in _EXAMPLE_ANSWERS if metadata.get(name)]
    if entry["answer"] is not None or not examples:
        return str(entry["answer"])
    return examples[0] if isinstance(examples[0], str) else json.dumps(examples[0])


def _create(generator: str, config: Mapping[str, Any], *, seed: int, size: int) -> Any:
    _util.require("data", f"generator {generator!r}", "reasoning_gym")
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if generator not in DATASETS:
        near = difflib.get_close_matches(generator, DATASETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(DATASETS))}"
        raise ValueError(f"reasoning-gym has no generator {generator!r}: {hint}")
    try:
        return reasoning_gym.create_dataset(generator, seed=seed, size=size, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"reasoning-gym refuses generator {generator!r} with {dict(config)}: {error}") from error
