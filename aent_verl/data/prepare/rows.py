"""From rows as published to problems with one answer each, and from those to rows in verl's format."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aent_verl.data.prepare.sources import Row, Rows
from aent_verl.data.prepare.table import DataSet, data_sets

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


def normalise(text: str) -> str:
    r"""Drop what does not distinguish problems: case, whitespace, LaTeX spacing, `\left`, `\right`, `\dfrac`."""
    text = _SPACING.sub(" ", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    return _LOOSE_SPACE.sub("", " ".join(text.casefold().split()))


def read_items(rows: Rows, entry: DataSet, *, where: str) -> tuple[list[Item], int]:
    """Read the problems and answers of a split.

    Args:
        rows: The opened split.
        entry: Says which columns count and what becomes of their values.
        where: Names the split in errors.

    Returns:
        The items, and how many rows there were: those that `entry.keep` leaves out have no item.

    Raises:
        ValueError: a column that is not there, a split without rows, or an answer that is a record.
    """
    wanted = [entry.problem, entry.answer, *entry.keep]
    top = list(dict.fromkeys(name if name in rows.columns else name.split(".")[0] for name in wanted))
    if missing := [name for name in top if name not in rows.columns]:
        raise ValueError(
            f"{where} has no column {_quoted(missing)}; its columns are {_quoted(rows.columns)}. Name the right ones "
            "with --problem COLUMN and --answer COLUMN; a dot leads into a nested record"
        )
    texts: dict[str, tuple[str, str]] = {}  # published sets repeat problems a hundred times: one copy of each
    items, index = [], -1
    for index, row in enumerate(rows.read(top)):
        if any(_value(row, column) != value for column, value in entry.keep.items()):
            continue
        problem = _unwrapped(_text(_value(row, entry.problem)), entry.unwrap)
        problem, key = texts.setdefault(problem, (problem, normalise(problem)))
        try:
            answer = entry.extract(_value(row, entry.answer))
        except TypeError as error:
            raise ValueError(
                f"{where}, row {index}: the answer in column {entry.answer!r} is or holds {error}, not text, a number "
                f"or a list of them; name a field of a record, --answer {entry.answer}.FIELD, or convert the column"
            ) from error
        items.append(Item(index, problem, answer, key))
    if index < 0:
        raise ValueError(f"{where} has no rows")
    return items, index + 1


def math_row(item: Item, *, name: str, split: str, instruction: str, system: str | None) -> Row:
    """Make a row in verl's format, to be scored by `aent_verl.data.tasks.math_reward`."""
    prompt = [{"role": "user", "content": item.problem + instruction}]
    return {
        "data_source": name,
        "prompt": [{"role": "system", "content": system}, *prompt] if system else prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": item.answer},
        "extra_info": {"split": split, "index": item.index, "problem": item.problem},
    }


def keys_of(rows: Rows, *, where: str, instruction: str) -> Iterator[str]:
    """Yield the normalised problems of any file in verl's format, or with a column "problem" or "question".

    Args:
        rows: The opened file.
        where: Names it in errors.
        instruction: A suffix of prompts that does not belong to the problem.

    Raises:
        ValueError: no column that could hold problems.
    """
    known = [name for name in ("extra_info", "prompt", "problem", "question") if name in rows.columns]
    if not set(known) - {"extra_info"}:
        columns = _quoted(rows.columns)
        raise ValueError(f"{where} has no column 'prompt', 'problem' or 'question'; its columns are {columns}")
    suffixes = [suffix.rstrip() for suffix in (instruction, INSTRUCTION, *_OTHER_INSTRUCTIONS)]
    wrapping = data_sets()["dapo-math-17k"].unwrap
    for row in rows.read(known):
        extra = row.get("extra_info") or {}
        if isinstance(extra.get("problem"), str):
            problem = extra["problem"]
        elif isinstance(extra.get("entry"), str):  # reasoning-gym's record
            problem = json.loads(extra["entry"])["question"]
        else:
            problem = next((_text(row[name]) for name in ("problem", "question", "prompt") if row.get(name)), "")
            for suffix in suffixes:
                problem = problem.removesuffix(suffix)
            problem = _unwrapped(problem, wrapping)
        yield normalise(problem)


def _value(row: Row, name: str) -> Any:
    """Return the value of a column; where no column has that name, a dot leads into a nested record."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    """Return the text of a problem: text itself, or the last user message of a chat; "" for anything else."""
    if isinstance(value, str):
        return value.strip()
    messages = value if isinstance(value, list) else []
    users = [one for one in messages if isinstance(one, Mapping) and one.get("role") == "user"]
    return _text(users[-1].get("content")) if users else ""


def _unwrapped(text: str, wrapping: Sequence[str]) -> str:
    before, after = wrapping
    return text.removeprefix(before).removesuffix(after).strip()


def _quoted(columns: list[str]) -> str:
    return ", ".join(map(repr, columns))
