"""rliable's own numbers, shown beside ours: readers know them, and the reports of others use them.

Its stratified bootstrap resamples the runs of each task on their own. Where a seed is good or bad on all tasks at
once, as one training run is on its problems, the intervals are far too narrow: see docs/statistics.md.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from aent_verl import _util
from aent_verl.comparison.stats.aggregates import middle_half
from aent_verl.comparison.stats.scores import score_matrices

CONDITION = (
    "rliable's percentile bootstrap: the same tasks, the runs of each task resampled on their own; what a seed does to "
    "all tasks at once is not counted"
)


@dataclass(frozen=True)
class RliableInterval:
    """A point estimate of rliable with its percentile interval; arrays for a profile.

    Attributes:
        value: ``[...]``.
        low: ``[...]``.
        high: ``[...]``.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def rliable_aggregates(
    scores: Mapping[str, np.ndarray],
    thresholds: np.ndarray,
    *,
    reps: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, RliableInterval]]:
    """``mean``, ``interquartile mean`` and ``performance profile`` of every method, ``[S, T]`` or ``[S, T, n]`` each.

    Args:
        scores: by method; all over the same tasks.
        thresholds: of the profile, ``[thresholds]``.
        reps: bootstrap replications.
        confidence: level of the intervals.
        seed: of the bootstrap.

    Raises:
        ImportError: rliable is not installed.
        ValueError: see `aent_verl.comparison.stats.scores.score_matrices`.
    """
    library = _rliable()
    thresholds = np.asarray(thresholds, dtype=float)

    def aggregates(matrix: np.ndarray) -> np.ndarray:
        # rliable's own functions give the same and would take several times as long, thousands of times over.
        ordered = np.sort(matrix, axis=None)
        above = 1 - np.searchsorted(ordered, thresholds, side="right") / matrix.size
        return np.concatenate([[ordered.mean(), middle_half(ordered).mean()], above])

    with _global_seed(seed):
        values, intervals = library.get_interval_estimates(
            score_matrices(scores), aggregates, reps=reps, confidence_interval_size=confidence
        )
    found = {}
    for name, value in values.items():
        parts = {"mean": 0, "interquartile mean": 1, "performance profile": slice(2, None)}
        low, high = intervals[name]
        found[name] = {part: RliableInterval(value[at], low[at], high[at]) for part, at in parts.items()}
    return found


def rliable_probability_of_improvement(
    scores: np.ndarray, baseline: np.ndarray, *, reps: int = 2000, confidence: float = 0.95, seed: int = 0
) -> RliableInterval:
    """The average probability of improvement of rliable over tasks, ``[S, T]`` or ``[S, T, n]`` each.

    Raises:
        ImportError: rliable is not installed.
        ValueError: see `aent_verl.comparison.stats.scores.score_matrices`.
    """
    library = _rliable()
    pair = list(score_matrices({"method": scores, "baseline": baseline}).values())

    def improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        left, right = ours[:, None, :], theirs[None, :, :]
        wins = np.count_nonzero(left > right) + np.count_nonzero(left >= right)
        return np.array([wins / (2 * len(ours) * theirs.size)])

    with _global_seed(seed):
        values, intervals = library.get_interval_estimates(
            {"pair": pair}, improvement, reps=reps, confidence_interval_size=confidence
        )
    (low,), (high,) = intervals["pair"]
    return RliableInterval(values["pair"][0], low, high)


def _rliable():  # type: ignore[no-untyped-def]
    _util.require("compare", "an interval of rliable's", "rliable")
    try:
        from rliable import library
    except ImportError as error:  # its bootstrap does not import under pandas 3
        raise ImportError(f"rliable cannot be imported ({error}): {_util.install_command('compare')}") from error
    return library


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """A seed for rliable 1.2, which draws from numpy's global generator whatever random state it is given."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
