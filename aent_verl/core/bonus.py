r"""Bonus forms: how per-token entropies become a loss term; and which tokens and samples take part, with what weight.

A bonus form maps entropies ``H``, nats, to a loss per token, differentiable in ``H`` only. A peak mask and a weight per
sample then scale it, without gradient. The caller aggregates the result with the run's loss aggregation. A linear or
smoothed bonus is aggregated over **all** response tokens: tokens that are masked or weighted down lower the average,
they do not leave it. An anchored bonus compares two averages, so masked tokens must leave it: see `averaged_tokens`.

Per-token tensors are ``[B, T]`` with a response mask ``[B, T]``; what stands outside it is arbitrary, NaN included.
"""

import math

import torch
from torch import Tensor


def linear(entropy: Tensor, coefficient: float) -> Tensor:
    """Return ``-coefficient * H`` per token: the bonus of AEnt and of the plain entropy regulariser, as a loss.

    Args:
        entropy: ``[...]``, nats.
        coefficient: lambda >= 0 rewards entropy.

    Returns:
        ``[...]``, to be averaged over all response tokens and added to the policy loss.
    """
    return -coefficient * entropy


def anchored(entropy: Tensor, coefficient: float, *, aggregate: float | Tensor, target: float | Tensor) -> Tensor:
    """Write SIREN's squared distance of an average to a target (arXiv 2509.25133) as a loss per token.

    With weights ``w`` per token, ``agg`` a linear aggregation, ``a = agg(w H) / agg(w)`` over the whole mini-batch,
    ``t`` the target and ``c`` the coefficient: per token ``c (a - t) (2 H - a - t)``. Weighted by ``w`` and divided by
    ``agg(w)`` its aggregate is ``c (a - t)^2`` and its gradient ``2 c (a - t) da``, those of the squared distance.
    Micro-batches and ranks see only a part of the mini-batch, and the sum of their squares is not the square of the
    whole. But ``agg`` is linear, so that only ``2 c (a - t)`` and ``agg(w)`` couple the parts, and they are the same
    for all once they are known, from a pass ahead of the update.

    Args:
        entropy: ``[...]``, nats; the gradient flows here only.
        coefficient: > 0 pulls ``a`` to the target, from above as from below.
        aggregate: ``a``, nats, a number or ``[]``; taken as a constant.
        target: ``t``, nats, a number or ``[]``; taken as a constant.

    Returns:
        ``[...]``, to be weighted, averaged over `averaged_tokens` and added to the policy loss.
    """
    a, t = _constant(aggregate), _constant(target)
    return coefficient * ((a - t) * (2.0 * entropy - a - t))


def smoothed(
    entropy: Tensor, coefficient: float, *, mean: float | Tensor | None, low: float, high: float, beta: float
) -> Tensor:
    """Compute EPO's bonus (arXiv 2509.22576): ``-coefficient * (H - beta * d)``, with ``d`` the distance to the range.

    ``d = relu(low * mean - H) + relu(H - high * mean)``, so that ``d' = -1, 0, +1`` below, inside (edges included) and
    above. The authors' public code adds a constant alpha of .05 to .1 for each token outside instead, which has no
    gradient; this is their text: the amount.

    Args:
        entropy: ``[...]``, nats; the gradient flows here only.
        coefficient: >= 0 rewards entropy.
        mean: running mean of past entropies, nats, a number or ``[]``, taken as a constant; None before there is one:
            no penalty.
        low: lower edge of the range, in units of ``mean``.
        high: upper edge.
        beta: weight of the penalty, see `smoothing_weight`; above 1 it outweighs the bonus of tokens above the range.

    Returns:
        ``[...]``, to be added to the policy loss.

    Raises:
        ValueError: ``low > high``.
    """
    if not low <= high:
        raise ValueError(f"low={low!r} and high={high!r}: the range needs low <= high")
    if mean is None:
        return linear(entropy, coefficient)
    centre = _constant(mean)
    outside = torch.relu(low * centre - entropy) + torch.relu(entropy - high * centre)
    return -coefficient * (entropy - beta * outside)


