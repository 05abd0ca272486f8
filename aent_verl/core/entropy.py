r"""Entropies of next-token distributions, in their plain form: the definition that faster versions are tested against.

With logits ``z`` over a vocabulary of ``V`` tokens, already divided by the sampling temperature, all values in nats.

*Full*: ``p = softmax(z)``, ``H = -sum_v p_v log p_v`` and ``dH/dz_v = -p_v (log p_v + H)``.

*Clamped* (AEnt, arXiv 2509.03493): the ``k = int(V * clamp_p)`` lowest logits are removed, the rest is renormalised,
``q = softmax(z restricted to the kept tokens)``, ``H~ = -sum_v q_v log q_v`` and ``dH~/dz_v = -q_v (log q_v + H~)`` on
the kept tokens, 0 elsewhere; which tokens are kept carries no gradient.

Ties at the boundary are common in bf16. With ``t`` the ``k``-th smallest logit, every token above ``t`` is kept and, of
the ``n`` tokens equal to ``t``, as many as the count needs, ``r``. ``H~`` depends on ``r`` only, so each of the ``n``
enters sums and gradient with the share ``r / n``: the count is exact, and the order of the vocabulary does not matter.
"""

import torch
from torch import Tensor

from aent_verl.core.numerics import at_least_fp32, x_exp_x


def check_clamp_p(clamp_p: float) -> None:
    """Raise ``ValueError`` unless ``0 <= clamp_p < 1``."""
    if not 0.0 <= clamp_p < 1.0:
        raise ValueError(f"clamp_p={clamp_p!r} is outside [0, 1): it is the share of the vocabulary that is removed")


def keep_share(logits: Tensor, clamp_p: float) -> Tensor:
    """Share with which each token is kept by the clamp: 1 above the boundary, ``r / n`` on it, 0 below.

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
    above, tied = z > boundary, z == boundary
    # The division in z's own precision: of two integer tensors torch makes an fp32 one.
    needed = (vocabulary - removed - above.sum(-1, keepdim=True)).to(z.dtype)
    return above + tied * (needed / tied.sum(-1, keepdim=True))


def restricted_entropy(logits: Tensor, keep: Tensor) -> Tensor:
    """Entropy in nats of the softmax over tokens weighted by ``keep``; ``[..., V], [..., V] -> [...]``.

    With ``x = z - max z`` and ``S = sum_v keep_v exp(x_v)`` this is ``log S - (1/S) sum_v keep_v x_v exp(x_v)``, two
    non-negative terms, so that nothing cancels on peaked rows. Differentiable in ``logits``.
    """
    z = at_least_fp32(logits)
    x = z - z.detach().amax(-1, keepdim=True)
    normaliser = (keep * x.exp()).sum(-1)
    return normaliser.log() - (keep * x_exp_x(x)).sum(-1) / normaliser


def removed_mass(logits: Tensor, keep: Tensor) -> Tensor:
    """Probability under the full softmax of what ``keep`` leaves out; ``[..., V], [..., V] -> [...]``, no gradient."""
    p = at_least_fp32(logits.detach()).softmax(-1)
    return (p * (1.0 - keep)).sum(-1)


def full_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of ``softmax(logits)``; ``[..., V] -> [...]``, differentiable.

    ``-inf`` logits have probability 0 and add nothing; NaN stays NaN; a row of only ``-inf`` is no distribution: NaN.
    """
    return restricted_entropy(logits, torch.ones((), device=logits.device))


def clamped_entropy(logits: Tensor, clamp_p: float) -> Tensor:
    """AEnt's entropy on the re-normalised, smaller token set (arXiv 2509.03493); ``[..., V] -> [...]``, nats.

    ``clamp_p = 0`` is the full entropy. See the module's docstring for the definition, ties and gradient.

    Raises:
        ValueError: ``clamp_p`` outside ``[0, 1)``.
    """
    return restricted_entropy(logits, keep_share(logits, clamp_p))
