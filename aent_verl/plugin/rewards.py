"""The step's rewards, changed by the method before verl makes advantages of them; the trackers show those as given."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from aent_verl.core.controllers import SavedState
from aent_verl.methods.rewards import Responses, RewardShaping
from aent_verl.plugin import samples
from aent_verl.plugin.micro_batch import ENTROPY, response_places

_REWARDS = "rm_scores"
_ADDED = "aent/rewards_added"
_FIELDS = (ENTROPY, "response_mask", "responses", "extra_fields", samples.ACC, _REWARDS)


def shape(
    batch: KVBatchMeta, shaping: RewardShaping, state: SavedState, tokenizer: Any
) -> tuple[Tensor, Tensor, SavedState, dict[str, float]]:
    """Apply ``shaping`` to the step's responses; those that fill up the batch keep their rewards and do not count.

    Returns:
        The rewards as given and as shaped, nested ``[B, j]`` in verl's layout, with the change at the last token; the
        state after the step; and metrics.

    Raises:
        ValueError: a shaped reward is not finite, or an accuracy is needed and not in ``[0, 1]``.
    """
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(_FIELDS))
    real = [index for index, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
    given = data[_REWARDS]
    padded = data.select("response_mask", "responses").to_padded_tensor()
    entropy = _response_entropy(data[ENTROPY], data["response_mask"], padded["responses"].shape[1])
    padded = padded[real]
    reward = given.to_padded_tensor(0.0).sum(-1).double()[real]
    uids = [samples.uid_of(key) for key in batch.keys]
    prompts = {uid: index for index, uid in enumerate(dict.fromkeys(uids[sample] for sample in real))}
    accuracy = None
    if shaping.needs_accuracy:
        extra = samples.extra_fields(data, len(batch))
        scores = zip((extra[sample] for sample in real), reward.tolist(), strict=True)
        accuracy = torch.tensor([samples.accuracy_of(info, score) for info, score in scores], dtype=torch.float64)
    responses = Responses(
        reward=reward,
        mask=padded["response_mask"].bool(),
        tokens=padded["responses"],
        entropy=entropy[real],
        group=torch.tensor([prompts[uids[sample]] for sample in real]),
        text=lambda token: str(tokenizer.decode([token])),
        accuracy=accuracy,
    )
    shaped, state = shaping.shape(responses, state)
    if not bool(shaped.isfinite().all()):
        where = int((~shaped.isfinite()).nonzero()[0])
        raise ValueError(f"{type(shaping).__name__} made the reward {float(reward[where])} {float(shaped[where])}")
    added = shaped - reward
    values = given.values().clone()
    values[given.offsets()[1:][real] - 1] += added.to(values.dtype)
    metrics = {_ADDED: float(added.mean()), f"{_ADDED}_abs": float(added.abs().mean())}
    metrics |= {f"aent/{name}": value for name, value in shaping.metrics(state).items()}
    return given, torch.nested.nested_tensor_from_jagged(values, given.offsets()), state, metrics


def _response_entropy(of_all: Tensor, mask: Tensor, length: int) -> Tensor:
    """Pad the entropies of response tokens with 0; nested ``[B, j]`` over prompt and response -> ``[B, T]`` fp64."""
    values = of_all.values()[response_places(of_all, mask)]
    offsets: Tensor = mask.offsets()  # type: ignore[attr-defined]
    return torch.nested.nested_tensor_from_jagged(values, offsets, max_seqlen=length).to_padded_tensor(0.0).double()


def of_step(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Pool the metrics of `shape` over the updates of a step: what was added on average, the state after the last."""
    return {
        key: fmean(update[key] for update in updates) if key.startswith(_ADDED) else value
        for key, value in (updates[-1] if updates else {}).items()
    }


@contextlib.contextmanager
def replaced(batch: KVBatchMeta, given: Tensor, shaped: Tensor) -> Iterator[None]:
    """Give verl the shaped rewards for a while, and then those as given back."""
    _put(batch, shaped)
    try:
        yield
    finally:
        _put(batch, given)


def _put(batch: KVBatchMeta, rewards: Tensor) -> None:
    fields = TensorDict({_REWARDS: rewards}, batch_size=len(batch))
    tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
