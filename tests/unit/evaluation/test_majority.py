"""The majority vote, its ties, and the calibration of its share."""

import numpy as np
import pytest

from aent_verl.evaluation.majority import calibration_error, majority_vote


@pytest.mark.parametrize(
    ("answers", "scores", "correct", "share"),
    [
        (["a", "b", "a"], [1, 0, 1], 1, 2 / 3),
        (["a", "b", "b"], [1, 0, 0], 0, 2 / 3),
        # Ties: the expected value of a random choice among those that lead, and only those.
        (["a", "a", "b", "b", "c"], [1, 1, 0, 0, 0], 1 / 2, 2 / 5),
        (["a", "b", "c"], [0, 1, 0], 1 / 3, 1 / 3),
        # None is not a vote, but a sample.
        ([None, None, None, "a"], [0, 0, 0, 1], 1, 1 / 4),
        ([None, None], [0, 1], 0, 0),
        # A reward that judges the same answer differently.
        (["a", "a", "a", "b"], [1, 0, 0, 1], 1 / 3, 3 / 4),
    ],
)
def test_vote(answers, scores, correct, share):
    found = majority_vote(scores, answers)
    assert found.correct == pytest.approx(correct)
    assert found.share == pytest.approx(share)


def test_a_batch_keeps_its_shape():
    scores = np.array([[[1, 0, 0], [0, 1, 1]]])
    answers = [[["a", "b", "b"], ["a", "b", "b"]]]
    found = majority_vote(scores, answers)
    np.testing.assert_array_equal(found.correct, [[0, 1]])
    np.testing.assert_allclose(found.share, [[2 / 3, 2 / 3]])


def test_answers_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"scores have shape \(3,\), answers \(2,\)"):
        majority_vote([0, 1, 0], ["a", "b"])


def test_calibration_error_by_hand():
    # (.2, .3]: |1 - .3| and |0 - .25| cancel within the bin; (.9, 1]: all right.
    share = np.array([0.3, 0.25, 1.0, 0.95])
    correct = np.array([1.0, 0.0, 1.0, 1.0])
    assert calibration_error(share, correct) == pytest.approx((2 * abs(0.5 - 0.275) + 2 * (1 - 0.975)) / 4)


@pytest.mark.parametrize("votes", range(1, 10))
def test_a_share_at_the_end_of_a_bin_stays_in_it(votes):
    """3 of 10 votes fall together with .25, not with .35, whatever 3 * .1 is in binary."""
    end = sum([0.1] * votes)
    below, above = end - 0.05, end + 0.05
    assert calibration_error([end, below], [1, 0]) == pytest.approx(abs(1 - end - below) / 2)
    assert calibration_error([end, above], [1, 0]) == pytest.approx((1 - end + above) / 2)


def test_perfect_calibration_has_no_error_and_blind_confidence_has_all():
    assert calibration_error([0.5, 0.5, 1.0, 0.0], [1, 0, 1, 0]) == 0
    assert calibration_error([1.0, 1.0], [0, 0]) == 1


@pytest.mark.parametrize(("share", "correct"), [([], []), ([0.5], [1, 0]), ([1.2], [1]), ([np.nan], [1])])
def test_what_is_not_a_share_is_refused(share, correct):
    with pytest.raises(ValueError, match="share"):
        calibration_error(share, correct)
