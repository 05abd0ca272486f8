r"""Countdown: combine all given numbers to reach a target. A tiny model starts with a few right plans among many wrong.

    prepare(cache=".aent_cache/countdown")

Problems are those of reasoning-gym's `countdown` and are scored by its scorer. The prompt is "[7, 3, 4] -> 25". A
response works step by step and ends with the expression, which alone is scored: "7*3=21 21+4=25\n7*3+4". The reward is
1 or 0 and says nothing about where a plan went wrong; most problems have several right answers.

The warm start learns from random derivations, good plans and roundabout ones alike: it is right in one attempt of five,
and on four problems of five in at least one attempt of sixteen. There are few training problems, repeated many
times, as in long runs: GRPO then becomes sure of itself on them and stops exploring.
"""

import functools
from collections.abc import Collection, Mapping
from itertools import combinations, combinations_with_replacement
from operator import add, mul, sub
from pathlib import Path
from random import Random
from typing import Any

from aent_verl.data.tasks import cache as caches
from aent_verl.data.tasks import reasoning_gym_data, warm_start

GENERATOR = "countdown"
CHAT = ({"role": "user", "content": "{metadata[numbers]} -> {metadata[target]}"},)
MAX_RESPONSE_TOKENS = 40
SAMPLES = 16

# Raise this when the code builds something else from the same settings: caches made before are then rebuilt.
_RECIPE = 1
_OPERATIONS = {"+": add, "-": sub, "*": mul}
_SUM, _PRODUCT, _NUMBER = range(3)

Problem = tuple[tuple[int, ...], int]
Term = tuple[str, int]  # an expression, and how tightly it holds together


