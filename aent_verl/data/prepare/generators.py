"""Splits from a reasoning-gym generator, for its own scorer, `aent_verl.data.tasks.reward`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml

from aent_verl.data.prepare.checks import Finding, short
from aent_verl.data.prepare.rows import normalise
from aent_verl.data.prepare.sources import Row
from aent_verl.data.tasks import reasoning_gym_data

PREFIX = "reasoning-gym:"


def settings(words: Sequence[str]) -> dict[str, Any]:
    """A generator's settings from words such as "min_numbers=3", the value read as YAML.

    Raises:
        ValueError: a word without "=", or a value that is not YAML.
    """
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ValueError(f"{word!r}: a generator's settings are written NAME=VALUE, as in max_numbers=4")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{word!r}: the value is not YAML ({error})") from error
    return found


def build(
    generator: str,
    config: Mapping[str, Any],
    *,
    sizes: Mapping[str, int],
    seed: int,
    extract: str,
    instruction: str,
    system: str | None,
    held_out: Collection[str],
) -> tuple[dict[str, list[Row]], list[Finding]]:
    """Draw splits that share no question, test first, so that it does not depend on the size of the training split.

    Args:
        generator: Name of a generator.
        config: Its settings, without `seed` and `size`.
        sizes: Rows of each split, "train" and "test".
        seed: Decides the questions.
        extract: Which part of a response is the answer, see `aent_verl.data.tasks.reward`.
        instruction: Put after each question.
        system: System message, if any.
        held_out: Normalised questions that must not be in the training split.

    Returns:
        Rows in verl's format by split, none for a size of 0, and how many training questions were held out.

    Raises:
        ValueError: unknown generator, a setting that it refuses, or too few questions.
    """
    user = {"role": "user", "content": "{question}" + _literal(instruction)}
    chat = [{"role": "system", "content": _literal(system)}, user] if system else [user]
    seen: set[str] = set()
    rows, findings = {}, []
    for split in ("test", "train"):
        if not sizes[split]:
            continue
        entries = reasoning_gym_data.draw_entries(
            generator, config, size=sizes[split], seed=seed, stream=split, exclude=seen
        )
        seen |= reasoning_gym_data.questions(entries)
        lost = [one for one in entries if split == "train" and normalise(one["question"]) in held_out]
        if lost:
            entries = [one for one in entries if one not in lost]
            findings = [Finding("held out: it is in a test split", len(lost), True, [short(lost[0]["question"])])]
        rows[split] = reasoning_gym_data.build_rows(
            entries, generator=generator, split=split, chat=chat, extract=extract
        )
    return rows, findings


def _literal(text: str) -> str:
    """Braces that `str.format` gives back as they are."""
    return text.replace("{", "{{").replace("}", "}}")
