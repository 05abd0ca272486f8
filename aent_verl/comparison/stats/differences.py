"""The difference between two methods that were scored on the same problems."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from aent_verl.comparison.stats import CONFIDENCE, Target
from aent_verl.comparison.stats.crossed import Estimate, Variance, check_problems, estimate, rounding_of, variance_parts
from aent_verl.comparison.stats.scores import score_matrices


@dataclass(frozen=True)
class Difference:
    """Mean score of a method less that of its baseline.

    Attributes:
        estimate: the difference with its interval.
        p_value: two-sided, of no difference; 1 where nothing differs, NaN where a difference does not vary at all.
        seeds: number of seeds of the method and of the baseline.
        problems: number of problems that both were scored on.
        target: what the interval is about.
        confidence: level of the interval.
        variance: parts of the variance, for planning.
    """

    estimate: Estimate
    p_value: float
    seeds: tuple[int, int]
    problems: int
    target: Target
    confidence: float
    variance: Variance


def difference(
    scores: np.ndarray,
    baseline: np.ndarray,
    *,
    target: Target = "problems like these",
    confidence: float = CONFIDENCE,
) -> Difference:
    """Compute the difference of means, ``[S, P]`` or ``[S, P, n]`` less the same of a baseline, whose S may differ.

    Unequal numbers of seeds cost degrees of freedom, the more the smaller number is below 5: see
    `aent_verl.comparison.stats.crossed.Variance.of_mean`.

    Methods share their problems, so these are paired. Seeds are not: two runs with one seed share the order of the
    data, but their samples part after the first step, and pairing would halve the degrees of freedom.

    Raises:
        ValueError: see `aent_verl.comparison.stats.scores.score_matrices`; fewer than two seeds in either; fewer than
            `aent_verl.comparison.stats.crossed.MIN_PROBLEMS` problems for a statement about problems like these.
    """
    ours, theirs = score_matrices({"method": scores, "baseline": baseline}).values()
    problems = ours.shape[1]
    if min(len(ours), len(theirs)) < 2:
        raise ValueError(f"{len(ours)} and {len(theirs)} seeds: a difference needs at least 2 of each, better 5")
    check_problems(target, problems)
    per_problem = ours.mean(axis=0) - theirs.mean(axis=0)
    variance = variance_parts([ours, theirs], per_problem)
    value = float(ours.mean() - theirs.mean())
    found = estimate(0.0 if abs(value) <= rounding_of([ours, theirs]) else value, variance, target, confidence)
    return Difference(
        estimate=found,
        p_value=_p_value(found),
        seeds=(len(ours), len(theirs)),
        problems=problems,
        target=target,
        confidence=confidence,
        variance=variance,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm, in the given order: the chance of any false claim among all stays below alpha."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    stepped = np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()


def _p_value(found: Estimate) -> float:
    if found.standard_error == 0:
        return 1.0 if found.value == 0 else math.nan
    return float(2 * stats.t.sf(abs(found.value) / found.standard_error, found.degrees))
