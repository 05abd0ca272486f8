"""The few operations whose naive form gives NaN or loses precision, each in one place."""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """Return ``x`` in fp32, or unchanged where it is fp32 or fp64 already. ``[...] -> [...]``."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def x_exp_x(x: Tensor) -> Tensor:
    """``x * exp(x)`` with its limit 0 at ``x = -inf``, in value and in gradient. ``[...] -> [...]``.

    The plain product is ``-inf * 0 = nan`` there, and a ``torch.where`` around the product would still send NaN through
    its backward pass; so the factor is replaced before it is multiplied.
    """
    return x.masked_fill(x == -torch.inf, 0.0) * x.exp()


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of ``values`` where ``mask`` is true, in at least fp32. ``[...], [...] -> []``.

    A NaN under a false mask does not count; one under a true mask does.
    """
    return at_least_fp32(values).masked_fill(~mask.bool(), 0.0).sum()
