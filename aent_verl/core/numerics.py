"""The few operations whose naive form gives NaN, or loses precision or order, each in one place."""

import math

import torch
from torch import Tensor

_KEY_TYPES = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
# Columns among which `largest` looks for one.
_BLOCK = 512


def arithmetic_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type that numbers of ``dtype`` are computed in: fp64 for fp64, fp32 for all others."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def at_least_fp32(x: Tensor) -> Tensor:
    """Return ``x`` in fp32, or unchanged where it is fp32 or fp64 already. ``[...] -> [...]``."""
    return x.to(arithmetic_type(x.dtype))


def ordered_key(value: Tensor) -> Tensor:
    """Map floats to integers of the same order, in the floats' own width, as int64; ``[...] -> [...]``.

    -0.0 comes just before 0.0; a NaN beyond infinity, on the side of its sign.
    """
    bits = value.view(_KEY_TYPES[value.dtype])
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits).long()


def from_ordered_key(key: Tensor, dtype: torch.dtype) -> Tensor:
    """Invert `ordered_key` for floats of ``dtype``; ``[...] -> [...]``."""
    bits = key.to(_KEY_TYPES[dtype])
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits).view(dtype)


def x_exp_x(x: Tensor) -> Tensor:
    """Compute ``x * exp(x)`` with its limit 0 at ``x = -inf``, in value and in gradient. ``[...] -> [...]``.

    The plain product is ``-inf * 0 = nan`` there, and a ``torch.where`` around the product would still send NaN through
    its backward pass; so the factor is replaced before it is multiplied.
    """
    return x.masked_fill(x == -torch.inf, 0.0) * x.exp()


def shift_(x: Tensor, maximum: Tensor, scale: Tensor | None) -> None:
    """Compute ``x <- (x - maximum) * scale`` in place; ``scale=None`` is 1. ``[C, V], [C, 1], [C, 1]``."""
    x.sub_(maximum)
    if scale is not None:
        x.mul_(scale)


def shift_and_exp_(x: Tensor, e: Tensor, maximum: Tensor, scale: Tensor | None) -> None:
    """Do as `shift_`, and ``e <- exp(x)``, for ``x`` at most 0. ``[C, V], [C, V], [C, 1], [C, 1]``, fp32 or fp64.

    An exponential of less than e^-70 (fp64: e^-700) becomes 0, and its ``x`` stays at that floor, so that ``x * e`` is
    0 and not ``-inf * 0``. The floor also keeps ``exp`` clear of subnormal results, for which torch takes many
    times as long on a CPU.
    """
    shift_(x, maximum, scale)
    floor = -700.0 if x.dtype is torch.float64 else -70.0
    x.clamp_(min=floor)
    torch.exp(x, out=e)
    torch.threshold_(e, math.exp(floor) * 1.001, 0.0)


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Find the largest value of each row and the column of one token that has it; ``[C, V] -> [C, 1], [C, 1]``.

    As ``x.max(-1)``, NaN included, which takes ten times as long as ``amax`` on a CPU: here ``amax`` finds the block of
    columns, and only that block is searched for the column.
    """
    vocabulary = x.shape[-1]
    width = min(_BLOCK, vocabulary)
    whole = vocabulary // width
    # The last block overlaps the one before it where the width does not divide the vocabulary.
    maxima = torch.cat(
        (x[:, : whole * width].view(-1, whole, width).amax(-1), x[:, -width:].amax(-1, keepdim=True)), -1
    )
    first = (maxima.argmax(-1, keepdim=True) * width).clamp(max=vocabulary - width)
    columns = first + torch.arange(width, device=x.device)
    values, place = x.gather(-1, columns).max(-1, keepdim=True)
    return values, first + place


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of ``values`` where ``mask`` is true, in fp64. ``[...], [...] -> []``.

    A NaN under a false mask does not count; one under a true mask does.
    """
    return values.masked_fill(~mask.bool(), 0.0).sum(dtype=torch.float64)
