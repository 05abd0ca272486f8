"""Sample indices that chance does not move, and the accuracy of each prompt's group."""

import random
from typing import Any

import pytest
import torch

from aent_verl.plugin.samples import group_accuracies, sample_indices

# Row of the data set, number of the rollout, uid: the first two decide, the last where they are equal.
KEYS = [("1", "0", "c"), ("0", "1", "z"), ("0", "0", "y"), ("1", "0", "a"), ("2", "0", "b")]


def test_an_index_is_the_rank_of_its_key() -> None:
    indices = sample_indices(KEYS)
    assert indices.dtype == torch.int64
    assert indices.tolist() == [3, 1, 0, 2, 4]
    assert sample_indices([]).tolist() == []


def test_every_sample_keeps_its_index_in_any_order() -> None:
    rng = random.Random(0)
    keys = [(str(rng.randrange(40)), str(n % 8), f"{rng.random()}") for n in range(200)]
    index_of = dict(zip(keys, sample_indices(keys).tolist(), strict=True))
    assert sorted(index_of.values()) == list(range(200))
    for _ in range(5):
        rng.shuffle(keys)
        assert sample_indices(keys).tolist() == [index_of[key] for key in keys]


def test_equal_keys_get_different_indices() -> None:
    assert sorted(sample_indices([("0", "0", "a")] * 3).tolist()) == [0, 1, 2]


def acc(value: Any) -> dict[str, Any]:
    return {"reward_extra_info": {"acc": value, "other": 7.0}}


NOTHING: list[Any] = [{}, {"reward_extra_info": None}, {"reward_extra_info": {}}, None, 0, acc(None)]


def test_accuracy_is_the_mean_of_the_group_wherever_its_samples_stand() -> None:
    found = group_accuracies(
        ["a", "b", "a", "c", "b", "a", "a"],
        [acc(1.0), acc(0), acc(0.5), acc(True), acc(False), acc(0.0), acc(1)],
        [-3.0, 9.0, 9.0, -3.0, 9.0, 9.0, 9.0],
        [True] * 7,
    )
    assert found.dtype == torch.float32
    assert found.tolist() == [0.625, 0.0, 0.625, 1.0, 0.0, 0.625, 0.625]


@pytest.mark.parametrize("extra", NOTHING)
def test_without_acc_the_score_is_the_accuracy(extra: Any) -> None:
    assert group_accuracies(["a", "a"], [extra, extra], [1.0, 0.5], [True, True]).tolist() == [0.75, 0.75]


def test_acc_next_to_the_score_holds_even_if_it_is_0() -> None:
    assert group_accuracies(["a"], [acc(0)], [1.0], [True]).tolist() == [0.0]


def test_samples_that_fill_up_the_batch_count_in_no_group() -> None:
    uids, scores = ["a", "a", "b", "pad"], [1.0, 0.0, 1.0, -7.0]
    found = group_accuracies(uids, [acc(1.0), acc(0.0), acc(1.0), {}], scores, [True, False, True, False])
    assert found.tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("bad", [-0.01, 1.01, 10.0, -1.0, float("nan"), float("inf")])
def test_what_is_not_an_accuracy_is_refused_by_name_and_value(bad: float) -> None:
    with pytest.raises(ValueError, match=r"^score=.* is not an accuracy.*`acc` in \[0, 1\]") as error:
        group_accuracies(["a", "a"], [{}, {}], [1.0, bad], [True, True])
    assert f"score={bad!r}" in str(error.value)
    with pytest.raises(ValueError, match=r"^acc=") as error:
        group_accuracies(["a"], [acc(bad)], [1.0], [True])
    assert f"acc={bad!r}" in str(error.value)
    # One that fills up the batch is not looked at.
    assert group_accuracies(["a", "a"], [acc(0.5), acc(bad)], [0.0, bad], [True, False]).tolist() == [0.5, 0.5]


def test_fields_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        group_accuracies(["a", "a"], [{}], [1.0, 1.0], [True, True])
