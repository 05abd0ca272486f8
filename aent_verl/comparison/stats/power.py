"""What it would take to resolve a difference, if it is really as large as it was measured."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import stats

from aent_verl.comparison.stats import Target
from aent_verl.comparison.stats.crossed import Variance
from aent_verl.comparison.stats.differences import Difference

POWER = 0.8
MOST_SEEDS = 100
MOST_PROBLEMS = 1_000_000


@dataclass(frozen=True)
class Plan:
    """How to resolve a difference with a chance of `POWER`; one of the first two is None, or both.

    Attributes:
        more_seeds: seeds to add to each method, at most `MOST_SEEDS`.
        problems: problems in all that are needed, where no number of seeds is enough on the present ones. A lower
            bound: it takes the seeds for unlimited. At most `MOST_PROBLEMS`.
        seeds_suffice: whether some number of seeds is enough on the present problems, even if above `MOST_SEEDS`.
    """

    more_seeds: int | None
    problems: int | None
    seeds_suffice: bool


def plan(found: Difference, *, alpha: float) -> Plan:
    """Find how many more seeds, or problems, a two-sided t-test at level ``alpha`` needs to resolve the difference.

    More seeds shrink the seed part of the variance only; for problems like these the problem part stays.
    """
    value = abs(found.estimate.value)
    variance = found.variance

    def finds(changed: Variance) -> bool:
        return power_of(value, changed, found.target, alpha) >= POWER

    def with_more(count: float) -> Variance:
        return replace(variance, seeds=tuple(seeds + count for seeds in variance.seeds))

    more = _fewest(lambda count: finds(with_more(count)), 1, MOST_SEEDS)
    if more is not None:
        return Plan(more, None, seeds_suffice=True)
    endless = with_more(math.inf)
    if finds(endless):
        return Plan(None, None, seeds_suffice=True)
    problems = _fewest(lambda count: finds(replace(endless, problems=count)), variance.problems, MOST_PROBLEMS)
    return Plan(None, problems, seeds_suffice=False)


def power_of(value: float, variance: Variance, target: Target, alpha: float) -> float:
    """Return the chance that a two-sided t-test at level ``alpha`` finds a true difference of ``value``, with its sign.

    ``variance`` holds the true parts; the test will estimate each, and its degrees of freedom from them. So what it
    divides by is not a multiple of one chi-squared variable, and a noncentral t with the degrees of freedom of the true
    parts promises too much: .80 where 3 seeds each find .69. But given the estimated parts, which are independent of
    the difference, the test finds it with the chance Phi((value - critical * error) / true error). That is averaged
    over the parts, each a chi-squared variable of its own degrees of freedom. Of a single part it is the noncentral t.
    """
    total, _ = variance.of_mean(target)
    if total == 0:
        return 1.0 if value else alpha
    parts = zip(variance.seed_variances, variance.seeds, strict=True)
    estimated = replace(
        variance,
        seed_variances=tuple(part * _chi_squared_mean(i, count - 1) for i, (part, count) in enumerate(parts)),
        problem_excess=variance.problem_excess * _chi_squared_mean(-1, variance.problems - 1),
    )
    totals, degrees = estimated.of_mean(target)
    critical = stats.t.ppf(1 - alpha / 2, degrees) * np.sqrt(totals)
    return float(stats.norm.cdf((value - critical) / math.sqrt(total)).mean())


@cache
def _draws() -> np.ndarray:
    """Spread points evenly over the unit cube, ``[3, draws]``: two methods and the problems. Always the same.

    512 of them give the power to within .0005.
    """
    return stats.qmc.Sobol(3, seed=0).random_base2(9).T


@cache
def _chi_squared_mean(column: int, degrees: float) -> np.ndarray:
    """Return the ratio of an estimated variance to the true one, at the points of a column of `_draws`."""
    uniform = _draws()[column]
    return np.ones_like(uniform) if math.isinf(degrees) else stats.chi2.ppf(uniform, degrees) / degrees


def _fewest(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """Find the smallest number from ``low`` to ``high`` that is enough, if all above are; None if ``high`` is not."""
    numbers = range(low, high + 1)
    place = bisect_left(numbers, True, key=enough)
    return numbers[place] if place < len(numbers) else None
