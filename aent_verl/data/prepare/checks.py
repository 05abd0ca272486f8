"""What is wrong with a data set: each finding with its number and examples, and what was done about it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aent_verl.data.prepare import scoring
from aent_verl.data.prepare.rows import Item, normalise

_EXAMPLES = 3
_NO_ANSWER = {"", "proof", "notfound", "not found", "null", "nan"}


@dataclass(frozen=True)
class Finding:
    """Something about a number of rows.

    Attributes:
        what: In words.
        count: How many rows.
        left_out: Whether they are missing from the output.
        examples: A few of them.
    """

    what: str
    count: int
    left_out: bool
    examples: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def check(
    items: Sequence[Item],
    *,
    split: str,
    held_out: Mapping[str, str],
    keep_unscorable: bool,
) -> tuple[list[Item], list[Finding]]:
    """Leave out what would spoil a run, and say so.

    A training split loses repeats, problems whose copies have different answers (all copies: nothing says which one is
    right), and problems that are held out. A test split keeps repeats, so that it stays the published one. Both lose
    rows without problem or answer, and answers that the reward cannot score.

    Args:
        items: The split as read.
        split: "train" or "test".
        held_out: Normalised problems that must not be trained on, each with the name of where it occurs.
        keep_unscorable: Only report answers that cannot be scored.

    Returns:
        The items that are left, in their order, and the findings; those that count no row are not among them.

    Raises:
        ImportError: math-verify is not installed.
    """
    training = split == "train"
    findings = []

    def note(what: str, found: Sequence[Item], left_out: bool, show: Callable[[Item], str] = _problem) -> None:
        nonlocal items
        if found:
            findings.append(Finding(what, len(found), left_out, [show(item) for item in found[:_EXAMPLES]]))
        if left_out:
            gone = {item.index for item in found}
            items = [item for item in items if item.index not in gone]

    note("no problem text", [item for item in items if not item.problem], True, _answer)
    note("no answer", [item for item in items if item.answer.casefold() in _NO_ANSWER], True)
    note("the same problem with different answers", _conflicts(items), training, _both)
    exact, similar = _repeats(items)
    note("the same problem again", exact, training)
    note("the same problem again but for spacing or case", similar, training)
    if training:
        for where in dict.fromkeys(held_out.values()):
            note(f"held out: it is in {where}", [one for one in items if held_out.get(one.key) == where], True)
    reasons = scoring.unscorable([item.answer for item in items])
    note(
        "the reward cannot score the ground truth",
        [item for item in items if item.answer in reasons],
        not keep_unscorable,
        lambda item: f"{item.answer!r} ({reasons[item.answer]}): {_problem(item)}",
    )
    return list(items), findings


def sample(items: Sequence[Item], limit: int | None, *, seed: int) -> tuple[list[Item], list[Finding]]:
    """`limit` of the items, drawn without replacement, in their order, and how many were not drawn.

    Without a limit, all of them.

    Raises:
        ValueError: there are fewer.
    """
    if limit is None or limit == len(items):
        return list(items), []
    if limit > len(items):
        raise ValueError(f"--limit {limit}: only {len(items)} problems are left after the checks; ask for at most that")
    chosen = sorted(random.Random(seed).sample(range(len(items)), limit))
    rest = Finding(f"not drawn (--limit {limit} --seed {seed})", len(items) - limit, True, [])
    return [items[position] for position in chosen], [rest]


def _repeats(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Every copy but the first: those with the same text, and those with the same key only."""
    texts, keys = set(), set()
    exact, similar = [], []
    for item in items:
        if item.problem in texts:
            exact.append(item)
        elif item.key in keys:
            similar.append(item)
        texts.add(item.problem)
        keys.add(item.key)
    return exact, similar


def _conflicts(items: Sequence[Item]) -> list[Item]:
    """All copies of the problems that have answers which the reward does not hold equal."""
    groups: dict[str, dict[str, str]] = {}
    for item in items:
        groups.setdefault(item.key, {}).setdefault(normalise(item.answer), item.answer)
    several = {key: list(answers.values()) for key, answers in groups.items() if len(answers) > 1}
    refused = scoring.refusals([(first, other) for first, *others in several.values() for other in others])
    different = {key for key, (first, *others) in several.items() if any((first, other) in refused for other in others)}
    # Copies of one problem beside each other, so that the examples show two answers.
    found = [item for item in items if item.key in different]
    return sorted(found, key=lambda item: item.key)


def _problem(item: Item) -> str:
    return f"row {item.index}: {short(item.problem)}"


def _answer(item: Item) -> str:
    return f"row {item.index}: answer {short(item.answer)}"


def _both(item: Item) -> str:
    return f"row {item.index}: {short(item.problem)} -> {short(item.answer)}"


def short(text: str, length: int = 100) -> str:
    """One line of text, cut."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
