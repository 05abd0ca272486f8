"""The plan keeps its promise: with that many seeds or problems, a difference of that size is found 4 times in 5."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from aent_verl.statistics.crossed import Estimate, Variance
from aent_verl.statistics.differences import Difference
from aent_verl.statistics.power import Plan, plan, power_of
from tests.unit.statistics.simulation import p_value


def measured(value, *, target="these problems", seed_sd=0.03, excess=0.0, seeds=(5, 5), problems=200):
    variance = Variance(
        seed_variances=(np.float64(seed_sd**2),) * 2,
        problem_excess=np.float64(excess),
        seeds=tuple(map(float, seeds)),
        problems=problems,
    )
    total, degrees = variance.of_mean(target)
    estimate = Estimate(value, math.nan, math.nan, float(np.sqrt(total)), float(degrees))
    return Difference(estimate, math.nan, seeds, problems, target, 0.95, variance)


@pytest.mark.parametrize("value", [0.05, 0.03, -0.02])
def test_more_seeds_are_the_fewest_that_a_t_test_needs(value):
    """Against the equal-variance test's textbook power, of which Welch's is a case here."""
    more = plan(measured(value), alpha=0.05).more_seeds

    def power(seeds):
        shift, degrees = abs(value) / (0.03 * math.sqrt(2 / seeds)), 2 * seeds - 2
        return stats.nct.sf(stats.t.ppf(0.975, degrees), degrees, shift)

    assert power(5 + more) >= 0.8 > power(5 + more - 1)


def test_a_stricter_level_needs_more_seeds():
    assert plan(measured(0.03), alpha=0.05 / 4).more_seeds > plan(measured(0.03), alpha=0.05).more_seeds


def test_with_the_planned_seeds_four_experiments_in_five_resolve_it():
    """Problems like these: seeds, problems and noise drawn anew, analysed with the seeds that were planned."""
    problem_sd, residual_sd, value = 0.1, 0.3, 0.03
    seed_sd = math.sqrt(0.03**2 + residual_sd**2 / 200)
    found = measured(value, target="problems like these", seed_sd=seed_sd, excess=problem_sd**2)
    seeds = 5 + plan(found, alpha=0.05).more_seeds
    assert 10 < seeds < 60
    rng = np.random.default_rng(0)
    shape = (400, seeds, 200)
    ours, theirs = (
        0.03 * rng.standard_normal((*shape[:2], 1)) + residual_sd * rng.standard_normal(shape) for _ in range(2)
    )
    ours += value + problem_sd * rng.standard_normal((400, 1, 200))
    share = (p_value(ours, theirs, "problems like these") < 0.05).mean()
    assert share == pytest.approx(0.8, abs=0.06)


def test_a_tiny_difference_needs_more_seeds_than_anyone_trains():
    assert plan(measured(0.001), alpha=0.05) == Plan(more_seeds=None, problems=None, seeds_suffice=True)


def test_where_the_problems_differ_too_much_only_more_problems_help():
    found = measured(0.02, target="problems like these", excess=0.2**2)
    needed = plan(found, alpha=0.05)
    assert needed.more_seeds is None
    shift = 0.02 / (0.2 / math.sqrt(needed.problems))
    assert needed.problems > 200
    assert stats.nct.sf(stats.t.ppf(0.975, needed.problems - 1), needed.problems - 1, shift) == pytest.approx(
        0.8, abs=0.001
    )
    # About these problems, the same data need seeds only.
    assert plan(measured(0.02, excess=0.2**2), alpha=0.05).more_seeds is not None


def test_where_no_number_of_problems_helps_none_is_named():
    found = measured(1e-5, target="problems like these", excess=0.2**2)
    assert plan(found, alpha=0.05) == Plan(more_seeds=None, problems=None, seeds_suffice=False)


def test_power_at_its_ends():
    variance = measured(0.0).variance
    assert power_of(0.0, variance, "these problems", 0.05) == pytest.approx(0.025, abs=1e-6)
    assert power_of(100.0, variance, "these problems", 0.05) == 1
    certain = replace(variance, seed_variances=(np.float64(0),) * 2)
    assert power_of(0.01, certain, "these problems", 0.05) == 1
