"""What is wrong with a data set: each finding with its count and examples, and what was done about it."""

import functools
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aent_verl.data.prepare.rows import Item, normalise
from aent_verl.data.tasks import math_reward

_EXAMPLES = 3
_NO_ANSWER = {"", "proof", "notfound", "not found", "null", "nan"}
_PAIRS_PER_PROCESS = 256
_MOST_PROCESSES = 16
_WRONG = "-98765.4321"
_NOT_ACCEPTED = "the reward does not accept it"
# One for each thread of a pool, by number; they stay for the next pool.
_verifier = functools.cache(lambda number: math_reward.Verifier())


@dataclass(frozen=True)
class Finding:
    """What is wrong with a number of rows.

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


def check(
    items: Sequence[Item], *, split: str, held_out: Mapping[str, str], keep_unscorable: bool
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
    first_text = {item.problem: item for item in reversed(items)}
    first_key = {item.key: item for item in reversed(items)}
    exact = [item for item in items if first_text[item.problem] is not item]
    similar = [item for item in items if first_text[item.problem] is item is not first_key[item.key]]
    note("the same problem again", exact, training)
    note("the same problem again but for spacing or case", similar, training)
    if training:
        for where in dict.fromkeys(held_out.values()):
            note(f"held out: it is in {where}", [one for one in items if held_out.get(one.key) == where], True)
    reasons = unscorable([item.answer for item in items])
    note(
        "the reward cannot score the ground truth",
        [item for item in items if item.answer in reasons],
        not keep_unscorable,
        lambda item: f"{item.answer!r} ({reasons[item.answer]}): {_problem(item)}",
    )
    return list(items), findings


def sample(items: Sequence[Item], limit: int | None, *, seed: int) -> tuple[list[Item], list[Finding]]:
    """Draw `limit` of the items without replacement, all without a limit; they keep their order.

    Returns:
        The items, and a finding that counts those not drawn.

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


def _conflicts(items: Sequence[Item]) -> list[Item]:
    """Find all copies of the problems that have answers which the reward does not hold equal."""
    groups: dict[str, dict[str, str]] = {}
    for item in items:
        groups.setdefault(item.key, {}).setdefault(normalise(item.answer), item.answer)
    several = ((key, *answers.values()) for key, answers in groups.items())
    pairs = [(key, first, other) for key, first, *others in several for other in others]
    refused = refusals([(first, other) for _, first, other in pairs])
    different = {key for key, first, other in pairs if (first, other) in refused}
    # Copies of one problem next to each other, so that the examples show two answers.
    return sorted((item for item in items if item.key in different), key=lambda item: item.key)


def _problem(item: Item) -> str:
    return f"row {item.index}: {short(item.problem)}"


def _answer(item: Item) -> str:
    return f"row {item.index}: answer {short(item.answer)}"


def _both(item: Item) -> str:
    return f"{_problem(item)} -> {short(item.answer)}"


def short(text: str, length: int = 100) -> str:
    """Cut text to one line of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def unscorable(truths: Sequence[str]) -> dict[str, str]:
    """Find ground truths that the math reward cannot score, and say why.

    Each has to be accepted as its own answer; a wrong number has to be refused, within the time, because a truth such
    as 2^{3000000000} + 1 is accepted at once but costs the reward all its time on any other answer.

    Args:
        truths: Ground truths.

    Raises:
        ImportError: math-verify is not installed.
    """
    probes = [truth for truth in truths if truth != _WRONG]
    reasons = refusals([*((truth, truth) for truth in truths), *((truth, _WRONG) for truth in probes)])
    found = {truth: reasons[truth, truth] for truth in truths if (truth, truth) in reasons}
    for truth in probes:
        on_wrong = reasons.get((truth, _WRONG), f"the reward accepts {_WRONG} for it")
        if truth not in found and on_wrong != _NOT_ACCEPTED:
            found[truth] = on_wrong
    return found


def refusals(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    r"""Find answers that the math reward does not accept, and say why.

    Args:
        pairs: Ground truth and answer; the answer is scored as the response `\boxed{answer}`.

    Returns:
        The pairs that are not accepted, each with the reason.

    Raises:
        ImportError: math-verify is not installed.
    """
    unique = list(dict.fromkeys(pairs))
    if not unique:
        return {}
    processes = min(os.cpu_count() or 1, _MOST_PROCESSES, 1 + len(unique) // _PAIRS_PER_PROCESS)
    with ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(_score, range(processes), [unique[start::processes] for start in range(processes)]))
    reasons = {pair: reason for part in found for pair, reason in part.items()}
    return {pair: reasons[pair] for pair in unique if pair in reasons}


def _score(number: int, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    verifier = _verifier(number)
    verifier.verify("\\boxed{1}", "1")  # starts its process, which is not the first answer's time
    reasons = {}
    for truth, answer in pairs:
        start = time.monotonic()
        correct, understood = verifier.verify(f"\\boxed{{{answer}}}", truth)
        if correct != 1.0:
            # A process that had to be restarted may take as long as an endless answer, but it does understand.
            slow = not understood and time.monotonic() - start >= math_reward.SECONDS
            why = _NOT_ACCEPTED if understood else "the reward can make nothing of it"
            reasons[truth, answer] = f"the reward takes more than {math_reward.SECONDS} s" if slow else why
    return reasons
