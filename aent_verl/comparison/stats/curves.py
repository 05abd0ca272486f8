"""Learning curves over seeds: their mean with an interval, their height, and when they reach a level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from aent_verl.comparison.stats import CONFIDENCE


@dataclass(frozen=True)
class Curve:
    """A metric over training steps, of the seeds of one method.

    Attributes:
        steps: the steps that all seeds have, ascending, ``[T]``.
        values: by seed, ``[S, T]``.
        mean: over seeds, ``[T]``.
        low: lower end of the interval of the mean, at each step on its own, ``[T]``; NaN with one seed.
        high: upper end of it, ``[T]``; NaN with one seed.
        dropped: steps that some seeds have and others lack, or where a value is NaN: left out above.
    """

    steps: np.ndarray
    values: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    dropped: tuple[int, ...]

    @property
    def note(self) -> str | None:
        """A sentence on the dropped steps; None if there are none."""
        if not self.dropped:
            return None
        total, first, last = len(self.steps) + len(self.dropped), self.dropped[0], self.dropped[-1]
        which = f"{first}" if first == last else f"from {first} to {last}"
        return (
            f"{len(self.dropped)} of {total} steps {'is' if first == last else 'are'} left out, {which}: not all "
            f"{len(self.values)} seeds have a value there"
        )


def mean_curve(runs: Sequence[Mapping[int, float]], *, confidence: float = CONFIDENCE) -> Curve:
    """Average over seeds, with a t-interval, over the steps that all seeds have.

    Means over a changing set of seeds would jump where a seed ends, and a seed that ended early may have failed: such
    steps are dropped and named instead (`Curve.dropped`).

    Args:
        runs: for each seed, its value at each step.
        confidence: level of the interval at a single step.

    Raises:
        ValueError: no run, or no step that all of them have.
    """
    if not runs:
        raise ValueError("no run to average: give the steps of at least one seed")
    finite = [{step: value for step, value in run.items() if np.isfinite(value)} for run in runs]
    shared = set.intersection(*(set(run) for run in finite))
    every = set().union(*runs)
    if not shared:
        counts = ", ".join(str(len(run)) for run in finite)
        raise ValueError(f"the {len(runs)} runs share no step with a value (they have {counts} steps)")
    steps = sorted(shared)
    values = np.array([[run[step] for step in steps] for run in finite], dtype=float)
    return _with_interval(np.array(steps), values, tuple(sorted(every - shared)), confidence)


def binned(curve: Curve, width: int, *, confidence: float = CONFIDENCE) -> Curve:
    """Average over spans of ``width`` steps, 1 to ``width`` and so on, each at the mean of the steps that are in it.

    Step 0, before training, stays alone. What was dropped is known of the curve itself, no longer of its bins.
    """
    spans = -(-curve.steps // width)
    starts = np.flatnonzero(np.diff(spans, prepend=-1))
    counts = np.diff(starts, append=len(spans))
    values = np.add.reduceat(curve.values, starts, axis=1) / counts
    return _with_interval(np.add.reduceat(curve.steps, starts) / counts, values, (), confidence)


def mean_over_last(curve: Curve, fraction: float, last_step: int) -> np.ndarray | None:
    """Average each seed over the last ``fraction`` of training, at least one step of it, ``[S]``.

    None if the curve has no step there, as where a seed turned NaN halfway: what it has is not the end.

    Args:
        curve: of the metric.
        fraction: of ``last_step`` steps.
        last_step: of training; the curve itself may end earlier.

    Raises:
        ValueError: a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} is not allowed: must be above 0 and at most 1")
    ends = curve.steps > last_step - max(round(fraction * last_step), 1)
    return curve.values[:, ends].mean(axis=1) if ends.any() else None


def best(curve: Curve) -> float:
    """Return the highest value of the seeds' mean; the highest of many noisy values is above the true height."""
    return float(curve.mean.max())


def first_reaching(curve: Curve, level: float, *, at: np.ndarray | None = None) -> float | None:
    """Find where the seeds' mean first reaches ``level``; None if it never does.

    Args:
        curve: of the metric that rises.
        level: to be reached, as the `best` of a baseline.
        at: what each step stands for, ``[T]``, as tokens or seconds up to it; the steps themselves if not given.

    Raises:
        ValueError: ``at`` has another length than the curve.
    """
    places = curve.steps if at is None else np.asarray(at)
    if len(places) != len(curve.steps):
        raise ValueError(f"at has {len(places)} values for {len(curve.steps)} steps: one for each step of the curve")
    reached = np.flatnonzero(curve.mean >= level)
    return places[reached[0]].item() if len(reached) else None


def _with_interval(steps: np.ndarray, values: np.ndarray, dropped: tuple[int, ...], confidence: float) -> Curve:
    mean = values.mean(axis=0)
    half = np.full(len(steps), np.nan)
    if len(values) > 1:
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * error
    return Curve(steps, values, mean, mean - half, mean + half, dropped)
