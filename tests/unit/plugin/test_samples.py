"""Sample indices that chance does not move, and the accuracy of each prompt's group."""

import random
from typing import Any

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta

from aent_verl.plugin import samples
from aent_verl.plugin.micro_batch import ACCURACY, SAMPLE
from aent_verl.plugin.samples import fields_of, group_accuracies, sample_indices

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


class Queue:
    """TransferQueue's part: fields by key, and how many values were asked for."""

    def __init__(self, rows: dict[str, dict[str, Any]]) -> None:
        self.rows, self.asked = rows, 0

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        assert partition_id == "train"
        names = [name for name in select_fields if name in self.rows[keys[0]]]
        self.asked += len(keys) * len(names)
        columns: dict[str, Any] = {name: [self.rows[key][name] for key in keys] for name in names}
        for name, values in columns.items():
            if isinstance(values[0], torch.Tensor):
                columns[name] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
            else:
                columns[name] = NonTensorStack.from_list(values)
        return TensorDict(columns, batch_size=len(keys))


def step_of(prompts: int, rollouts: int, seed: int) -> tuple[KVBatchMeta, dict[str, dict[str, Any]]]:
    """A step's samples in any order, some with two outputs, rows and sources that repeat, and two that fill it up."""
    rng = random.Random(seed)
    rows, tags = {}, {}
    for _ in range(prompts):
        uid, place = f"{rng.random()}", {"data_source": rng.choice("ab"), "index": rng.randrange(20)}
        for rollout in range(rollouts):
            for output in range(rng.choice([1, 1, 2])):
                acc = {"reward_extra_info": {"acc": rng.choice([0.0, 1.0])}}
                scores = torch.zeros(rng.randint(1, 5))
                rows[f"{uid}_{rollout}_{output}"] = {
                    **place,
                    "uid": uid,
                    "session_id": rollout,
                    "rm_scores": scores,
                } | {"extra_fields": acc}
    for n in range(2):
        source = next(iter(rows.values()))
        rows[f"padding-{n}"] = {**source, "uid": f"padding-{n}", "rm_scores": torch.tensor([9.0])}
        tags[f"padding-{n}"] = {"is_padding": True}
    keys = rng.sample(list(rows), len(rows))
    return KVBatchMeta(keys=keys, tags=[tags.get(key, {}) for key in keys], partition_id="train"), rows


@pytest.mark.parametrize("seed", range(5))
def test_indices_and_accuracies_of_a_step_by_definition(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, rows = step_of(30, 4, seed)
    monkeypatch.setattr(samples, "tq", Queue(rows))
    fields = fields_of(batch, first_index=100, accuracies=True)
    real = [key for key in batch.keys if not key.startswith("padding")]
    order = sorted(real, key=lambda k: (rows[k]["data_source"], str(rows[k]["index"]), str(rows[k]["session_id"]), k))
    found = dict(zip(batch.keys, fields[SAMPLE].tolist(), strict=True))
    assert [found[key] - 100 for key in order] == list(range(len(real)))
    assert sorted(found.values()) == list(range(100, 100 + len(batch)))
    for key, accuracy in zip(batch.keys, fields[ACCURACY].tolist(), strict=True):
        group = [k for k in real if rows[k]["uid"] == rows[key]["uid"]]
        accs = [rows[k]["extra_fields"]["reward_extra_info"]["acc"] for k in group]
        assert accuracy == pytest.approx(sum(accs) / len(accs) if accs else 0.0, rel=1e-6)


def test_indices_ask_for_two_values_of_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """TransferQueue takes a tenth of a millisecond for each: of 8 samples a prompt, 1 is asked."""
    for prompts in (10, 80):
        batch, rows = step_of(prompts, 8, seed=1)
        queue = Queue(rows)
        monkeypatch.setattr(samples, "tq", queue)
        fields_of(batch, first_index=0, accuracies=False)
        assert queue.asked == 2 * prompts
        queue.asked = 0
        fields_of(batch, first_index=None, accuracies=True)
        assert queue.asked == 2 * len(batch)


def test_without_acc_the_sum_of_the_scores_is_the_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, dict[str, Any]] = {
        "a_0_0": {"rm_scores": torch.tensor([0.0, 0.25, 0.5])},
        "a_1_0": {"rm_scores": torch.tensor([0.25])},
        "b_0_0": {"rm_scores": torch.tensor([0.0, 1.0])},
    }
    monkeypatch.setattr(samples, "tq", Queue(rows))
    batch = KVBatchMeta(keys=list(rows), tags=[{}] * 3, partition_id="train")
    assert fields_of(batch, first_index=None, accuracies=True)[ACCURACY].tolist() == [0.5, 0.5, 1.0]
    dense = TensorDict({"rm_scores": torch.tensor([[0.25, 0.5]] * 3)}, batch_size=3)
    monkeypatch.setattr(samples.tq, "kv_batch_get", lambda **_: dense)
    assert fields_of(batch, first_index=None, accuracies=True)[ACCURACY].tolist() == [0.75] * 3