def prepare(
    cache: str,
    *,
    train_size: int = 128,
    validation_size: int = 128,
    test_size: int = 256,
    numbers: int = 3,
    max_value: int = 9,
    min_target: int = 1,
    max_target: int = 99,
    hidden_size: int = 128,
    layers: int = 2,
    warm_start_pairs: int = 40000,
    warm_start_loss: float = 0.37,
    warm_start_label_smoothing: float = 0.02,
    warm_start_max_steps: int = 1000,
    warm_start_batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> dict[str, Any]:
    """Build the data and the warm-started model once; later calls with the same settings return immediately.

    Args:
        cache: Folder for `train.parquet`, `validation.parquet`, `test.parquet`, `model/`, the manifest and what was
            measured.
        train_size: Problems to train on; fewer of them, repeated more often, make the entropy fall further. No two
            problems of all three files differ only in the order of their numbers.
        validation_size: Problems for curves and tuning; neither these nor the test problems are in the warm start.
        test_size: Problems for the final evaluation.
        numbers: How many numbers a problem gives, 2 to 4.
        max_value: The largest of them.
        min_target: Smallest number to reach.
        max_target: Largest.
        hidden_size: Width of the model, a multiple of 64.
        layers: Its decoder layers.
        warm_start_pairs: Derivations that the model learns from.
        warm_start_loss: Smoothed cross-entropy of response tokens (nats) at which the supervised phase ends. Its floor
            is the entropy of the smoothed target, 0.21 nats by default, and of what derivations leave to chance.
        warm_start_label_smoothing: Share of each target spread over the vocabulary, in [0, 1): a long tail of tokens
            that are never right, as large vocabularies have it.
        warm_start_max_steps: Where it ends at the latest.
        warm_start_batch_size: Derivations per update.
        learning_rate: Of the supervised phase.
        seed: Decides problems, weights and order.

    Returns:
        Paths "train", "validation", "test", "model", and "warm_start": "accuracy", "solved" (share with a right answer
        among 16), "entropy" (nats per token) and "response_tokens" on validation problems at temperature 1,
        "prompt_tokens_max", "steps", "loss".

    Raises:
        ImportError: the extra `data` is not installed.
        ValueError: a setting out of range, more problems than there are, or `cache` holds files of that name that we
            did not make.
    """
    settings = {name: value for name, value in locals().items() if name != "cache"}
    lowest = dict.fromkeys(("train_size", "validation_size", "test_size", "max_value", "min_target"), 1)
    lowest |= {"numbers": 2, "max_target": min_target, "warm_start_pairs": 1}
    warm_start.check(settings, lowest=lowest)
    if numbers > 4:
        raise ValueError(f"numbers={numbers}: must be at most 4, so that a derivation fits a response")
    paths, measured = caches.build_task(
        cache,
        "countdown",
        recipe=_RECIPE,
        settings=settings,
        files=("train.parquet", "validation.parquet", "test.parquet", *warm_start.FILES),
        build=lambda folder: _build(folder, settings),
    )
    print(
        f"countdown task: warm start solves {measured['accuracy']:.0%} of sampled validation problems "
        f"({measured['solved']:.0%} in {SAMPLES} attempts), entropy {measured['entropy']:.2f} nats per token",
        flush=True,
    )
    return {**paths, "warm_start": measured}


def _build(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    targets = range(settings["min_target"], settings["max_target"] + 1)
    problems = {"targets": targets, **{name: settings[name] for name in ("numbers", "max_value", "seed")}}
    splits = draw_splits({split: settings[f"{split}_size"] for split in ("validation", "test", "train")}, **problems)
    form = {"generator": GENERATOR, "chat": CHAT, "extract": "last_line"}
    rows = reasoning_gym_data.write_splits(splits, folder, **form)
    held_out = {problem_of(entry) for entry in (*splits["validation"], *splits["test"])}
    pairs = demonstrations(settings["warm_start_pairs"], **problems, exclude=held_out)
    return warm_start.build(
        folder, pairs, settings, held_out=rows["validation"], samples=SAMPLES, max_new_tokens=MAX_RESPONSE_TOKENS
    )


def draw_splits(
    sizes: Mapping[str, int], *, numbers: int, max_value: int, targets: range, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Deal all solvable problems out to the splits, each to one at most, all equally likely.

    The generator itself would draw easy problems many times over, and the same one in other words and orders.

    Args:
        sizes: Number of problems by split. Dealt in this order: no split depends on the size of a later one.
        numbers: How many numbers a problem gives.
        max_value: The largest of them.
        targets: What may be asked for.
        seed: The same seed gives the same problems.

    Returns:
        Records as the generator's, by split: {"question", "answer", "metadata": {"numbers", "target"}}.

    Raises:
        ValueError: fewer problems exist than were asked for.
    """
    solved = [
        (given, target, expression)
        for given in combinations_with_replacement(range(1, max_value + 1), numbers)
        for target, (expression, _) in sorted(_reachable(given).items())
        if target in targets
    ]
    if sum(sizes.values()) > len(solved):
        wanted = " + ".join(f"{split}_size={size}" for split, size in sizes.items())
        raise ValueError(
            f"{wanted}: only {len(solved)} problems of {numbers} numbers up to {max_value} reach a target from "
            f"{targets.start} to {targets.stop - 1}; ask for fewer, or for more or larger numbers or more targets"
        )
    rng = Random(f"{seed}/problems")
    rng.shuffle(solved)
    remaining = iter(solved)
    return {split: [_entry(*next(remaining), rng) for _ in range(size)] for split, size in sizes.items()}


def _entry(given: tuple[int, ...], target: int, expression: str, rng: Random) -> dict[str, Any]:
    numbers = rng.sample(given, len(given))
    return {
        "question": f"Combine all of {numbers} to {target}.",
        "answer": expression,
        "metadata": {"numbers": numbers, "target": target},
    }


@functools.cache
def _reachable(numbers: tuple[int, ...]) -> dict[int, Term]:
    """Find every number from 0 that all `numbers`, in rising order, can make, with one way to do it."""
    if len(numbers) == 1:
        return {numbers[0]: (str(numbers[0]), _NUMBER)}
    found: dict[int, Term] = {}
    places = range(len(numbers))
    for size in range(1, len(numbers)):
        for chosen in combinations(places, size):
            rest = tuple(numbers[place] for place in places if place not in chosen)
            for left, left_term in _reachable(tuple(numbers[place] for place in chosen)).items():
                for right, right_term in _reachable(rest).items():
                    for operator, operation in _OPERATIONS.items():
                        result = operation(left, right)
                        if result >= 0 and result not in found:
                            found[result] = _combined(left_term, operator, right_term)
    return found


def problem_of(entry: Mapping[str, Any]) -> Problem:
    """Return what identifies a problem: the numbers in any order, and the target."""
    return tuple(sorted(entry["metadata"]["numbers"])), entry["metadata"]["target"]


def demonstrations(
    size: int, *, numbers: int, max_value: int, targets: range, exclude: Collection[Problem], seed: int
) -> list[tuple[warm_start.Chat, str]]:
    """Make (chat messages, derivation) pairs: random ones, so that problems with many solutions show many.

    Args:
        size: How many.
        numbers: How many numbers each has.
        max_value: The largest of them.
        targets: Where derivations may end.
        exclude: Problems that no prompt may pose; some must be left.
        seed: The same seed gives the same pairs.
    """
    rng = Random(f"{seed}/demonstrations")
    pairs: list[tuple[warm_start.Chat, str]] = []
    while len(pairs) < size:
        given = [rng.randint(1, max_value) for _ in range(numbers)]
        result, text = derivation(given, rng)
        entry = {"metadata": {"numbers": given, "target": result}}
        if result in targets and problem_of(entry) not in exclude:
            pairs.append((reasoning_gym_data.fill(CHAT, entry), text))
    return pairs


def derivation(numbers: list[int], rng: Random) -> tuple[int, str]:
    r"""Combine two numbers drawn at random until one is left: 25 and "7*3=21 21+4=25\n7*3+4".

    Of a difference the smaller number is taken from the larger one, so that none is negative.
    """
    pool: list[tuple[int, Term]] = [(number, (str(number), _NUMBER)) for number in numbers]
    steps = []
    while len(pool) > 1:
        left, right = rng.sample(pool, 2)
        operator = rng.choice(tuple(_OPERATIONS))
        if operator == "-" and left[0] < right[0]:
            left, right = right, left
        result = _OPERATIONS[operator](left[0], right[0])
        steps.append(f"{left[0]}{operator}{right[0]}={result}")
        pool.remove(left)
        pool.remove(right)
        pool.append((result, _combined(left[1], operator, right[1])))
    result, (expression, _) = pool[0]
    return result, " ".join(steps) + "\n" + expression


def _combined(left: Term, operator: str, right: Term) -> Term:
    kind = _PRODUCT if operator == "*" else _SUM
    # 1-(2-3) needs its brackets, 1+(2-3) does not.
    return operator.join((_bracketed(left, kind), _bracketed(right, kind + (operator == "-")))), kind


def _bracketed(term: Term, lowest_kind: int) -> str:
    text, kind = term
    return text if kind >= lowest_kind else f"({text})"
