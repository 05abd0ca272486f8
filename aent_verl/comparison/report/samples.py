"""Sample responses side by side: the same problem, one response of each method."""

import hashlib
from collections.abc import Mapping
from typing import Any

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


def choose_samples(groups: Groups) -> list[dict[str, Any]]:
    """Choose problems with responses, by `RULE`; none if no method's responses were kept.

    Returns:
        For each problem "why" it was chosen, its "prompt" and "ground_truth", and "samples" by method: the "seed" whose
        response it is, at most `MOST_CHARACTERS` of its "text", how many characters were "cut" at its end, its "score",
        and the "mean" score of all "count" responses of the method to this problem.

    Raises:
        ValueError: a damaged file.
    """
    texts: dict[str, tuple[int, dict[str, Responses]]] = {}
    scores: dict[str, dict[str, list[float]]] = {}
    for run in groups.all:
        if run.scores is None:
            continue
        if run.method not in texts and (found := read_responses(run.path, run.scores.step)):
            texts[run.method] = run.seed, found
        for problem, row in zip(run.scores.problems, run.scores.scores, strict=True):
            scores.setdefault(run.method, {}).setdefault(problem, []).extend(row)
    if not texts:
        return []
    shared = set.intersection(*({*found} & {*scores[method]} for method, (_, found) in texts.items()))
    means = {problem: {method: float(np.mean(scores[method][problem])) for method in texts} for problem in shared}
    first = next(iter(texts.values()))[1]
    chosen = []
    for problem, why in _choose(means):
        samples = {}
        for method, (seed, found) in texts.items():
            text, of_text = found[problem].responses[0], found[problem].scores
            samples[method] = {
                "seed": seed,
                "text": text[:MOST_CHARACTERS],
                "cut": max(0, len(text) - MOST_CHARACTERS),
                "score": of_text[0] if of_text else float("nan"),
                "mean": means[problem][method],
                "count": len(scores[method][problem]),
            }
        shown = first[problem]
        chosen.append({"why": why, "prompt": shown.prompt, "ground_truth": shown.ground_truth, "samples": samples})
    return chosen


def _choose(means: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]]:
    spread = {problem: np.ptp([*by_method.values()]) for problem, by_method in means.items()}
    # Ids are hashes, so their order says nothing about the problems.
    ordered = sorted(spread, key=lambda problem: (-spread[problem], problem))
    differing = [problem for problem in ordered[:MOST_DIFFERENT] if spread[problem] > 0]
    rest = sorted(spread.keys() - differing, key=lambda problem: hashlib.sha256(problem.encode()).hexdigest())
    why = [(problem, "methods differ most") for problem in differing]
    return why + [(problem, "at random") for problem in rest[:RANDOM]]
