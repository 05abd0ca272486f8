"""What the driver tells the workers about samples: an index that does not depend on chance, and accuracies."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

ACC = "acc"
EXTRA = "reward_extra_info"


def sample_indices(order: Sequence[tuple[Any, ...]]) -> Tensor:
    """Compute the rank of each sample in the order of its sort key; ``[B]`` int64.

    verl's ``uid`` is random, and the order of a batch depends on which answer came first and on the number of ranks.
    The key must not: samples that fill up the batch come last, then data source, row and number of the rollout count,
    and only then the uid.
    """
    indices = torch.empty(len(order), dtype=torch.int64)
    for index, position in enumerate(sorted(range(len(order)), key=lambda i: order[i])):
        indices[position] = index
    return indices


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
    groups: dict[str, list[float]] = defaultdict(list)
    for uid, info, score, counts in zip(uids, extra, scores, real, strict=True):
        if counts:
            groups[uid].append(accuracy_of(info, score))
    means = {uid: sum(values) / len(values) for uid, values in groups.items()}
    return torch.tensor([means.get(uid, 0.0) for uid in uids], dtype=torch.float32)


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
