"""Diagnostics of a run: the distribution of token entropies, and how far the covariance term explains their change.

Everything that leaves a rank is a sum over its tokens, because sums reduce over ranks, micro-batches and mini-batches,
and quantiles, means and covariances do not.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aent_verl.core.controllers.state import checked_fields

BINS = 64
TOP = 12.5
# Finer towards zero, where most tokens of a language model are: the first bin is 5e-5 nats wide, the last 0.58.
_EDGES = [TOP * (i / BINS) ** 3 for i in range(BINS + 1)]

# Share of all tokens that rounding may move in sums of counts: far more than 64 additions in fp64 do, and less than the
# hundredth of a token for up to 1e10 tokens.
_ROUNDING = 1e-12


def entropy_histogram(entropy: Tensor, mask: Tensor) -> Tensor:
    """Count the tokens per bin of their entropy.

    Bin i holds ``edge_i <= H < edge_(i+1)`` with ``edge_i = TOP * (i / BINS)^3`` nats; the last one is open above, and
    the first takes the tiny negative values that rounding leaves. NaN is counted nowhere. The histograms of parts
    of the tokens add up to the one of all.

    Args:
        entropy: ``[...]``, nats.
        mask: ``[...]`` bool, the tokens to count.

    Returns:
        ``[BINS]`` float64, on the device of ``entropy``.

    Raises:
        ValueError: the mask is not boolean or has another shape.
    """
    if mask.shape != entropy.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask of shape {list(mask.shape)} and type {mask.dtype} is not allowed: must be {list(entropy.shape)} and "
            "torch.bool"
        )
    values = entropy.detach().to(torch.float64).flatten().contiguous()
    inner = torch.tensor(_EDGES[1:-1], dtype=torch.float64, device=values.device)
    # A weight of 0 or 1 instead of picking the valid tokens: their number would have to come from the device.
    weights = (mask.flatten() & ~values.isnan()).to(torch.float64)
    bins = torch.bucketize(values, inner, right=True)
    return values.new_zeros(BINS).index_add_(0, bins, weights)


def histogram_quantiles(counts: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Estimate quantiles of the token entropies behind a histogram, in nats.

    The quantile of share q is where the cumulative count reaches ``q * sum(counts)``, linear inside a bin. It lies in
    the bin of the ``ceil(q n)``-th smallest entropy, so it is off by at most that bin's width; an entropy above ``TOP``
    counts as at most ``TOP``.

    Args:
        counts: ``[BINS]``, of `entropy_histogram`; sums, or sums scaled by a common factor.
        shares: each in ``[0, 1]``.

    Returns:
        One quantile per share; NaN if the histogram is empty.

    Raises:
        ValueError: a wrong number of bins, or a share outside ``[0, 1]``.
    """
    if len(counts) != BINS:
        raise ValueError(f"counts of {len(counts)} bins are not allowed: must be {BINS}")
    for share in shares:
        if not 0 <= share <= 1:
            raise ValueError(f"share={share!r} is not allowed: must be in [0, 1]")
    cumulative = list(itertools.accumulate(counts, initial=0.0))
    if not cumulative[-1] > 0:
        return [math.nan] * len(shares)
    return [_quantile(counts, cumulative, share * cumulative[-1]) for share in shares]


def _quantile(counts: Sequence[float], cumulative: Sequence[float], position: float) -> float:
    # Averaged counts and their sums are rounded: a bin that lacks no more than that has reached the position.
    reached = position - _ROUNDING * cumulative[-1]
    i = next(i for i, count in enumerate(counts) if count > 0 and cumulative[i + 1] >= reached)
    inside = min(max(position - cumulative[i], 0.0) / counts[i], 1.0)
    return _EDGES[i] + (_EDGES[i + 1] - _EDGES[i]) * inside


def covariance_from_sums(*, n: float, sum_a: float, sum_l: float, sum_al: float) -> float:
    """Compute the covariance over tokens of advantage ``a`` and log-prob ``l``: ``mean(a l) - mean(a) mean(l)``.

    Args:
        n: number of tokens.
        sum_a: sum of the advantages.
        sum_l: sum of the log-probs, nats.
        sum_al: sum of their products.

    Returns:
        The covariance in nats; divided by ``n``, not ``n - 1``. NaN without tokens.
    """
    return sum_al / n - (sum_a / n) * (sum_l / n) if n > 0 else math.nan


@dataclass(frozen=True)
class EntropyChange:
    """How the entropy changed in a step, compared with what the covariance of the previous step predicts.

    To first order an update changes the entropy by ``-eta * Cov(log p, A)`` (arXiv 2505.22617): it falls where likely
    tokens are reinforced. ``eta`` is not known for a network trained with Adam, so it is fitted: with
    ``x = Cov_(k-1)`` and ``y = H_k - H_(k-1)`` (the update of step k-1 is seen in the entropy of step k), least squares
    through the origin over the steps so far give ``eta = -sum x y / sum x^2``. It is an estimate and no
    more: the relation is of first order, and its factor drifts with learning rate and optimiser state.

    Attributes:
        entropy: of the last step, nats; None if it was not finite.
        covariance: of the last step, nats; None if it was not finite.
        sum_xy: sum of x y over the pairs so far.
        sum_xx: sum of x^2 over the pairs so far.
    """

    entropy: float | None = None
    covariance: float | None = None
    sum_xy: float = 0.0
    sum_xx: float = 0.0

    @property
    def eta(self) -> float | None:
        """The fitted factor; None before the first pair whose covariance is not zero."""
        return -self.sum_xy / self.sum_xx if self.sum_xx > 0 else None

    def update(self, *, entropy: float, covariance: float) -> tuple["EntropyChange", float | None, float | None]:
        """Enter a training step.

        Args:
            entropy: the step's mean entropy, nats.
            covariance: the step's covariance of log-prob and advantage, nats.

        Returns:
            The next state; the measured change ``H_k - H_(k-1)``; and its estimate ``-eta * Cov_(k-1)``, with eta
            fitted on the steps before this one. Each number is None where it is not known; a pair with a number that
            is not finite does not enter the fit.
        """
        x = self.covariance
        measured = entropy - self.entropy if self.entropy is not None and math.isfinite(entropy) else None
        estimate = -self.eta * x if self.eta is not None and x is not None else None
        pair = (x, measured) if x is not None and measured is not None else (0.0, 0.0)
        after = EntropyChange(
            entropy=entropy if math.isfinite(entropy) else None,
            covariance=covariance if math.isfinite(covariance) else None,
            sum_xy=self.sum_xy + pair[0] * pair[1],
            sum_xx=self.sum_xx + pair[0] ** 2,
        )
        return after, measured, estimate

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON types; floats survive JSON exactly."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "EntropyChange":
        """Rebuild a state from `to_dict`.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type, or a number is not finite.
        """
        return cls(**checked_fields(cls, data, name="entropy change state"))
