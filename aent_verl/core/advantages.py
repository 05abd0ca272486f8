r"""Advantage shaping: how advantages change before the policy loss. All results are constants: no gradient flows.

Per-token tensors are ``[B, T]``, results at least fp32. Functions that read log-probabilities or entropies take the
response mask ``[B, T]`` and do not look at what stands outside it.
"""

import math

import torch
from torch import Tensor

from aent_verl.core.numerics import at_least_fp32
from aent_verl.core.policy_losses import log_ratio


def positive_reweight(advantages: Tensor, mu: float) -> Tensor:
    """Apply PAR (arXiv 2511.05993): ``mu A`` where ``A > 0``, else ``A``; ``[B, T] -> [B, T]``.

    Args:
        advantages: ``A``.
        mu: in ``[0, 1]``; 1 changes nothing (GRPO), 0 learns from negative advantages only.

    Raises:
        ValueError: ``mu`` outside ``[0, 1]``.
    """
    if not 0.0 <= mu <= 1.0:
        raise ValueError(f"mu={mu!r} is outside [0, 1]: it is the weight of positive advantages")
    a = at_least_fp32(advantages.detach())
    return torch.where(a > 0, mu * a, a)


def repo_r(advantages: Tensor, log_prob: Tensor, zeta: float) -> Tensor:
    """Apply REPO-R (arXiv 2603.11682): ``A max(0, 1 - sign(A) zeta ln p)``; ``[B, T] -> [B, T]``.

    With ``zeta > 0`` an unlikely token gains more from a positive advantage and loses less from a negative one, which
    raises the entropy; with ``zeta < 0`` it is the reverse. A weight is never negative: an advantage keeps its sign.

    Args:
        advantages: ``A``.
        log_prob: ``ln p`` of the sampled tokens, ``[B, T]``, nats.
        zeta: 0 changes nothing.
    """
    a = at_least_fp32(advantages.detach())
    return a * (1 - a.sign() * zeta * log_prob.detach()).clamp(min=0.0)


def steer_change(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, entropy: Tensor, mask: Tensor) -> Tensor:
    """Estimate how each token changes the entropy, as STEER does (arXiv 2510.10150).

    ``Om = (A / p_old) p (1 - p) (ln p + H)``, where ``p / p_old`` is the clamped ratio of the policy loss. One that is
    not finite counts as 0, as in the authors' code: a single token must not decide over the weights of all.

    Args:
        log_prob: ``ln p``, ``[B, T]``, nats.
        old_log_prob: ``ln p_old``, ``[B, T]``, nats.
        advantages: ``A``, ``[B, T]``.
        entropy: full entropy ``H``, ``[B, T]``, nats.
        mask: ``[B, T]``, the response tokens.

    Returns:
        ``[B, T]``, finite, and 0 outside the response, so that a maximum of ``|Om|`` needs no mask.
    """
    log_p = at_least_fp32(log_prob.detach())
    ratio = log_ratio(log_p, old_log_prob).exp()
    # expm1, because 1 - p is all rounding error for the many tokens with p close to 1.
    change = at_least_fp32(advantages.detach()) * ratio * -torch.expm1(log_p) * (log_p + entropy.detach())
    return change.masked_fill(~(mask.bool() & change.isfinite()), 0.0)


def steer_weight(change: Tensor, *, largest: float | Tensor, w_min: float = 0.8, floor: float = 0.02) -> Tensor:
    """Compute STEER's token weight (arXiv 2510.10150): ``clamp(exp(-k |Om|), w_min, 1)``; ``[B, T] -> [B, T]``.

    ``k = -ln(w_min) / max(largest, floor)``: the weight is 1 where ``Om = 0`` and ``w_min`` at the largest ``|Om|``.
    With that below the floor, where no token changes the entropy much, all weights are closer to 1.

    Args:
        change: ``Om`` from `steer_change`.
        largest: ``max |Om|`` over the whole mini-batch, all ranks, so that a token's weight does not depend on the
            micro-batch it is in; a number or ``[]``.
        w_min: the smallest weight, in ``(0, 1]``; all of the authors' scripts have .8.
        floor: > 0.

    Returns:
        The weight, by which the caller multiplies the advantage (or the loss per token).

    Raises:
        ValueError: ``w_min`` outside ``(0, 1]``, or ``floor`` not above 0.
    """
    if not 0.0 < w_min <= 1.0:
        raise ValueError(f"w_min={w_min!r} is outside (0, 1]: it is the smallest weight of a token")
    if not floor > 0.0:
        raise ValueError(f"floor={floor!r} must be above 0")
    top = largest.detach().clamp(min=floor) if isinstance(largest, Tensor) else max(largest, floor)
    return torch.exp(math.log(w_min) / top * change.detach().abs()).clamp(w_min, 1.0)


