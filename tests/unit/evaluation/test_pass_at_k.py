"""pass@k against its definition: the share of subsets that hold a right sample."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from aent_verl.evaluation.pass_at_k import pass_at_all_k


def test_equals_the_share_of_all_subsets_that_hold_a_right_sample():
    for samples in range(1, 8):
        for right in range(samples + 1):
            scores = np.random.default_rng(right).permutation([1] * right + [0] * (samples - right))
            for k in range(1, samples + 1):
                subsets = [any(subset) for subset in combinations(scores, k)]
                assert pass_at_all_k(scores)[k - 1] == pytest.approx(np.mean(subsets), abs=1e-12)


def test_all_k_of_a_batch_of_problems():
    scores = np.random.default_rng(0).integers(2, size=(3, 5, 6))
    found = pass_at_all_k(scores)
    assert found.shape == (3, 5, 6)
    for place in np.ndindex(3, 5):
        np.testing.assert_array_equal(found[place], pass_at_all_k(scores[place]))
    np.testing.assert_allclose(found[..., 0], scores.mean(axis=-1))
    np.testing.assert_array_equal(found[..., -1], scores.any(axis=-1))


def test_is_exact_where_binomials_are_beyond_a_float():
    scores = np.zeros(1100)
    scores[:3] = 1
    expected = 1 - comb(1097, 550) / comb(1100, 550)  # exact integers
    assert pass_at_all_k(scores)[549] == pytest.approx(expected, rel=1e-12)


def test_a_mean_over_draws_of_k_fresh_samples_is_1_minus_q_to_the_k():
    scores = np.random.default_rng(0).random((200_000, 6)) < 0.3
    assert pass_at_all_k(scores)[:, 3].mean() == pytest.approx(1 - 0.7**4, abs=0.003)


@pytest.mark.parametrize("score", [0.5, 2.0, np.nan])
def test_graded_scores_are_refused(score):
    with pytest.raises(ValueError, match=rf"0 or 1, found {score:g}: use mean@n"):
        pass_at_all_k(np.array([0.0, 1.0, score]))
