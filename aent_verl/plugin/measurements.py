"""What each rank reports, and what the driver makes of it: sums over tokens become means, shares and quantiles.

verl sums a SUM metric over micro-batches and averages it over ranks and mini-batches. So the ratio of two such metrics
is the exact mean over all tokens of the step, whatever the aggregation of the loss and the size of micro-batches.

verl's way to average over ranks is to send every rank each other's metrics as Python objects. There are some eighty of
ours, which on hundreds of ranks takes longer than all else that this package does; so `over_ranks` pools them first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from verl.utils.metric import AggregationType, Metric

from aent_verl.core.diagnostics import BINS, covariance_from_sums, entropy_histogram, histogram_quantiles
from aent_verl.core.numerics import masked_sum
from aent_verl.methods.micro_batch import MicroBatch
from aent_verl.methods.step import MiniBatchStats, StepValues
from aent_verl.plugin.guard import PlugInNotActiveError

# Names avoid "max" and "min", which verl's metric reduction reads as instructions.
OURS = "aent/"
SUM, BIN, STATS, LOWEST, HIGHEST = "aent/sum/", "aent/bin/", "aent/stats/", "aent/lowest/", "aent/highest/"
BONUS_LOSS = "aent/bonus_loss"
MEANS = ("entropy", "entropy_full", "removed_mass", "bonus_weight", "advantage_change")
# Only where the rollout truncates.
SAMPLED = "entropy_sampled"
QUANTILES = (0.1, 0.5, 0.9, 0.99)
COEFFICIENTS = ("bonus", "advantages")


@torch.no_grad()
def of_micro_batch(
    batch: MicroBatch,
    *,
    shaped: Tensor,
    bonus_weight: Tensor,
    bonus_loss: Tensor,
    step: StepValues,
    stats: MiniBatchStats,
) -> dict[str, Metric]:
    """Collect metrics of one micro-batch for verl to reduce; the device is asked once for all of them.

    Args:
        batch: the tokens.
        shaped: advantages after shaping, ``[B, T]``.
        bonus_weight: weight of each token in the bonus, ``[B, T]``.
        bonus_loss: the bonus's part of the loss, ``[]``.
        step: what the driver sent.
        stats: what was measured of the mini-batch.
    """
    advantages, log_prob = batch.advantages, batch.log_prob
    values = {
        "tokens": torch.ones_like(log_prob),
        "entropy": batch.entropy,
        "entropy_full": batch.entropy_full,
        "removed_mass": batch.removed_mass,
        "bonus_weight": bonus_weight,
        "advantage_change": (shaped - advantages).abs(),
        "entropy_positive": torch.where(advantages > 0, batch.entropy, 0.0),
        "entropy_negative": torch.where(advantages < 0, batch.entropy, 0.0),
        "advantage": advantages,
        "log_prob": log_prob,
        "advantage_log_prob": advantages * log_prob,
    }
    if batch.entropy_sampled is not None:
        values[SAMPLED] = batch.entropy_sampled
    sums = [masked_sum(value, batch.mask) for value in values.values()]
    histogram = entropy_histogram(batch.entropy, batch.mask)
    numbers = torch.cat([torch.stack([*sums, bonus_loss.double()]), histogram.to(sums[0].device)]).tolist()
    names = [*(SUM + name for name in values), BONUS_LOSS, *(f"{BIN}{i:02d}" for i in range(BINS))]
    metrics = {
        name: Metric(value=number, aggregation=AggregationType.SUM) for name, number in zip(names, numbers, strict=True)
    }
    for name in COEFFICIENTS:
        metrics[LOWEST + name] = Metric(value=getattr(step, f"{name}_coefficient"), aggregation=AggregationType.MIN)
        metrics[HIGHEST + name] = Metric(value=getattr(step, f"{name}_coefficient"), aggregation=AggregationType.MAX)
    return metrics | {
        STATS + name: Metric(value=value, aggregation=AggregationType.MEAN) for name, value in stats.report.items()
    }


_OVER_RANKS: dict[AggregationType, Callable[[Any], Any]] = {
    AggregationType.SUM: np.mean,
    AggregationType.MEAN: np.mean,
    AggregationType.MIN: np.min,
    AggregationType.MAX: np.max,
}


def over_ranks(metrics: dict[str, Any], group: Any) -> dict[str, Any]:
    """Pool our metrics of a mini-batch over micro-batches and ranks, as verl would, into those of the first rank.

    The ranks exchange one array each, as bytes: not every device's collectives add up fp64.

    Args:
        metrics: of this rank, as verl's engine returns them; the same names on all ranks.
        group: data-parallel group; None for a single rank.

    Returns:
        verl's own metrics, and on the first rank of ``group`` ours with one value each, from which verl's own
        average over ranks makes the same value.
    """
    ours = {key: metric for key, metric in metrics.items() if key.startswith(OURS)}
    if group is None or not ours:
        return metrics
    rows: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(rows, np.array([metric.aggregate() for metric in ours.values()]), group=group)
    others = {key: metric for key, metric in metrics.items() if key not in ours}
    if dist.get_rank(group) != 0:
        return others
    columns = np.stack(rows).T
    return others | {
        key: Metric(metric.aggregation, float(_OVER_RANKS[metric.aggregation](column)))
        for (key, metric), column in zip(ours.items(), columns, strict=True)
    }


def taken(metrics: dict[str, Any]) -> dict[str, float]:
    """Take our numbers out of verl's ``metrics`` of an update of the actor."""
    return {
        key.removeprefix("actor/"): float(metrics.pop(key)) for key in list(metrics) if key.startswith("actor/aent/")
    }