def smoothing_weight(step_index: int, total_steps: int, *, gamma: float) -> float:
    """Compute EPO's ``beta_k = 1 + exp(-gamma k / max(1, floor(K / 2)))`` (arXiv 2509.22576): from 2 towards 1.

    Args:
        step_index: ``k``, counted from 0.
        total_steps: ``K``.
        gamma: speed; the authors' is 3.
    """
    return 1.0 + math.exp(-gamma * step_index / max(1, total_steps // 2))


def peak_mask(entropy: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """Mark SIREN's peaks: tokens strictly above the ``quantile`` of the entropies of their own response, no gradient.

    The quantile interpolates linearly between order statistics, as `torch.quantile`. A response whose entropies are
    all equal has no peak, nor has an empty one. A NaN inside the mask is not a peak and does not count in the quantile;
    `weighted` keeps it in the loss, so that it does not go unseen.

    Args:
        entropy: ``[B, T]``, nats.
        mask: ``[B, T]``, the response tokens.
        quantile: in ``[0, 1)``; the authors' is .8.

    Returns:
        ``[B, T]`` bool.

    Raises:
        ValueError: ``quantile`` outside ``[0, 1)``.
    """
    if not 0.0 <= quantile < 1.0:
        raise ValueError(f"quantile={quantile!r} is outside [0, 1): a token must lie above it to be a peak")
    h = entropy.detach()
    counted = mask.bool() & ~h.isnan()
    ordered = h.masked_fill(~counted, torch.inf).sort(-1).values
    last = (counted.sum(-1, keepdim=True) - 1).clamp(min=0)
    # Between two order statistics there is no token: above the interpolated value means above the lower of the two.
    # A product that only rounding keeps from an integer counts as it: .29 of 100 is 28.999999999999996 in fp64.
    below = (quantile * last.double() + 1e-9).long()
    return counted & (h > ordered.gather(-1, below))


def linear_difficulty(accuracy: Tensor) -> Tensor:
    """Weigh by ``1 - accuracy``: the harder the prompt, the larger the bonus. Reconstructed from AER, arXiv 2510.10959.

    Args:
        accuracy: ``[B]`` in ``[0, 1]``, the mean over the group of the sample's prompt; the caller checks the range.

    Returns:
        ``[B]``, no gradient.
    """
    return 1.0 - accuracy.detach()


def threshold_difficulty(accuracy: Tensor, *, threshold: float) -> Tensor:
    """Weigh by 1 where ``accuracy <= threshold``, else 0. Reconstructed from AER, arXiv 2510.10959.

    torch compares in the type of ``accuracy``, so that 3 right answers of 10 are at ``threshold=0.3``.

    Args:
        accuracy: ``[B]`` in ``[0, 1]``, the mean over the group of the sample's prompt; the caller checks the range.
        threshold: in ``[0, 1]``.

    Returns:
        ``[B]`` in the type of ``accuracy``, no gradient.

    Raises:
        ValueError: ``threshold`` outside ``[0, 1]``.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold={threshold!r} is outside [0, 1]: it is an accuracy")
    return (accuracy <= threshold).to(accuracy.dtype)


def weighted(term: Tensor, mask: Tensor, peaks: Tensor | None, weight: Tensor | None) -> Tensor:
    """Compute ``term * peaks * weight`` inside the response; exactly 0 outside, whatever stands there.

    What the result is to be divided by is for the caller; see the top of this file. A NaN inside the response stays NaN
    even where peak or weight is 0: an error there must reach the loss.

    Args:
        term: ``[B, T]``, entropies or a loss per token; the gradient flows here only.
        mask: ``[B, T]``, the response tokens.
        peaks: ``[B, T]`` bool from `peak_mask`; None: all tokens.
        weight: ``[B]`` per sample; None: 1.

    Returns:
        ``[B, T]``.
    """
    if peaks is not None:
        term = term * peaks.to(term.dtype)
    if weight is not None:
        term = term * weight.detach().to(term.dtype).unsqueeze(-1)
    return torch.where(mask.bool(), term, 0.0)


def averaged_tokens(entropy: Tensor, mask: Tensor, peaks: Tensor | None) -> Tensor:
    """Mark the tokens over which an anchored bonus averages: those of its mask (SIREN, arXiv 2509.25133).

    Divided by all response tokens, as a linear bonus is, the average of a fifth of them would be a fifth as large, and
    the square of a distance to it a 25th. A NaN is not a peak but counts here: an error must reach the loss.

    Args:
        entropy: ``[B, T]``, nats.
        mask: ``[B, T]``, the response tokens.
        peaks: ``[B, T]`` bool from `peak_mask`; None: all tokens.

    Returns:
        ``[B, T]`` bool, to be the mask of the aggregation.
    """
    return mask.bool() if peaks is None else mask.bool() & (peaks | entropy.detach().isnan())


def _constant(value: float | Tensor) -> float | Tensor:
    return value.detach() if isinstance(value, Tensor) else value
