"""Aggregates of one method's scores over seeds and tasks, each with an interval that counts seeds as wholes.

A task is a column: a problem, or a data source whose problems were averaged. A few data sources are not a sample of
others, so ``target="these problems"`` is theirs. One seed, or too few tasks for the target, is a ValueError throughout.

The point estimates are those of Agarwal et al. 2021 (arXiv 2108.13264, sections 4.2 and 4.3), known from rliable. Their
stratified bootstrap resamples the seeds of every task on their own, which is far too narrow where a seed is good or bad
on all tasks at once. The intervals here keep a seed's tasks together: the variance of each aggregate is that of a mean
over its influence values, which stand for how much one score moves it, and the rest is
`aent_verl.comparison.stats.crossed`.
"""

import numpy as np

from aent_verl.comparison.stats import CONFIDENCE, Target
from aent_verl.comparison.stats.crossed import Estimate, check_problems, estimate, interval, variance_parts
from aent_verl.comparison.stats.scores import score_matrices, score_matrix

TRIMMED = 0.25


def mean(scores: np.ndarray, *, target: Target = "problems like these", confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean score, ``[S, T]`` or ``[S, T, n]``."""
    matrix = _checked(score_matrix(scores, "method"), target)
    return estimate(float(matrix.mean()), variance_parts([matrix], matrix.mean(axis=0)), target, confidence)


def interquartile_mean(
    scores: np.ndarray, *, target: Target = "problems like these", confidence: float = CONFIDENCE
) -> Estimate:
    """Average the middle half of all S x T scores, ``[S, T]`` or ``[S, T, n]`` (Agarwal et al. 2021, section 4.3).

    Made for tasks of unequal scale with odd seeds. Over problems of mostly 0 and 1 it leaves out the easiest and the
    hardest quarter.
    """
    matrix = _checked(score_matrix(scores, "method"), target)
    middle = middle_half(np.sort(matrix, axis=None))
    # The influence of a score on a trimmed mean: the score, drawn in to the quartiles (Huber 1981, section 3.3).
    influence = np.clip(matrix, middle[0], middle[-1]) / (1 - 2 * TRIMMED)
    return estimate(float(middle.mean()), variance_parts([influence], influence.mean(axis=0)), target, confidence)


def probability_of_improvement(
    scores: np.ndarray, baseline: np.ndarray, *, target: Target = "problems like these", confidence: float = CONFIDENCE
) -> Estimate:
    """Estimate the chance that a run of the method beats one of the baseline on a task, ``[S, T]`` and ``[R, T]``.

    The mean over tasks, and pairs of a run x of the method and y of the baseline, of 1 if x > y, 1/2 if x = y, else 0
    (Agarwal et al. 2021, section 4.3; Mann and Whitney's U over S R). The interval is cut at 0 and 1.
    """
    ours, theirs = score_matrices({"method": scores, "baseline": baseline}).values()
    _checked(ours, target)
    _checked(theirs, target)
    wins = win_shares(ours, theirs)
    per_task = wins.mean(axis=(0, 1))
    found = estimate(
        float(per_task.mean()), variance_parts([wins.mean(axis=1), wins.mean(axis=0)], per_task), target, confidence
    )
    return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0), found.standard_error, found.degrees)


def performance_profile(
    scores: np.ndarray,
    thresholds: np.ndarray,
    *,
    target: Target = "problems like these",
    confidence: float = CONFIDENCE,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the share of runs and tasks with a score above each threshold: value, low, high, ``[thresholds]``.

    The run-score distribution of Agarwal et al. 2021, section 4.2. The interval holds at each threshold, not for the
    whole profile at once.
    """
    matrix = _checked(score_matrix(scores, "method"), target)
    above = (matrix > np.asarray(thresholds, dtype=float)[:, None, None]).astype(float)
    value = above.mean(axis=(-2, -1))
    low, high, _, _ = interval(value, variance_parts([above], above.mean(axis=-2)), target, confidence)
    return value, np.maximum(low, 0), np.minimum(high, 1)


def middle_half(ordered: np.ndarray) -> np.ndarray:
    """Sort scores and drop the lowest and the highest quarter, ``[N]`` -> ``[N - 2 floor(N / 4)]``."""
    cut = int(TRIMMED * len(ordered))
    return ordered[cut : len(ordered) - cut]


def win_shares(scores: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Compare runs in pairs on each task: 1 for a win, .5 for a tie, ``[S, T]``, ``[R, T]`` -> ``[S, R, T]``."""
    return (np.sign(scores[:, None, :] - baseline[None, :, :]) + 1) / 2


def _checked(matrix: np.ndarray, target: Target) -> np.ndarray:
    check_problems(target, matrix.shape[1])
    if len(matrix) < 2:
        raise ValueError("1 seed: an interval needs at least 2, better 5; the spread of one run's problems is not it")
    return matrix
