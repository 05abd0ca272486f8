"""The difference's interval: its parts by hand, its two limits, Holm."""

import numpy as np
import pytest
from scipy import stats

from aent_verl.comparison.stats.crossed import MIN_PROBLEMS, variance_parts
from aent_verl.comparison.stats.differences import difference, holm
from tests.unit.comparison.stats.simulation import REFERENCE, crossed_interval, simulate


def draws(seeds=(5, 4), problems=40, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random((count, problems)) + 0.3 * rng.random((count, 1)) for count in seeds]


def test_these_problems_is_welch_over_the_means_of_the_seeds():
    ours, theirs = draws(seeds=(5, 5))
    found = difference(ours, theirs, target="these problems", confidence=0.9)
    welch = stats.ttest_ind(ours.mean(axis=1), theirs.mean(axis=1), equal_var=False)
    low, high = welch.confidence_interval(0.9)
    assert found.p_value == pytest.approx(welch.pvalue)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((low, high))
    assert found.estimate.degrees == pytest.approx(welch.df)
    assert (found.seeds, found.problems) == ((5, 5), 40)


def inverse_sum(part, degrees, other, other_degrees):
    """One over the degrees of freedom of a sum of two variances, by hand."""
    share = part / (part + other)
    squares = share**2 / degrees + (1 - share) ** 2 / other_degrees
    return squares + 2 * share * (1 - share) * abs(degrees**-2 - other_degrees**-2)


def test_unequal_numbers_of_seeds_are_welch_with_fewer_degrees_of_freedom():
    ours, theirs = draws(seeds=(2, 10))
    found = difference(ours, theirs, target="these problems")
    welch = stats.ttest_ind(ours.mean(axis=1), theirs.mean(axis=1), equal_var=False)
    part, other = ours.mean(axis=1).var(ddof=1) / 2, theirs.mean(axis=1).var(ddof=1) / 10
    assert found.estimate.standard_error**2 == pytest.approx(part + other)
    assert found.estimate.degrees == pytest.approx(1 / inverse_sum(part, 1, other, 9))
    assert 1 < found.estimate.degrees < welch.df
    turned = difference(theirs, ours, target="these problems")
    assert turned.estimate.degrees == pytest.approx(found.estimate.degrees)
    assert found.p_value == pytest.approx(turned.p_value)
    assert found.seeds == (2, 10)


def test_problems_like_these_by_hand():
    ours, theirs = draws()
    found = difference(ours, theirs)
    seed_parts, interaction_parts = [], []
    for matrix in (ours, theirs):
        seeds, problems = matrix.shape
        residuals = [
            (matrix[s, p] - matrix[s].mean() - matrix[:, p].mean() + matrix.mean()) ** 2
            for s in range(seeds)
            for p in range(problems)
        ]
        interaction_parts.append(sum(residuals) / ((seeds - 1) * (problems - 1)) / (seeds * problems))
        seed_parts.append(np.var(matrix.mean(axis=1), ddof=1) / seeds)
    problem_part = np.var(ours.mean(axis=0) - theirs.mean(axis=0), ddof=1) / 40
    excess = problem_part - sum(interaction_parts)
    assert excess > 0
    variance = sum(seed_parts) + excess
    of_seeds = 1 / inverse_sum(seed_parts[0], 4, seed_parts[1], 3)
    degrees = 1 / inverse_sum(sum(seed_parts), of_seeds, excess, 39)
    half = stats.t.ppf(0.975, degrees) * variance**0.5
    assert found.estimate.value == pytest.approx(ours.mean() - theirs.mean())
    assert found.estimate.degrees == pytest.approx(degrees)
    assert (found.estimate.low, found.estimate.high) == pytest.approx(
        (found.estimate.value - half, found.estimate.value + half)
    )
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(found.estimate.value) / variance**0.5, degrees))


def test_problems_that_differ_by_less_than_noise_add_nothing():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((2, 5, 30))
    ours -= ours.mean(axis=0)
    theirs -= theirs.mean(axis=0)
    welch = difference(ours, theirs, target="these problems")
    assert difference(ours, theirs).estimate == welch.estimate


