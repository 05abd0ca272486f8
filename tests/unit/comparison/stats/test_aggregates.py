"""Aggregates: the point estimates of Agarwal et al. 2021, our intervals."""

import numpy as np
import pytest
from scipy import stats

from aent_verl.comparison.stats import aggregates
from tests.unit.comparison.stats.simulation import REFERENCE, covered, replace, simulate

HERE = "these problems"


def draws():
    rng = np.random.default_rng(0)
    return rng.integers(9, size=(5, 40)) / 8, rng.integers(9, size=(4, 40)) / 8


def test_point_estimates_by_hand():
    scores = np.array([[0, 100, 1, 2], [2, 3, 0, 9.0]])
    assert aggregates.mean(scores, target=HERE).value == 117 / 8
    # Of 0 0 1 2 2 3 9 100, and of 0 1 2 4 7 50, from which floor(6 / 4) leave at either end.
    assert aggregates.interquartile_mean(scores, target=HERE).value == 2
    assert aggregates.interquartile_mean(np.array([[0, 50, 2], [4, 7, 1.0]]), target=HERE).value == 3.5
    profile, _, _ = aggregates.performance_profile(scores, np.array([-1, 0, 2, 3.5, 100]), target=HERE)
    assert profile.tolist() == [1, 6 / 8, 3 / 8, 2 / 8, 0]
    # 0 and 1 against .5, .5, 0 win 0 + 0 + .5 + 1 + 1 + 1 of 6; .5 twice against .5, 0, 1 wins 2 (.5 + 1 + 0) of 6.
    ours, theirs = np.array([[0, 0.5], [1, 0.5]]), np.array([[0.5, 0.5], [0.5, 0], [0, 1]])
    assert aggregates.probability_of_improvement(ours, theirs, target=HERE).value == pytest.approx(6.5 / 12)
    assert aggregates.probability_of_improvement(theirs, ours, target=HERE).value == pytest.approx(5.5 / 12)


def test_the_mean_on_these_problems_is_a_t_interval_over_seeds():
    ours, _ = draws()
    found = aggregates.mean(ours, target="these problems", confidence=0.9)
    expected = stats.ttest_1samp(ours.mean(axis=1), 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_interquartile_mean_varies_as_leaving_out_one_seed_at_a_time_says():
    rng = np.random.default_rng(0)
    matrix = rng.random((20, 50)) + 0.3 * rng.standard_normal((20, 1))
    left_out = [aggregates.interquartile_mean(np.delete(matrix, seed, axis=0)).value for seed in range(20)]
    jackknife = np.sqrt(19 / 20 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    found = aggregates.interquartile_mean(matrix, target="these problems")
    assert found.standard_error == pytest.approx(jackknife, rel=0.1)


def test_the_profile_is_a_mean_of_what_lies_above():
    ours, _ = draws()
    value, low, high = aggregates.performance_profile(ours, np.array([-1.0, 0.4, 1.0]))
    middle = aggregates.mean((ours > 0.4).astype(float))
    assert (value[1], low[1], high[1]) == pytest.approx((middle.value, middle.low, middle.high))
    assert (value[0], low[0], high[0]) == (1, 1, 1)
    assert (value[2], low[2], high[2]) == (0, 0, 0)


def test_an_equal_method_improves_with_probability_one_half():
    ours, theirs = np.zeros((3, 25)), np.zeros((4, 25))
    assert aggregates.probability_of_improvement(ours, theirs).value == 0.5
    assert aggregates.probability_of_improvement(ours + 1, theirs).value == 1


def test_the_interval_of_a_probability_stays_within_0_and_1():
    rng = np.random.default_rng(0)
    found = aggregates.probability_of_improvement(rng.random((3, 20)) + 0.8, rng.random((3, 20)))
    assert 0.5 < found.low < found.high == 1


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("name", ["mean", "interquartile_mean", "probability_of_improvement"])
def test_intervals_hold_the_truth(name, seeds):
    """Many experiments on one set of problems; the truth is the aggregate of all of their seeds together."""
    experiments = 400
    setting = replace(REFERENCE, seeds=(seeds * experiments,) * 2, problems=40)
    ours, theirs = (scores[0] for scores in simulate(setting, 1, seed=3).scores)
    pairs = name == "probability_of_improvement"
    if pairs:
        ranks = np.array([stats.mannwhitneyu(ours[:, p], theirs[:, p]).statistic for p in range(40)])
        truth = ranks.mean() / len(ours) ** 2
    else:
        truth = getattr(aggregates, name)(ours).value
    found = []
    for first in range(0, len(ours), seeds):
        rows = slice(first, first + seeds)
        arrays = (ours[rows], theirs[rows]) if pairs else (ours[rows],)
        found.append(getattr(aggregates, name)(*arrays, target="these problems"))
    share = covered(np.array([each.low for each in found]), np.array([each.high for each in found]), truth)
    assert 0.915 < share < 0.99


@pytest.mark.parametrize("aggregate", [aggregates.mean, aggregates.interquartile_mean])
def test_one_seed_is_refused(aggregate):
    with pytest.raises(ValueError, match="1 seed: an interval needs at least 2"):
        aggregate(np.random.default_rng(0).random((1, 30)))
    with pytest.raises(ValueError, match="1 seed"):
        aggregates.probability_of_improvement(np.ones((3, 30)), np.ones((1, 30)))
    with pytest.raises(ValueError, match="1 seed"):
        aggregates.performance_profile(np.ones((1, 30)), np.array([0.5]))


def test_a_few_data_sources_are_no_sample_of_others():
    scores = np.random.default_rng(0).random((5, 3))
    with pytest.raises(ValueError, match="3 problems are too few"):
        aggregates.mean(scores)
    with pytest.raises(ValueError, match="3 problems are too few"):
        aggregates.probability_of_improvement(scores, scores)
    assert aggregates.mean(scores, target="these problems").low < scores.mean()
    assert np.isfinite(aggregates.mean(scores[:, :1], target="these problems").low)
