"""The plan keeps its promise: with that many seeds or problems, a difference of that size is found 4 times in 5."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

from aent_verl.comparison.stats.crossed import Estimate, Variance
from aent_verl.comparison.stats.differences import Difference
from aent_verl.comparison.stats.power import Plan, plan, power_of
from benchmarks.statistics import RESIDUAL_SD, difference_of_power
from tests.unit.comparison.stats.simulation import p_value, share_found


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
    more = plan(measured(value), alpha=0.05).more_seeds

    def power(seeds):
        return power_of(abs(value), measured(value, seeds=(seeds, seeds)).variance, "these problems", 0.05)

    assert power(5 + more) >= 0.8 > power(5 + more - 1)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
@pytest.mark.parametrize("target", ["these problems", "problems like these"])
@pytest.mark.parametrize("seeds", [(3, 3), (4, 4), (5, 5), (3, 10), (2, 5)])
def test_of_a_difference_with_80_percent_power_4_experiments_in_5_find_it(seeds, target, alpha):
    variance, value = difference_of_power(seeds, target, alpha)
    assert power_of(value, variance, target, alpha) == pytest.approx(0.8, abs=1e-6)
    share = share_found(value, variance, RESIDUAL_SD, target, alpha, 4000)
    assert share == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize(("seeds", "found"), [(3, 0.693), (4, 0.758), (5, 0.778)])
def test_where_a_noncentral_t_of_the_true_variances_says_80_percent_fewer_do(seeds, found):
    """The numbers of the report that this was found by."""
    degrees = 2 * seeds - 2
    critical = stats.t.ppf(0.975, degrees)
    shift = optimize.brentq(lambda shift: stats.nct.sf(critical, degrees, shift) - 0.8, 0, 50)
    variance = measured(0.0, seeds=(seeds, seeds)).variance
    value = shift * 0.03 * math.sqrt(2 / seeds)
    assert power_of(value, variance, "these problems", 0.05) == pytest.approx(found, abs=0.02)


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_the_power_of_a_test_with_one_part_is_the_noncentral_t(seeds):
    """A method of many seeds: all uncertainty of the variance is that of the other's."""
    variance = measured(0.0, seeds=(seeds, math.inf)).variance
    shift = 0.05 / (0.03 / math.sqrt(seeds))
    expected = stats.nct.sf(stats.t.ppf(0.975, seeds - 1), seeds - 1, shift)
    assert power_of(0.05, variance, "these problems", 0.05) == pytest.approx(expected, abs=0.002)


def test_the_planned_seeds_keep_the_promise_with_few_seeds_and_holm():
    """Where a plan ends at few seeds, and at the level of three comparisons."""
    for alpha in (0.05, 0.05 / 3):
        found = measured(0.075, seed_sd=0.03, seeds=(2, 2))
        seeds = 2 + plan(found, alpha=alpha).more_seeds
        assert seeds < 10
        variance = measured(0.075, seeds=(seeds, seeds)).variance
        assert 0.78 < share_found(0.075, variance, 0.1, "these problems", alpha, 4000) < 0.95


def test_a_stricter_level_needs_more_seeds():
    assert plan(measured(0.03), alpha=0.05 / 4).more_seeds > plan(measured(0.03), alpha=0.05).more_seeds


def test_with_the_planned_seeds_four_experiments_in_five_resolve_it():
    """Problems like these: seeds, problems and noise newly drawn, analysed with the seeds that were planned."""
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
    # Half of the level that Welch's test really has with 5 seeds each: .044.
    assert power_of(0.0, variance, "these problems", 0.05) == pytest.approx(0.022, abs=5e-4)
    many = measured(0.0, seeds=(100, 100)).variance
    assert power_of(0.0, many, "these problems", 0.05) == pytest.approx(0.025, abs=2e-4)
    assert power_of(100.0, variance, "these problems", 0.05) == 1
    certain = replace(variance, seed_variances=(np.float64(0),) * 2)
    assert power_of(0.01, certain, "these problems", 0.05) == 1
