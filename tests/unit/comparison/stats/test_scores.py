"""What goes into the statistics: shapes, missing numbers, and the same problems in the same order."""

import numpy as np
import pytest

from aent_verl.comparison.stats.scores import score_matrices, score_matrix, shared_problems


def test_samples_are_averaged():
    scores = np.random.default_rng(0).random((3, 4, 8))
    np.testing.assert_allclose(score_matrix(scores, "aent"), scores.mean(axis=2))
    np.testing.assert_array_equal(score_matrix(scores[..., 0], "aent"), scores[..., 0])


@pytest.mark.parametrize("shape", [(4,), (0, 3), (2, 0), (2, 3, 0), (1, 2, 3, 4)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"scores\['aent'\] have shape"):
        score_matrix(np.ones(shape), "aent")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_missing_score_is_named(bad):
    scores = np.ones((3, 4, 2))
    scores[1, 2, :] = bad
    with pytest.raises(ValueError, match=r"'aent'\] hold 2 values .* seed 1, problem 2"):
        score_matrix(scores, "aent")


def test_different_numbers_of_problems_are_refused_with_both():
    with pytest.raises(ValueError, match=r"aent: 30, grpo: 28.*intersect=True"):
        score_matrices({"aent": np.ones((3, 30)), "grpo": np.ones((3, 28, 4))})


def test_the_same_problems_in_another_order_are_brought_into_one():
    ids = {"aent": ["a", "b", "c"], "grpo": ["c", "a", "b"]}
    columns = shared_problems(ids)
    assert [[ids[name][column] for column in columns[name]] for name in ids] == [["a", "b", "c"]] * 2


def test_unequal_problems_are_cut_to_the_shared_only_when_asked():
    ids = {"aent": ["a", "b", "c", "d"], "grpo": ["e", "d", "b"]}
    with pytest.raises(ValueError, match=r"aent: 4, grpo: 3, 2 shared by all.*intersect=True"):
        shared_problems(ids)
    columns = shared_problems(ids, intersect=True)
    assert columns["aent"].tolist() == [1, 3]
    assert columns["grpo"].tolist() == [2, 1]


def test_a_subset_is_unequal_too():
    with pytest.raises(ValueError, match="1 shared by all"):
        shared_problems({"aent": ["a"], "grpo": ["a", "b"]})


def test_as_many_but_other_problems_are_unequal():
    with pytest.raises(ValueError, match="aent: 2, grpo: 2, 1 shared by all"):
        shared_problems({"aent": ["a", "b"], "grpo": ["a", "c"]})


def test_nothing_in_common_is_refused_even_when_asked():
    with pytest.raises(ValueError, match="share no problem, aent: 1, grpo: 2"):
        shared_problems({"aent": ["a"], "grpo": ["b", "c"]}, intersect=True)


def test_a_problem_that_occurs_twice_is_named():
    with pytest.raises(ValueError, match="'b' occurs more than once in the scores of 'grpo'"):
        shared_problems({"aent": ["a", "b"], "grpo": ["a", "b", "b"]})
