"""Uncertainty of a mean over training seeds crossed with problems.

Every seed of a method answers every problem. A score is then mean + seed + problem + (seed and problem, and the draw of
the samples): a bad seed is bad on many problems at once, and a hard problem is hard for every seed. Treating all S x P
scores as independent, or either way alone, gives intervals that are too narrow. See docs/statistics.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy import stats

from aent_verl.comparison.stats import TARGETS, Target

# Fewer do not stand for others: a single odd one decides, and the t-quantile does not guard against that.
MIN_PROBLEMS = 20


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval.

    Attributes:
        value: the point estimate.
        low: lower end of the interval; equal to ``value`` where nothing varied.
        high: upper end of the interval.
        standard_error: of the value.
        degrees: degrees of freedom of its t-distribution; NaN where nothing varied.
    """

    value: float
    low: float
    high: float
    standard_error: float
    degrees: float


@dataclass(frozen=True)
class Variance:
    """Parts of the variance of a mean over seeds and problems, or of a difference of two such means.

    Attributes:
        seed_variances: of each method's per-seed means, ``[...]`` each; they hold the interaction divided by P.
        problem_excess: variance over problems beyond what the seeds' noise on single problems explains, ``[...]``, at
            least 0.
        seeds: number of seeds of each method; infinite in the limit of many seeds.
        problems: number of problems.
    """

    seed_variances: tuple[np.ndarray, ...]
    problem_excess: np.ndarray
    seeds: tuple[float, ...]
    problems: int

    @property
    def seeds_vary(self) -> bool:
        """Whether the seeds of any method differ in their means: if not, nothing is known of another seed."""
        return any(np.any(variance > 0) for variance in self.seed_variances)

    def of_mean(self, target: Target) -> tuple[np.ndarray, np.ndarray]:
        """Return variance and degrees of freedom of the mean (see `_sum`; NaN where the variance is 0), ``[...]`` each.

        These problems: the sum of s_m^2 / S_m, as Welch has it. Problems like these: that, which holds the interaction
        of seed and problem, plus the excess over problems divided by P.
        """
        parts = [
            (variance / count, np.full(np.shape(variance), 1 / (count - 1)))
            for variance, count in zip(self.seed_variances, self.seeds, strict=True)
        ]
        found = reduce(_sum, parts)
        if check_target(target) == "problems like these":
            excess = self.problem_excess / self.problems
            found = _sum(found, (excess, np.full(np.shape(excess), 1 / (self.problems - 1))))
        total, inverse = found
        degrees = np.divide(1, inverse, out=np.full(np.shape(total), math.nan), where=(total > 0) & (inverse > 0))
        return total, np.where((total > 0) & (inverse == 0), math.inf, degrees)


def variance_parts(matrices: Sequence[np.ndarray], per_problem: np.ndarray) -> Variance:
    """Estimate the parts of the variance of a mean over seeds and problems.

    Args:
        matrices: what each seed contributes on each problem, ``[..., S_m, P]`` a method: the scores themselves for a
            mean or a difference of two. At least two seeds a method.
        per_problem: what is averaged over problems, ``[..., P]``: the seed mean of one method, or a difference of two.
    """
    problems = per_problem.shape[-1]
    rounding = rounding_of(matrices) ** 2
    seed_variances = []
    explained = np.zeros(per_problem.shape[:-1])
    for matrix in matrices:
        seeds = matrix.shape[-2]
        assert seeds > 1
        by_seed, by_problem = matrix.mean(axis=-1), matrix.mean(axis=-2)
        seed_variances.append(_without(by_seed.var(axis=-1, ddof=1), rounding))
        mean = by_seed.mean(axis=-1)
        residuals = matrix - by_seed[..., :, None] - by_problem[..., None, :] + mean[..., None, None]
        # One problem has no residuals.
        degrees = max((seeds - 1) * (problems - 1), 1)
        explained = explained + (residuals**2).sum(axis=(-2, -1)) / degrees / seeds
    over_problems = per_problem.var(axis=-1, ddof=1) if problems > 1 else explained
    return Variance(
        seed_variances=tuple(seed_variances),
        problem_excess=_without(over_problems - explained, rounding),
        seeds=tuple(float(matrix.shape[-2]) for matrix in matrices),
        problems=problems,
    )


def rounding_of(matrices: Sequence[np.ndarray]) -> float:
    """Bound how far equal means of these may differ by rounding, which depends on the order of addition."""
    return 1e-12 * max(float(np.abs(matrix).max()) for matrix in matrices)


def interval(
    value: np.ndarray, variance: Variance, target: Target, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return lower and upper end, standard error and degrees of freedom of a t-interval, ``[...]`` each."""
    check_confidence(confidence)
    total, degrees = variance.of_mean(target)
    error = np.sqrt(total)
    half = np.where(total > 0, stats.t.ppf((1 + confidence) / 2, degrees) * error, 0.0)
    return value - half, value + half, error, degrees


def estimate(value: float, variance: Variance, target: Target, confidence: float) -> Estimate:
    """Compute the `interval` of a single number."""
    low, high, error, degrees = interval(np.asarray(value), variance, target, confidence)
    return Estimate(float(value), float(low), float(high), float(error), float(degrees))


def check_target(target: Target) -> Target:
    """Return the target itself.

    Raises:
        ValueError: it is none of the two.
    """
    if target not in TARGETS:
        raise ValueError(f"target={target!r} is not allowed: one of {', '.join(map(repr, TARGETS))}")
    return target


def check_confidence(confidence: float) -> None:
    """Raise a ValueError unless the level of an interval is between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is not allowed: must be between 0 and 1, as in .95")


def check_problems(target: Target, problems: int) -> None:
    """Raise a ValueError if the target is unknown, or is problems like these from fewer than `MIN_PROBLEMS`."""
    if check_target(target) == "problems like these" and problems < MIN_PROBLEMS:
        raise ValueError(
            f"{problems} problems are too few for target={target!r}: at least {MIN_PROBLEMS}, or "
            "target='these problems'"
        )


def _sum(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Add two independent variance estimates, each with its inverse degrees of freedom; all are ``[...]``.

    With c and 1 - c their shares of the sum, f and g their degrees of freedom,

        1 / nu = c^2 / f + (1 - c)^2 / g + 2 c (1 - c) |1 / f^2 - 1 / g^2|.

    The squares are those of Welch (1938) and Satterthwaite (1946). They take the observed shares for the true ones: of
    2 seeds against 10, the 2 agree closely by chance now and then, their share is then near 0, nu near 9 instead
    of near 1, and the interval far too narrow at the worst moment. The last term keeps nu low there. It is 0 at equal
    degrees of freedom, where such accidents on either side balance out and Welch's test holds its level, and is of
    the order 1 / f^2 of the first term that Welch's series leaves out (Aspin 1948). nu stays between the smaller of f
    and g, which is safe whatever the variances (Mickey and Brown 1966), and f + g. There is no exact test (Linnik
    1968): docs/statistics.md has the simulated levels.
    """
    (part, inverse), (other, other_inverse) = first, second
    total = part + other
    share = np.divide(part, total, out=np.zeros(np.shape(total)), where=total > 0)
    rest = 1 - share
    apart = np.abs(inverse**2 - other_inverse**2)
    return total, share**2 * inverse + rest**2 * other_inverse + 2 * share * rest * apart


def _without(variance: np.ndarray, rounding: float) -> np.ndarray:
    """Return the variance, 0 where it is negative or no more than rounding."""
    return np.where(variance <= rounding, 0.0, variance)
