r"""Entropies of next-token distributions, in their plain form: the definition that faster versions are tested against.

With logits ``z`` over a vocabulary of ``V`` tokens, already divided by the sampling temperature, all values in nats.

*Full*: ``p = softmax(z)``, ``H = -sum_v p_v log p_v`` and ``dH/dz_v = -p_v (log p_v + H)``.

*Clamped* (AEnt, arXiv 2509.03493): the ``k = int(V * clamp_p)`` lowest logits are removed, the rest is renormalised,
``q = softmax(z restricted to the kept tokens)``, ``H~ = -sum_v q_v log q_v`` and ``dH~/dz_v = -q_v (log q_v + H~)`` on
the kept tokens, 0 elsewhere; which tokens are kept carries no gradient.

Ties at the boundary are common in bf16. With ``t`` the ``k``-th smallest logit, every token above ``t`` is kept and, of
the ``n`` tokens equal to ``t``, as many as the count needs, ``r``. ``H~`` depends on ``r`` only, so each of the ``n``
enters sums and gradient with the share ``r / n``: the count is exact, and the order of the vocabulary does not matter.

*Nucleus* (SIREN, arXiv 2509.25133): in the order of falling probability a token is kept while the cumulative
probability *including* it is below ``top_p``, so that the token which crosses is left out, and at most 10,000 tokens
are. Value, gradient and the sharing of ties at the boundary are the clamped entropy's on this other set; where nothing
is kept, because one token alone has ``top_p``, entropy and gradient are 0.

*TRE* (arXiv 2602.03635): ``S`` holds the likeliest tokens up to the one with which their probability reaches ``top_p``,
and all that are tied with it; the entropy is ``log V / log |S|`` times that of the softmax over ``S``, and 0
where ``S`` is one token. ``S`` carries no gradient.
"""

import math

import torch
from torch import Tensor

from aent_verl.core.numerics import at_least_fp32, x_exp_x

# SIREN's bound on the size of the nucleus.
NUCLEUS_MAX_TOKENS = 10_000


def check_clamp_p(clamp_p: float) -> None:
    """Raise ``ValueError`` unless ``0 <= clamp_p < 1``."""
    if not 0.0 <= clamp_p < 1.0:
        raise ValueError(f"clamp_p={clamp_p!r} is outside [0, 1): it is the share of the vocabulary that is removed")


def check_top_p(top_p: float) -> None:
    """Raise ``ValueError`` unless ``0 < top_p < 1``."""
    if not 0.0 < top_p < 1.0:
        raise ValueError(f"top_p={top_p!r} is outside (0, 1): it is the probability that the nucleus stays below")


def keep_share(logits: Tensor, clamp_p: float) -> Tensor:
    """Return the share with which the clamp keeps each token: 1 above the boundary, ``r / n`` on it, 0 below.

    Args:
        logits: ``[..., V]``. ``-inf`` goes first; the order among equal logits does not matter.
        clamp_p: share of the vocabulary to remove, in ``[0, 1)``; ``int(V * clamp_p)`` tokens go, at least one stays.

    Returns:
        ``[..., V]`` without gradient, at least fp32, each row summing to ``V - int(V * clamp_p)``. A row that holds NaN
        is 0 at its NaN.

    Raises:
        ValueError: ``clamp_p`` outside ``[0, 1)``.
    """
    check_clamp_p(clamp_p)
    z = at_least_fp32(logits.detach())
    vocabulary = z.shape[-1]
    removed = min(int(vocabulary * clamp_p), vocabulary - 1)
    if removed == 0:
        return torch.ones_like(z)
    boundary = z.kthvalue(removed, dim=-1, keepdim=True).values
    return _share_the_tied(z, boundary, vocabulary - removed)


def _share_the_tied(z: Tensor, boundary: Tensor, kept: Tensor | int) -> Tensor:
    """Give 1 above ``boundary`` and, on it, what makes each row sum to ``kept``; ``[..., V], [..., 1] -> [..., V]``."""
    above, tied = z > boundary, z == boundary
    # The division in z's own precision: of two integer tensors torch makes an fp32 one.
    needed = (kept - above.sum(-1, keepdim=True)).to(z.dtype)
    return above + tied * (needed / tied.sum(-1, keepdim=True))


def nucleus_share(logits: Tensor, top_p: float) -> Tensor:
    """Return the share with which the nucleus keeps each token; as `keep_share`, all 0 where nothing is kept.

    Args:
        logits: ``[..., V]``.
        top_p: probability that the nucleus stays below, in ``(0, 1)``.

    Raises:
        ValueError: ``top_p`` outside ``(0, 1)``.
    """
    check_top_p(top_p)
    z = at_least_fp32(logits.detach())
    ordered = z.sort(-1, descending=True).values
    e = (ordered - ordered[..., :1]).exp()
    normaliser = 1.0 + e[..., 1:].sum(-1, keepdim=True).double()
    # Summed before it is divided: n of N equal tokens then have the fp64 number nearest n / N, no more and no less.
    kept = (e.cumsum(-1, dtype=torch.float64) / normaliser < top_p).sum(-1, keepdim=True)
    kept = kept.clamp(max=NUCLEUS_MAX_TOKENS)
    share = _share_the_tied(z, ordered.gather(-1, (kept - 1).clamp(min=0)), kept)
    return share.masked_fill(kept == 0, 0.0)


