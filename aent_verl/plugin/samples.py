"""What the driver tells the workers about samples: an index that does not depend on chance, and accuracies.

Beside the shaping of rewards this is the work of ours on the driver that grows with the samples of a step, while all
GPUs wait. So it asks TransferQueue for little, which costs most by far, and works on columns rather than on samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from aent_verl.plugin.micro_batch import ACCURACY, SAMPLE

ACC = "acc"
EXTRA = "reward_extra_info"


def fields_of(batch: KVBatchMeta, *, first_index: int | None, accuracies: bool) -> dict[str, Tensor]:
    """Compute the fields of each sample that the workers need, ``[B]`` each: `SAMPLE` and `ACCURACY`.

    Args:
        batch: the samples of an update, with verl's keys: ``<uid>_<number of the rollout>_<number of the output>``.
        first_index: the smallest index to give; None for no indices.
        accuracies: whether to compute accuracies.

    Raises:
        ValueError: as `group_accuracies`.
    """
    real = [not tag.get("is_padding", False) for tag in batch.tags]
    parts = [key.rsplit("_", 2) for key in batch.keys]
    fields: dict[str, Tensor] = {}
    if first_index is not None:
        one_of = {uid: key for (uid, *_), key, counts in zip(parts, batch.keys, real, strict=True) if counts}
        place = _places(one_of, batch.partition_id)
        number = {at: i for i, at in enumerate(sorted(set(place.values())))}
        of_prompt = {uid: number[at] for uid, at in place.items()}
        # Samples that fill up the batch come last.
        order = [
            (of_prompt[part[0]], part[1], key) if counts else (len(number), "", key)
            for part, key, counts in zip(parts, batch.keys, real, strict=True)
        ]
        fields[SAMPLE] = sample_indices(order) + first_index
    if accuracies:
        asked = ["extra_fields", "rm_scores", ACC]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=asked)
        extra = extra_fields(data, len(batch))
        fields[ACCURACY] = group_accuracies([uid for uid, *_ in parts], extra, _sums(data["rm_scores"]), real)
    return fields


def uid_of(key: str) -> str:
    """Return the prompt's uid, with which verl's key of each of its samples begins."""
    return key.rsplit("_", 2)[0]


def _places(one_of: Mapping[str, str], partition: str) -> dict[str, tuple[str, str]]:
    """Look up the data source and the row of each prompt, by the key of one of its samples: they share both."""
    if not one_of:
        return {}
    names = ["data_source", "index"]
    data = tq.kv_batch_get(keys=list(one_of.values()), partition_id=partition, select_fields=names)
    columns = [column(data[name]) if name in data else [""] * len(one_of) for name in names]
    return {uid: (str(source), str(row)) for uid, source, row in zip(one_of, *columns, strict=True)}


def _sums(values: Tensor) -> list[float]:
    """Add up each row, of a nested tensor ``[B, j]`` too."""
    if not values.is_nested:
        return values.double().sum(-1).tolist()
    lengths = values.offsets().diff()  # type: ignore[attr-defined]
    return torch.segment_reduce(values.values().double(), "sum", lengths=lengths).tolist()


def sample_indices(order: Sequence[tuple[Any, ...]]) -> Tensor:
    """Compute the rank of each sample in the order of its sort key; ``[B]`` int64.

    verl's ``uid`` is random, and the order of a batch depends on which answer came first and on the number of ranks.
    The key must not: samples that fill up the batch come last, then data source, row and number of the rollout count,
    and only then the uid.
    """
    ranks = np.zeros(len(order), dtype=np.int64)
    # By one more column at a time, until no two are equal: that mostly spares the uids, the longest.
    for values in zip(*order, strict=True):
        code = {value: number for number, value in enumerate(sorted(set(values)))}
        codes = np.fromiter((code[value] for value in values), np.int64, len(values))
        distinct, ranks = np.unique(ranks * len(code) + codes, return_inverse=True)
        if len(distinct) == len(order):
            break
    indices = np.empty(len(order), dtype=np.int64)
    indices[np.argsort(ranks, kind="stable")] = np.arange(len(order))
    return torch.from_numpy(indices)


def group_accuracies(
    uids: Sequence[str], extra: Sequence[Any], scores: Sequence[float], real: Sequence[bool]
) -> Tensor:
    """Compute the mean accuracy of each sample's group; ``[B]`` fp32 in ``[0, 1]``.

    The accuracy of a sample is the reward function's ``acc``, else its score.

    Args:
        uids: the group of each sample.
        extra: verl's ``extra_fields`` of each sample, with the reward function's ``reward_extra_info``.
        scores: score of each sample.
        real: False for samples that verl added to fill up the batch; they count in no group.

    Raises:
        ValueError: neither ``acc`` nor a score is in ``[0, 1]``.
    """
    number = {uid: i for i, uid in enumerate(dict.fromkeys(uids))}
    group = np.fromiter((number[uid] for uid in uids), np.int64, len(uids))
    accuracies = [
        accuracy_of(info, score) if counts else 0.0
        for _, info, score, counts in zip(uids, extra, scores, real, strict=True)
    ]
    sizes = np.bincount(group, np.asarray(real, dtype=np.float64), len(number))
    means = np.bincount(group, np.asarray(accuracies, dtype=np.float64), len(number)) / np.maximum(sizes, 1.0)
    return torch.from_numpy(means[group].astype(np.float32))


def column(values: Any) -> list[Any]:
    """List a field of a batch by sample; verl hands out tensors, lists, and tensordict's stacks of objects."""
    if isinstance(values, Tensor):
        return list(values.unbind())
    return list(values) if isinstance(values, list) else values.tolist()


def extra_fields(data: TensorDict, count: int) -> list[Any]:
    """List verl's ``extra_fields`` of all samples; a reward model in the workers' place puts `acc` beside them."""
    if ACC in data:
        return [{EXTRA: {ACC: accuracy}} for accuracy in column(data[ACC])]
    return column(data["extra_fields"]) if "extra_fields" in data else [None] * count


def accuracy_of(extra: Any, score: float) -> float:
    """Compute the accuracy of one sample with verl's ``extra_fields`` and score.

    Raises:
        ValueError: as `group_accuracies`.
    """
    info = extra.get(EXTRA) if isinstance(extra, Mapping) else None
    given = info.get(ACC) if isinstance(info, Mapping) else None
    accuracy = float(score if given is None else given)
    if not 0.0 <= accuracy <= 1.0:
        name = "score" if given is None else ACC
        raise ValueError(
            f"{name}={accuracy!r} of a sample is not an accuracy: a method that weighs by difficulty needs a "
            "reward function that returns `acc` in [0, 1] with its score, or a score in [0, 1]"
        )
    return accuracy
