"""From rows as published to problems with one answer each, and from those to rows in verl's format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aent_verl.data.prepare.sources import Row, Rows
from aent_verl.data.prepare.table import DAPO_WRAPPING

INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."

# Instructions of verl's own data scripts, which a file given with --against may carry.
_OTHER_INSTRUCTIONS = (
    " Let's think step by step and output the final answer within \\boxed{}.",
    ' Let\'s think step by step and output the final answer after "####".',
)
_SPACING = re.compile(r"\\(?:[,;:!> ]|quad\b|qquad\b|thinspace\b|left(?![a-zA-Z])|right(?![a-zA-Z]))|~")
_LOOSE_SPACE = re.compile(r"(?<!\w) | (?!\w)")


@dataclass(frozen=True)
class Item:
    """A problem with its answer.

    Attributes:
        index: Row of the source, from 0.
        problem: Its text.
        answer: The ground truth, "" where the row has none.
        key: The text as `normalise` leaves it: two items with the same key are the same problem.
    """

    index: int
    problem: str
    answer: str
    key: str


@dataclass(frozen=True)
class Columns:
    """How a row becomes an item; see `aent_verl.data.prepare.table.DataSet` for the meaning of each field."""

    problem: str
    answer: str
    extract: Callable[[Any], str]
    keep: Mapping[str, Any] = field(default_factory=dict)
    unwrap: tuple[str, str] = ("", "")


def normalise(text: str) -> str:
    r"""Text without what does not tell problems apart: case, whitespace, LaTeX spacing, `\left`, `\right`, `\dfrac`."""
    text = _SPACING.sub(" ", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    return _LOOSE_SPACE.sub("", " ".join(text.casefold().split()))


def read_items(rows: Rows, columns: Columns, *, where: str, hint: str) -> tuple[list[Item], int]:
    """Read a split.

    Args:
        rows: The opened split.
        columns: How a row becomes an item.
        where: Names the split in errors.
        hint: What to do about columns that are not there.

    Returns:
        The items, and how many rows there were: those that `columns.keep` leaves out have no item.

    Raises:
        ValueError: a column that is not there, a split without rows, or an answer that is a record.
    """
    wanted = [columns.problem, columns.answer, *columns.keep]
    top = list(dict.fromkeys(name if name in rows.columns else name.split(".")[0] for name in wanted))
    missing = [name for name in top if name not in rows.columns]
    if missing:
        raise ValueError(
            f"{where} has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, rows.columns))}. {hint}"
        )
    texts: dict[str, tuple[str, str]] = {}  # published sets repeat problems a hundred times: one copy of each
    items, count = [], 0
    for index, row in enumerate(rows.read(top)):
        count += 1
        if any(value_of(row, column) != value for column, value in columns.keep.items()):
            continue
        problem = _unwrapped(text_of(value_of(row, columns.problem)), columns.unwrap)
        problem, key = texts.setdefault(problem, (problem, normalise(problem)))
        items.append(Item(index, problem, _answer(row, columns, index, where), key))
    if not count:
        raise ValueError(f"{where} has no rows")
    return items, count


def _answer(row: Row, columns: Columns, index: int, where: str) -> str:
    try:
        return columns.extract(value_of(row, columns.answer))
    except TypeError as error:
        raise ValueError(
            f"{where}, row {index}: the answer in column {columns.answer!r} is or holds {error}; expected text, a "
            f"number or a list of them. Name a field of a record with --answer {columns.answer}.FIELD, or convert the "
            "column"
        ) from error


def value_of(row: Row, name: str) -> Any:
    """The value of a column; where no column has that name, a dot leads into a nested record."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def text_of(value: Any) -> str:
    """The text of a problem: text itself, or the last user message of a chat; "" for anything else."""
    if isinstance(value, str):
        return value.strip()
    messages = value if isinstance(value, list) else []
    users = [one for one in messages if isinstance(one, Mapping) and one.get("role") == "user"]
    return text_of(users[-1].get("content")) if users else ""


def math_row(item: Item, *, name: str, split: str, instruction: str, system: str | None) -> Row:
    """A row in verl's format, to be scored by `aent_verl.data.tasks.math_reward`."""
    prompt = [{"role": "user", "content": item.problem + instruction}]
    return {
        "data_source": name,
        "prompt": [{"role": "system", "content": system}, *prompt] if system else prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": item.answer},
        "extra_info": {"split": split, "index": item.index, "problem": item.problem},
    }


def keys_of(rows: Rows, *, where: str, instruction: str) -> Iterator[str]:
    """Normalised problems of any file in verl's format, or with a column "problem" or "question".

    Args:
        rows: The opened file.
        where: Names it in errors.
        instruction: A suffix of prompts that does not belong to the problem.

    Raises:
        ValueError: no column that could hold problems.
    """
    known = [name for name in ("extra_info", "prompt", "problem", "question") if name in rows.columns]
    if not set(known) - {"extra_info"}:
        raise ValueError(
            f"{where} has no column 'prompt', 'problem' or 'question'; its columns are "
            f"{', '.join(map(repr, rows.columns))}"
        )
    suffixes = [suffix for suffix in (instruction, INSTRUCTION, *_OTHER_INSTRUCTIONS) if suffix]
    for row in rows.read(known):
        yield normalise(_problem_of(row, suffixes))


def _problem_of(row: Row, suffixes: Sequence[str]) -> str:
    extra = row.get("extra_info") or {}
    if isinstance(extra.get("problem"), str):
        return extra["problem"]
    if isinstance(extra.get("entry"), str):  # reasoning-gym's record
        return json.loads(extra["entry"])["question"]
    text = next((text_of(row[name]) for name in ("problem", "question", "prompt") if row.get(name)), "")
    for suffix in suffixes:
        text = text.removesuffix(suffix.rstrip())
    return _unwrapped(text, DAPO_WRAPPING)


def _unwrapped(text: str, wrapping: tuple[str, str]) -> str:
    before, after = wrapping
    return text.removeprefix(before).removesuffix(after).strip()