def restricted_entropy(logits: Tensor, keep: Tensor) -> Tensor:
    """Compute the entropy in nats of the softmax over tokens weighted by ``keep``; ``[..., V], [..., V] -> [...]``.

    With ``x = z - max z`` and ``S = 1 + R = sum_v keep_v exp(x_v)`` this is ``log(1 + R) - (1/S) sum_v keep_v x_v
    exp(x_v)``, two non-negative terms. ``R`` is summed without the 1 of one largest token, so that nothing is lost on
    peaked rows either. Differentiable in ``logits``.
    """
    z = at_least_fp32(logits)
    maximum, top = z.max(-1, keepdim=True)
    # The maximum is not detached: what reaches the largest logit is then minus the sum over the others. Its own terms
    # would cancel.
    x = z - maximum
    terms = (keep * x.exp()).expand_as(x)
    rest = terms.scatter_add(-1, top, torch.full_like(maximum, -1.0)).sum(-1)
    return rest.log1p() - (keep * x_exp_x(x)).sum(-1) / (1.0 + rest)


def removed_mass(logits: Tensor, keep: Tensor) -> Tensor:
    """Sum the probability of what ``keep`` leaves out of the softmax; ``[..., V], [..., V] -> [...]``, no gradient."""
    z = at_least_fp32(logits.detach())
    # Not by softmax, whose own sum in fp32 loses small terms one by one.
    e = (z - z.amax(-1, keepdim=True)).exp()
    return (e * (1.0 - keep)).sum(-1) / e.sum(-1)


def full_entropy(logits: Tensor) -> Tensor:
    """Compute the entropy in nats of ``softmax(logits)``; ``[..., V] -> [...]``, differentiable.

    ``-inf`` logits have probability 0 and add nothing; NaN stays NaN; a row of only ``-inf`` has no distribution: NaN.
    """
    return restricted_entropy(logits, torch.ones((), device=logits.device))


def nucleus_entropy(logits: Tensor, top_p: float) -> Tensor:
    """Compute SIREN's entropy on the nucleus (arXiv 2509.25133); ``[..., V] -> [...]``, nats, 0 where nothing is kept.

    See the module's docstring for the definition, ties and gradient.

    Raises:
        ValueError: ``top_p`` outside ``(0, 1)``.
    """
    keep = nucleus_share(logits, top_p)
    nothing = (keep == 0).all(-1)
    # Rows without a nucleus are computed with every token kept, so that no NaN arises in their backward pass.
    entropy = restricted_entropy(logits, keep.masked_fill(nothing.unsqueeze(-1), 1.0))
    return entropy.masked_fill(nothing & ~entropy.isnan(), 0.0)


def tre_entropy(logits: Tensor, top_p: float) -> Tensor:
    """Compute TRE's entropy (arXiv 2602.03635) in nats, in ``[0, log V]``; ``[..., V] -> [...]``, differentiable.

    See the module's docstring for the definition.

    Raises:
        ValueError: ``top_p`` outside ``(0, 1)``.
    """
    check_top_p(top_p)
    z = at_least_fp32(logits.detach())
    ordered = z.sort(-1, descending=True).values
    mass = (ordered - ordered[..., :1]).exp().cumsum(-1, dtype=torch.float64)
    before = (mass < top_p * mass[..., -1:]).sum(-1, keepdim=True).clamp(max=z.shape[-1] - 1)
    keep = (z >= ordered.gather(-1, before)).to(z.dtype)
    # Of one token the entropy is 0, whatever it is multiplied by.
    scale = math.log(z.shape[-1]) / keep.sum(-1).clamp(min=2.0).log()
    return scale * restricted_entropy(logits, keep)


def top_k_and_rest_entropy(logits: Tensor, k: int) -> Tensor:
    """Compute the entropy of the ``k`` likeliest tokens and of one more event, any other; ``[..., V] -> [...]``, nats.

    It is what can be known of a distribution from the ``k`` log-probs that an inference server returns (AEPO, with 10:
    arXiv 2510.08457). At most the full entropy, and equal to it for ``k >= V``. Differentiable.

    Raises:
        ValueError: ``k`` below 1.
    """
    if k < 1:
        raise ValueError(f"k={k!r} is not allowed: must be at least 1")
    log_p = at_least_fp32(logits).log_softmax(-1).topk(min(k, logits.shape[-1])).values
    rest = 1.0 - log_p.exp().sum(-1)
    # Of a peaked row this is rounding, which may be negative and has no logarithm.
    rest = rest.masked_fill(rest < 1e-12, 1.0)
    of_rest: Tensor = torch.special.entr(rest)
    return of_rest - x_exp_x(log_p).sum(-1)


def clamped_entropy(logits: Tensor, clamp_p: float) -> Tensor:
    """Compute AEnt's entropy on the renormalised, smaller token set (arXiv 2509.03493); ``[..., V] -> [...]``, nats.

    ``clamp_p = 0`` is the full entropy. See the module's docstring for the definition, ties and gradient.

    Raises:
        ValueError: ``clamp_p`` outside ``[0, 1)``.
    """
    return restricted_entropy(logits, keep_share(logits, clamp_p))
