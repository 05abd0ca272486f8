"""The tests alongside the verdict."""

import numpy as np
import pytest
from scipy import stats

from aent_verl.comparison.stats.cross_checks import cross_checks, paired_bootstrap, wilcoxon_over_problems
from aent_verl.comparison.stats.differences import difference


def draws(shift=0.0):
    rng = np.random.default_rng(0)
    return rng.random((5, 30, 4)) + shift, rng.random((4, 30, 4))


def test_the_bootstrap_equals_a_plain_loop():
    ours, theirs = (scores.mean(axis=2) for scores in draws())
    rng = np.random.default_rng(5)
    means = []
    for _ in range(4000):
        columns = rng.integers(30, size=30)
        rows = [rng.integers(len(scores), size=len(scores)) for scores in (ours, theirs)]
        means.append(ours[rows[0]][:, columns].mean() - theirs[rows[1]][:, columns].mean())
    low, high = np.quantile(means, [0.05, 0.95])
    found = paired_bootstrap(ours, theirs, confidence=0.9, reps=4000)
    assert found == pytest.approx((low, high), abs=0.06 * (high - low))


def test_the_bootstrap_draws_the_same_problems_for_both():
    ours, theirs = draws()
    hardness = 100 * np.random.default_rng(1).random((30, 1))
    assert paired_bootstrap(ours + hardness, theirs + hardness) == pytest.approx(paired_bootstrap(ours, theirs))


def test_a_seed_repeats_it():
    assert paired_bootstrap(*draws(), seed=1) == paired_bootstrap(*draws(), seed=1)
    assert paired_bootstrap(*draws(), seed=1) != paired_bootstrap(*draws(), seed=2)


def test_wilcoxon_is_scipys_over_the_means_of_the_seeds():
    ours, theirs = draws(0.05)
    expected = stats.wilcoxon(ours.mean(axis=(0, 2)) - theirs.mean(axis=(0, 2))).pvalue
    assert wilcoxon_over_problems(ours, theirs) == pytest.approx(expected)


def test_wilcoxon_takes_rounding_for_no_difference():
    scores = np.random.default_rng(0).random((5, 30))
    assert wilcoxon_over_problems(scores, scores[::-1]) == 1


def test_all_of_them():
    ours, theirs = draws(0.2)
    found = cross_checks(ours, theirs)
    assert found.welch_p == difference(ours, theirs, target="these problems").p_value
    assert found.wilcoxon_p == wilcoxon_over_problems(ours, theirs)
    assert (found.bootstrap_low, found.bootstrap_high) == paired_bootstrap(ours, theirs)
    assert found.bootstrap_low > 0


def test_with_equal_seeds_welch_is_scipys_and_else_more_careful():
    ours, theirs = draws(0.2)
    for of_ours in (ours, ours[:4]):
        welch = stats.ttest_ind(of_ours.mean(axis=(1, 2)), theirs.mean(axis=(1, 2)), equal_var=False)
        found = cross_checks(of_ours, theirs).welch_p
        assert found > welch.pvalue if len(of_ours) == 5 else found == pytest.approx(welch.pvalue)


def test_one_seed_has_no_welch_test():
    ours, theirs = draws()
    assert cross_checks(ours, theirs[:1]).welch_p is None


def test_seeds_that_do_not_vary_have_no_welch_test():
    ours, theirs = (np.tile(scores[:1], (3, 1, 1)) for scores in draws(0.2))
    assert cross_checks(ours, theirs).welch_p is None
    assert cross_checks(ours, ours).welch_p == 1
