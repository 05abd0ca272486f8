"""Numbers with an interval, or without one where the statistics refuse to give it."""

import math

import numpy as np

from aent_verl.comparison.stats.aggregates import mean
from aent_verl.comparison.stats.crossed import MIN_PROBLEMS, Estimate, Target


def bare(value: float, low: float = math.nan, high: float = math.nan) -> Estimate:
    """A number, with the ends of its interval if it has one."""
    return Estimate(float(value), float(low), float(high), math.nan, math.nan)


def has_interval(scores: np.ndarray, target: Target) -> bool:
    """Whether ``[S, P]`` are enough for an interval: two seeds, and problems enough to stand for others like them."""
    return len(scores) > 1 and (target == "these problems" or scores.shape[1] >= MIN_PROBLEMS)


def mean_of(scores: np.ndarray, target: Target, confidence: float) -> Estimate:
    """Mean of ``[S, P]``, with its interval if it has one."""
    if not has_interval(scores, target):
        return bare(scores.mean())
    return mean(scores, target=target, confidence=confidence)