def entropy_advantage(
    advantages: Tensor, entropy: Tensor, mask: Tensor, *, scale: float = 0.4, kappa: float = 1.0
) -> Tensor:
    """Compute ``A + min(scale H, |A| / kappa)`` (arXiv 2506.14758): uncertain tokens get a larger advantage.

    With ``kappa >= 1`` no advantage changes its sign; with ``kappa = 1`` a negative one can become 0.

    Args:
        advantages: ``A``, ``[B, T]``.
        entropy: ``H >= 0``, ``[B, T]``, nats.
        mask: ``[B, T]``, the response tokens.
        scale: >= 0, advantage per nat.
        kappa: > 0, bounds the gain by ``|A| / kappa``.

    Returns:
        ``[B, T]``, ``A`` itself outside the response.

    Raises:
        ValueError: ``scale`` below 0, or ``kappa`` not above 0.
    """
    if not scale >= 0.0:
        raise ValueError(f"scale={scale!r} must not be below 0")
    if not kappa > 0.0:
        raise ValueError(f"kappa={kappa!r} must be above 0")
    a = at_least_fp32(advantages.detach())
    gain = torch.minimum(scale * at_least_fp32(entropy.detach()), a.abs() / kappa)
    return a + gain.masked_fill(~mask.bool(), 0.0)


def confidence(log_prob: Tensor, mask: Tensor, *, share: float = 0.2) -> Tensor:
    """Compute ARM's confidence in a text (arXiv 2602.05281): the geometric mean of its least likely tokens.

    ``exp(mean of log p)`` over the ``max(1, int(share n))`` least likely of the row's ``n`` tokens. An empty row has 1:
    nothing in it is uncertain. A NaN inside the mask makes its row NaN.

    Args:
        log_prob: ``[B, T]``, nats.
        mask: ``[B, T]``, the tokens that count.
        share: in ``(0, 1]``.

    Returns:
        ``[B]`` in ``[0, 1]``.

    Raises:
        ValueError: ``share`` outside ``(0, 1]``.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share={share!r} is outside (0, 1]: it is the part of the tokens that counts")
    surprise = -at_least_fp32(log_prob.detach())
    # Descending: NaN comes first, so that it is seen; the masked places come last.
    ordered = surprise.masked_fill(~mask.bool(), -torch.inf).sort(-1, descending=True).values
    tokens = mask.bool().sum(-1, keepdim=True)
    taken = (share * tokens.double()).long().clamp(min=1)
    rank = torch.arange(mask.shape[-1], device=mask.device)
    total = torch.where(rank < torch.minimum(taken, tokens), ordered, 0.0).sum(-1)
    return torch.exp(-total / taken.squeeze(-1))


def progrpo(
    advantages: Tensor, *, response_confidence: Tensor, prompt_confidence: Tensor, mixed: Tensor, scale: float
) -> Tensor:
    """Add ``scale (c(q) - c(o|q))`` to ``A`` in groups of mixed outcome. Reconstructed from ARM, arXiv 2602.05281.

    A response less confident than its prompt gains, one more confident loses; all tokens of it by the same amount. A
    difference that is not finite counts as 0: a NaN of the prompt, which is not in the loss, must not get there.

    Args:
        advantages: ``A``, ``[B, T]``.
        response_confidence: ``c(o|q)``, ``[B]``, see `confidence`.
        prompt_confidence: ``c(q)``, ``[B]``.
        mixed: ``[B]`` bool, whether the group of the sample has right and wrong answers.
        scale: the authors' value is not published.

    Returns:
        ``[B, T]``; padding changes too, and is for the caller's mask.
    """
    gap = (prompt_confidence - response_confidence).detach()
    return at_least_fp32(advantages.detach()) + torch.where(mixed & gap.isfinite(), scale * gap, 0.0).unsqueeze(-1)