def pooled(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Pool what `taken` found of each update of a training step: sums add up, so that every token counts the same."""
    together = {key: [update[key] for update in updates if key in update] for key in {k for u in updates for k in u}}
    return {key: _pool(key)(values) for key, values in together.items()}


def _pool(key: str) -> Callable[[list[float]], float]:
    kinds: dict[str, Callable[[list[float]], float]] = {SUM: math.fsum, BIN: math.fsum, LOWEST: min, HIGHEST: max}
    return next((pool for prefix, pool in kinds.items() if key.startswith(prefix)), fmean)


def of_step(ours: Mapping[str, float], sent: StepValues) -> dict[str, float]:
    """Make the step's numbers from those of its updates, `pooled`; entropies in nats.

    Raises:
        PlugInNotActiveError: no such numbers, or a rank that used another coefficient than the one ``sent``.
    """
    try:
        _check_coefficients(ours, sent)
        sums = {key.removeprefix(SUM): float(value) for key, value in ours.items() if key.startswith(SUM)}
        histogram = [float(ours[f"{BIN}{i:02d}"]) for i in range(BINS)]
        tokens = sums["tokens"]
        names = MEANS + ((SAMPLED,) if SAMPLED in sums else ())
        means = {name: sums[name] / tokens if tokens > 0 else float("nan") for name in names}
        result = {f"aent/{name}": value for name, value in means.items()} | {
            "aent/bonus_loss": float(ours[BONUS_LOSS]),
            "aent/entropy_share_positive": _ratio(sums["entropy_positive"], sums["entropy"]),
            "aent/entropy_share_negative": _ratio(sums["entropy_negative"], sums["entropy"]),
            "aent/covariance": covariance_from_sums(
                n=tokens, sum_a=sums["advantage"], sum_l=sums["log_prob"], sum_al=sums["advantage_log_prob"]
            ),
        }
    except KeyError as error:
        raise PlugInNotActiveError(f"the actor's update returned no {error}: our loss did not run") from None
    result |= {
        f"aent/entropy_q{round(100 * share):02d}": value
        for share, value in zip(QUANTILES, histogram_quantiles(histogram, QUANTILES), strict=True)
    }
    return result | {
        "aent/" + key.removeprefix(STATS): float(value) for key, value in ours.items() if key.startswith(STATS)
    }


def _check_coefficients(ours: Mapping[str, Any], sent: StepValues) -> None:
    for name in COEFFICIENTS:
        lowest, highest, value = ours[LOWEST + name], ours[HIGHEST + name], getattr(sent, f"{name}_coefficient")
        # Not equality: verl takes the mean over the mini-batches, and that of equal numbers may differ in the last bit.
        if not all(math.isclose(end, value, rel_tol=1e-9, abs_tol=1e-12) for end in (lowest, highest)):
            raise PlugInNotActiveError(
                f"ranks used {name} coefficients in [{lowest!r}, {highest!r}], the driver sent {value!r}"
            )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole != 0 else 0.0
