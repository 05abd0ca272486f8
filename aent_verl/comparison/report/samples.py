"""Sample responses side by side: the same problem, one response of each method."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aent_verl.comparison.report.groups import Groups
from aent_verl.runs.problems import Responses, read_responses

MOST_DIFFERENT = 3
RANDOM = 2
MOST_CHARACTERS = 3000
RULE = (
    f"The {MOST_DIFFERENT} problems on which the methods' mean scores differ most, then {RANDOM} at random (the same "
    "ones for the same problems). Of each method the first response of its first seed."
)


@dataclass(frozen=True)
class Sample:
    """One method's response.

    Attributes:
        seed: whose it is.
        text: at most `MOST_CHARACTERS` of it.
        cut: characters that were left out at its end.
        score: of this response.
        mean: mean score of all the method's responses to this problem.
        count: how many those are.
    """

    seed: int
    text: str
    cut: int
    score: float
    mean: float
    count: int


@dataclass(frozen=True)
class Problem:
    """A problem with the methods' responses to it.

    Attributes:
        why: it was chosen.
        prompt: its text.
        ground_truth: its right answer.
        samples: by method.
    """

    why: str
    prompt: str
    ground_truth: str
    samples: dict[str, Sample]


def choose_samples(groups: Groups) -> list[Problem]:
    """Problems with responses, by `RULE`; empty if no method's responses were kept.

    Raises:
        ValueError: a damaged file.
    """
    texts: dict[str, tuple[int, dict[str, Responses]]] = {}
    for method, runs in groups.runs.items():
        for run in runs:
            found = read_responses(run.path, run.scores.step) if run.scores is not None else {}
            if found:
                texts[method] = run.seed, found
                break
    if not texts:
        return []
    shared = set.intersection(*(set(found) for _, found in texts.values()))
    means = {method: _means(groups, method) for method in texts}
    shared = {problem for problem in shared if all(problem in mean for mean in means.values())}
    return [_problem(problem, why, texts, means) for problem, why in _choose(shared, means)]


def _choose(shared: set[str], means: Mapping[str, Mapping[str, tuple[float, int]]]) -> list[tuple[str, str]]:
    spread = {problem: np.ptp([mean[problem][0] for mean in means.values()]) for problem in shared}
    # Ids are hashes, so their order says nothing about the problems.
    ordered = sorted(shared, key=lambda problem: (-spread[problem], problem))
    differing = [problem for problem in ordered[:MOST_DIFFERENT] if spread[problem] > 0]
    rest = sorted(shared.difference(differing), key=lambda problem: hashlib.sha256(problem.encode()).hexdigest())
    return [(problem, "methods differ most") for problem in differing] + [
        (problem, "at random") for problem in rest[:RANDOM]
    ]


def _means(groups: Groups, method: str) -> dict[str, tuple[float, int]]:
    """Mean score and number of responses by problem, over the method's seeds."""
    values: dict[str, list[np.ndarray]] = {}
    for run in groups.runs[method]:
        if run.scores is not None:
            for problem, row in zip(run.scores.problems, run.scores.scores, strict=True):
                values.setdefault(problem, []).append(row)
    return {problem: (float(np.mean(rows)), sum(len(row) for row in rows)) for problem, rows in values.items()}


def _problem(
    problem: str,
    why: str,
    texts: Mapping[str, tuple[int, dict[str, Responses]]],
    means: Mapping[str, Mapping[str, tuple[float, int]]],
) -> Problem:
    samples = {}
    for method, (seed, found) in texts.items():
        text = found[problem].responses[0]
        mean, count = means[method][problem]
        samples[method] = Sample(
            seed=seed,
            text=text[:MOST_CHARACTERS],
            cut=max(0, len(text) - MOST_CHARACTERS),
            score=found[problem].scores[0] if found[problem].scores else float("nan"),
            mean=mean,
            count=count,
        )
    one = next(iter(texts.values()))[1][problem]
    return Problem(why, one.prompt, one.ground_truth, samples)
