r"""Choice of tokens over the whole mini-batch and all ranks, independent of how it is cut into micro-batches and ranks.

Randomness comes from a hash of (step, sample, position), not from a generator: a token has the same number on
whatever rank and in whatever order it is met. No result depends on the order of samples.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_LAST = torch.iinfo(torch.int64).max
# splitmix64's constants (Steele, Lea, Flood, 2014) as int64; torch has no arithmetic on uint64.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def priorities(*, step: int, sample: Tensor, length: int) -> Tensor:
    """Compute a reproducible stand-in for random numbers: a hash of (step, sample, position).

    Args:
        step: the training step; another step gives other numbers.
        sample: ``[B]`` int64, what identifies a sample among all of the mini-batch and ranks. Row ``i`` depends on
            ``sample[i]`` alone.
        length: ``T``.

    Returns:
        ``[B, T]`` int64, uniform over all int64. Distinct within a row; two equal ones among ``n`` have the chance
        ``n^2 / 2^65``.
    """
    row = _draw(_draw(torch.zeros_like(sample), torch.full_like(sample, step)), sample)
    return _draw(row.unsqueeze(-1), torch.arange(length, device=sample.device))


def choose_random(priority: Tensor, eligible: Tensor, count: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Mark the ``count`` eligible tokens of smallest priority; arguments and result as for `choose_largest`."""
    return choose_largest(torch.zeros_like(priority, dtype=torch.float32), priority, eligible, count, gather)


def choose_largest(
    value: Tensor, priority: Tensor, eligible: Tensor, count: int, gather: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mark the ``count`` eligible tokens of largest value over all ranks, or all if there are fewer; no gradient.

    Equal values are chosen by smaller priority. They are the rule: all tokens with log p = 0 of one response have the
    same covariance. The count is exact as long as no two tokens have both in common.

    Each rank offers its best ``count`` tokens, of which together the ``count``-th is the last one chosen. So all ranks
    must call this with the same ``count``, those without an eligible token too, and ``value`` of the same type.

    Args:
        value: ``[B, T]``; a NaN is never chosen.
        priority: ``[B, T]`` int64, see `priorities`.
        eligible: ``[B, T]`` bool.
        count: >= 0, over all ranks; may exceed the number of tokens.
        gather: concatenates the 1-D tensors, equally long, of all ranks, in any order; the identity on a single rank.

    Returns:
        ``[B, T]`` bool, this rank's part of the choice.
    """
    assert count >= 0, count
    if count == 0:
        return torch.zeros_like(eligible)
    eligible = eligible & ~value.isnan()
    value = value.detach().masked_fill(~eligible, -torch.inf)
    priority = priority.masked_fill(~eligible, _LAST)
    offered = _order(value.flatten(), priority.flatten())[:count]
    values = gather(_padded(value.flatten()[offered], count, -torch.inf))
    ties = gather(_padded(priority.flatten()[offered], count, _LAST))
    # A slice: indexing by a tensor of no dimension would wait for the device.
    last = _order(values, ties)[count - 1 : count]
    return eligible & ((value > values[last]) | ((value == values[last]) & (priority <= ties[last])))


def _order(value: Tensor, priority: Tensor) -> Tensor:
    """Sort indices by falling value and, among equal ones, rising priority; ``[N], [N] -> [N]``."""
    by_priority = priority.sort(stable=True).indices
    return by_priority[value[by_priority].sort(descending=True, stable=True).indices]


def _padded(x: Tensor, length: int, filler: float) -> Tensor:
    """Fill ``x`` up to ``length``. Not by torch's ``pad``: its filler is a float, and 2^63 - 1 becomes -2^63."""
    return torch.cat((x, x.new_full((length - x.numel(),), filler)))


def _draw(seed: Tensor, index: Tensor) -> Tensor:
    """Return number ``index`` of the splitmix64 stream that starts at ``seed``; int64, products wrap around."""
    x = seed + (index + 1) * _GAMMA
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift logically to the right: the sign bits that torch shifts in are masked away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
