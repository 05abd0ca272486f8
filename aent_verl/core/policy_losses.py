r"""Policy losses that act on tokens of high covariance: Clip-Cov and KL-Cov (arXiv 2505.22617), surrogates per token.

With ``x = log p - log p_old``, clamped, and ``r = exp(x)``, the covariance of a token is
``(A - mean A) (log p - mean log p)``: entropy falls most where it is large. Which tokens are meant is chosen
beforehand over the whole mini-batch, see `token_choice`, and arrives here as a mask; the caller aggregates over all
response tokens.

Log-probabilities at places outside the response may be anything, NaN included: the clamp passes no gradient there.
Advantages are constants and must be finite everywhere: the caller replaces what stands outside the response
(`plugin.micro_batch`).
"""

import torch
from torch import Tensor

from aent_verl.core.numerics import at_least_fp32

# Nats. verl's vanilla loss clamps at the same value.
LOG_RATIO_LIMIT = 20.0


def log_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Compute ``clamp(log p - log p_old, -20, 20)``; ``[...], [...] -> [...]``, nats, at least fp32.

    Differentiable in ``log_prob`` only, with gradient 1 up to the limit and 0 beyond it and at NaN.
    """
    difference = at_least_fp32(log_prob) - at_least_fp32(old_log_prob.detach())
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def covariance(
    advantages: Tensor, log_prob: Tensor, *, mean_advantage: float | Tensor, mean_log_prob: float | Tensor
) -> Tensor:
    """Compute ``(A - mean A) (log p - mean log p)`` per token; ``[...], [...] -> [...]``, fp64, no gradient.

    Args:
        advantages: ``A``.
        log_prob: ``log p``, nats.
        mean_advantage: over the response tokens of the whole mini-batch, all ranks; a number or ``[]``.
        mean_log_prob: likewise.
    """
    return ((advantages.double() - mean_advantage) * (log_prob.double() - mean_log_prob)).detach()


def clipped(ratio: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """Mark the tokens whose loss the PPO clip changes: ``-A clip(r, 1-low, 1+high) > -A r``; ``[...] -> [...]`` bool.

    Args:
        ratio: ``r``.
        advantages: ``A``.
        low: the clip range below 1.
        high: the clip range above 1.
    """
    r, a = ratio.detach(), advantages.detach()
    return -a * r.clamp(1.0 - low, 1.0 + high) > -a * r


def clip_cov(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, dropped: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """Compute Clip-Cov (arXiv 2505.22617): PPO's loss, without the dropped tokens.

    ``max(-A r, -A clip(r, 1-low, 1+high))``, with gradient ``-A r`` where the clip leaves the token alone and 0 where
    it does not; at dropped tokens loss and gradient are 0, whatever stands there.

    Args:
        log_prob: ``[B, T]``, nats; the gradient flows here only.
        old_log_prob: ``[B, T]``, nats.
        advantages: ``[B, T]``.
        dropped: ``[B, T]`` bool, tokens whose loss is taken out; they stay in the average.
        clip_low: the clip range below 1; the authors' is 1, which no ratio leaves.
        clip_high: the clip range above 1; the authors' is 1, a ratio of 2.

    Returns:
        ``[B, T]``, at least fp32.
    """
    x = log_ratio(log_prob, old_log_prob).masked_fill(dropped, 0.0)
    a = advantages.detach().masked_fill(dropped, 0.0)
    ratio = x.exp()
    return torch.maximum(-a * ratio, -a * ratio.clamp(1.0 - clip_low, 1.0 + clip_high))


def kl_cov(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, penalised: Tensor, *, coefficient: float
) -> Tensor:
    """Compute KL-Cov (arXiv 2505.22617): ``-A r``, without a clip, plus ``coefficient |x|`` at the penalised tokens.

    Its gradient is ``-A r``, plus ``coefficient sign(x)`` at those. At ``x = 0``, so in a strictly on-policy run,
    the penalty has neither value nor gradient.

    Args:
        log_prob: ``[B, T]``, nats; the gradient flows here only.
        old_log_prob: ``[B, T]``, nats.
        advantages: ``[B, T]``.
        penalised: ``[B, T]`` bool.
        coefficient: >= 0; the authors' is 1.

    Returns:
        ``[B, T]``, at least fp32.
    """
    x = log_ratio(log_prob, old_log_prob)
    penalty = torch.where(penalised, coefficient * x.abs(), 0.0)
    return -advantages.detach() * x.exp() + penalty
