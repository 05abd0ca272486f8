"""What the driver does to verl's batch where rewards are shaped: the layout, samples that fill up, and the way back."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from aent_verl.core.controllers import SavedState
from aent_verl.methods.rewards import Responses, RewardShaping
from aent_verl.plugin import rewards, samples
from aent_verl.plugin.micro_batch import ENTROPY

PROMPTS, RESPONSES = (2, 1, 3, 2, 2), (3, 1, 2, 4, 2)
FILLER = 3
UIDS = ["b", "a", "b", "b", "a"]


@dataclass(frozen=True)
class Count(SavedState):
    steps: int = 0


@dataclass(frozen=True)
class Recorder(RewardShaping):
    """Adds ten times the group, and keeps what it was given."""

    needs_accuracy: ClassVar[bool] = True
    state_class: ClassVar[type[SavedState]] = Count
    seen: ClassVar[list[Responses]] = []

    def shape(self, responses: Responses, state: Count) -> tuple[Tensor, Count]:
        self.seen.append(responses)
        return responses.reward + 10.0 * responses.group, Count(state.steps + 1)

    def metrics(self, state: Count) -> dict[str, float]:
        return {"count": state.steps}


def nested(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Five samples, the fourth of which fills up the batch, in a store that stands in for verl's transfer queue."""
    scores = (1.0, 0.0, 0.5, 1.0, 0.25)
    store = TensorDict(
        {
            # Over prompt and response; the value of a response's token stands one place before it.
            ENTROPY: nested(
                [torch.arange(float(p + r)) + 10 * i for i, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True))]
            ),
            "response_mask": nested([torch.ones(r) for r in RESPONSES]),
            "responses": nested([torch.arange(r) + 100 * i for i, r in enumerate(RESPONSES)]),
            "prompts": nested([torch.arange(p) for p in PROMPTS]),
            "rm_scores": nested(
                [torch.cat([torch.zeros(r - 1), torch.tensor([s])]) for r, s in zip(RESPONSES, scores, strict=True)]
            ),
        },
        batch_size=5,
    )

    def get(keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        return store.select(*[field for field in select_fields if field in store]).clone(recurse=False)

    def put(keys: list[str], partition_id: str, fields: TensorDict) -> None:
        store.update(fields)

    monkeypatch.setattr(rewards, "tq", SimpleNamespace(kv_batch_get=get, kv_batch_put=put))
    monkeypatch.setattr(Recorder, "seen", [])

    class Batch(SimpleNamespace):
        def __len__(self) -> int:
            return 5

    tags = [{"is_padding": i == FILLER} for i in range(5)]
    return Batch(keys=[f"{uid}_{n}_0" for n, uid in enumerate(UIDS)], partition_id="train", tags=tags, store=store)


def scores(values: Tensor) -> list[float]:
    return [float(row.sum()) for row in values.unbind()]


def test_the_shaping_sees_the_real_responses(batch: Any) -> None:
    decoded = SimpleNamespace(decode=lambda ids: f"<{ids[0]}>")
    rewards.shape(batch, Recorder(), Count(), decoded)
    (seen,) = Recorder.seen
    assert seen.reward.tolist() == [1.0, 0.0, 0.5, 0.25]
    assert seen.accuracy is not None
    assert seen.accuracy.tolist() == [1.0, 0.0, 0.5, 0.25]
    assert seen.group.tolist() == [0, 1, 0, 1]
    assert seen.mask.sum(-1).tolist() == [3, 1, 2, 2]
    # The value before the first token of the response, and so on.
    assert [row[m].tolist() for row, m in zip(seen.entropy, seen.mask, strict=True)] == [
        [1.0, 2.0, 3.0], [10.0], [22.0, 23.0], [41.0, 42.0],
    ]  # fmt: skip
    assert seen.tokens[2, :2].tolist() == [200, 201]
    assert seen.text(7) == "<7>"


def test_the_change_is_at_the_last_token_of_real_responses_and_is_undone(batch: Any) -> None:
    given, shaped, state, metrics = rewards.shape(batch, Recorder(), Count(2), None)
    assert state == Count(3)
    assert metrics == {"aent/rewards_added": 5.0, "aent/rewards_added_abs": 5.0, "aent/count": 3}
    assert scores(shaped) == [1.0, 10.0, 0.5, 1.0, 10.25]
    assert shaped.unbind()[4].tolist() == [0.0, 10.25]
    with rewards.replaced(batch, given, shaped):
        assert scores(batch.store["rm_scores"]) == scores(shaped)
    assert scores(batch.store["rm_scores"]) == [1.0, 0.0, 0.5, 1.0, 0.25]
    with pytest.raises(KeyError), rewards.replaced(batch, given, shaped):
        raise KeyError
    assert scores(batch.store["rm_scores"]) == [1.0, 0.0, 0.5, 1.0, 0.25]


def test_the_accuracy_is_the_reward_functions_acc(batch: Any) -> None:
    batch.store["extra_fields"] = [{samples.EXTRA: {samples.ACC: i % 2 == 0}} for i in range(5)]
    rewards.shape(batch, Recorder(), Count(), None)
    assert Recorder.seen[0].accuracy is not None
    assert Recorder.seen[0].accuracy.tolist() == [1.0, 0.0, 1.0, 1.0]
    batch.store["rm_scores"] = batch.store["rm_scores"] * 3
    del batch.store["extra_fields"]
    with pytest.raises(ValueError, match=r"score=3\.0 of a sample is not an accuracy"):
        rewards.shape(batch, Recorder(), Count(), None)


def test_a_reward_that_is_not_finite_is_named(batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def shape(self: Recorder, responses: Responses, state: Count) -> tuple[Tensor, Count]:
        return responses.reward / 0.0, state

    monkeypatch.setattr(Recorder, "shape", shape)
    with pytest.raises(ValueError, match=r"Recorder made the reward 1\.0 inf"):
        rewards.shape(batch, Recorder(), Count(), None)