def test_the_variance_of_a_difference_is_right_on_average():
    """And each part alone is not."""
    made = simulate(REFERENCE, 2000, seed=0)
    ours, theirs = made.scores
    per_problem = ours.mean(axis=1) - theirs.mean(axis=1)
    parts = variance_parts([ours, theirs], per_problem)
    true = per_problem.mean(axis=1).var()
    assert parts.of_mean("problems like these")[0].mean() == pytest.approx(true, rel=0.08)
    assert parts.of_mean("these problems")[0].mean() < 0.92 * true
    assert (per_problem.var(axis=1, ddof=1) / 200).mean() < 0.6 * true


def test_one_experiment_is_a_row_of_a_batch():
    ours, theirs = simulate(REFERENCE, 3, seed=0).scores
    value, low, high = crossed_interval(ours, theirs, "problems like these")
    for row in range(3):
        found = difference(ours[row], theirs[row]).estimate
        assert (found.value, found.low, found.high) == pytest.approx((value[row], low[row], high[row]))


def test_problems_are_paired():
    """However hard the problems differ, only how the difference varies over them counts."""
    ours, theirs = draws()
    harder = 10 * np.random.default_rng(1).random(40)
    plain, shifted = difference(ours, theirs).estimate, difference(ours + harder, theirs + harder).estimate
    assert (shifted.low, shifted.high) == pytest.approx((plain.low, plain.high))


def test_samples_are_averaged_first():
    scores = np.random.default_rng(0).random((2, 5, 30, 8))
    assert difference(*scores) == difference(*scores.mean(axis=-1))


def test_equal_runs_have_no_interval_and_p_1():
    scores = np.tile(np.random.default_rng(0).random(30), (4, 1))
    found = difference(scores, scores)
    assert (found.estimate.low, found.estimate.value, found.estimate.high, found.p_value) == (0, 0, 0, 1)


def test_what_does_not_vary_cannot_be_tested():
    assert np.isnan(difference(np.ones((3, 30)), np.zeros((3, 30))).p_value)


def test_rounding_is_not_a_difference():
    ours = np.tile([0.1, 0.2, 0.3], (3, 10))
    theirs = ours * (1 + 4e-16)
    assert ours.mean() != theirs.mean()
    found = difference(ours, theirs)
    assert (found.estimate.value, found.p_value) == (0, 1)


def test_rounding_is_not_variance():
    """Three seeds of the same thirds: their means differ in the last digit only."""
    scores = np.array([np.roll(np.arange(30) / 3, shift) for shift in range(3)])
    found = difference(scores, scores[::-1] + 0.1, target="these problems")
    assert found.estimate.standard_error == 0


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="5 and 1 seeds"):
        difference(np.ones((5, 30)), np.ones((1, 30)))


def test_too_few_problems_speak_of_themselves_only():
    scores = np.random.default_rng(0).random((2, 5, MIN_PROBLEMS - 1))
    with pytest.raises(ValueError, match=f"{MIN_PROBLEMS - 1} problems are too few"):
        difference(*scores)
    assert np.isfinite(difference(*scores, target="these problems").p_value)


@pytest.mark.filterwarnings("error")
def test_one_number_a_seed_is_enough_for_these_problems():
    """Such as the height of a learning curve."""
    ours, theirs = np.random.default_rng(0).random((2, 5, 1))
    expected = stats.ttest_ind(ours[:, 0], theirs[:, 0], equal_var=False).pvalue
    assert difference(ours, theirs, target="these problems").p_value == pytest.approx(expected)


def test_another_target_or_confidence_is_refused():
    scores = np.random.default_rng(0).random((2, 5, 30))
    with pytest.raises(ValueError, match="target='all problems'"):
        difference(*scores, target="all problems")
    with pytest.raises(ValueError, match="confidence=95"):
        difference(*scores, confidence=95)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.03, 0.04, 0.01]) == pytest.approx([0.06, 0.06, 0.03])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
