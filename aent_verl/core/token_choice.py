r"""Choice of tokens over the whole mini-batch and all ranks, independent of how it is cut into micro-batches and ranks.

Randomness comes from a hash of (step, sample, position), not from a generator: a token has the same number on
whatever rank and in whatever order it is met. No result depends on the order of samples.

*The definition.* Each token has a key, an int64. The n-th smallest key over all ranks is the one at place n of the
sorted keys of all of them. A choice of n tokens takes those of smaller key, and of the tied ones as many as are left,
by a second key.

*How it is found.* By radix selection over counts: each rank counts the values of the keys' highest digit, the counts
are added up over the ranks, and the digit in which the n-th key falls is known to all. The next round counts the next
digit of the tokens that share it. A digit has 11 bits, so a key is known after 6 rounds of one sum of 2,048 counts,
16 KiB: neither depends on the number of tokens or of ranks. Fewer bits would mean more rounds, each of which waits for
the slowest rank; 16 bits save two rounds and send 32 times as much.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aent_verl.core.numerics import from_ordered_key, ordered_key

Add = Callable[[Tensor], Tensor]
"""Adds up the tensors, equal in shape, of all ranks, on all of them; the identity on a single rank."""

_BINS = 1 << 11
# Where the digits of a key begin, the highest first. The last two overlap, 64 being no multiple of 11.
_SHIFTS = (53, 42, 31, 20, 9, 0)
_SIGN = torch.iinfo(torch.int64).min
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


def choose_random(priority: Tensor, eligible: Tensor, count: int, add: Add) -> Tensor:
    """Mark the ``count`` eligible tokens of smallest priority; arguments and result as for `choose_largest`."""
    return _choose_smallest((priority,), eligible, count, add)


def choose_largest(value: Tensor, priority: Tensor, eligible: Tensor, count: int, add: Add) -> Tensor:
    """Mark the ``count`` eligible tokens of largest value over all ranks, or all if there are fewer; no gradient.

    Equal values are chosen by smaller priority. They are the rule: all tokens with log p = 0 of one response have the
    same covariance. The count is exact as long as no two tokens have both in common.

    All ranks must call this with the same ``count``, those without an eligible token too.

    Args:
        value: ``[B, T]``; a NaN is never chosen.
        priority: ``[B, T]`` int64, see `priorities`.
        eligible: ``[B, T]`` bool.
        count: >= 0, over all ranks; may exceed the number of tokens.
        add: see `Add`; called 12 times with ``[1, 2048]`` int64, which it may overwrite.

    Returns:
        ``[B, T]`` bool, this rank's part of the choice.
    """
    # ~x = -1 - x turns the order around without an overflow.
    return _choose_smallest((~_key(value), priority), eligible & ~value.isnan(), count, add)


def order_statistics(value: Tensor, eligible: Tensor, places: Sequence[int], add: Add) -> Tensor:
    """Find the values at ``places`` of the sorted eligible values of all ranks, exactly; no gradient.

    Args:
        value: ``[B, T]``, no NaN where it is eligible. Of the zeros, -0.0 counts as 0.0.
        eligible: ``[B, T]`` bool.
        places: ``K`` of them, from 0 on, the same on all ranks; beyond the last value they mean the last.
        add: see `Add`; called 6 times with ``[K, 2048]`` int64, which it may overwrite.

    Returns:
        ``[K]`` fp64, the same on all ranks; without meaning if no token is eligible.
    """
    nth = torch.tensor(places, device=value.device) + 1
    return from_ordered_key(_nth_smallest(_key(value), eligible, nth, add)[0], torch.float64)


def _key(value: Tensor) -> Tensor:
    """Map values to int64 of the same order, equal where the values are: -0.0 as 0.0."""
    value = value.detach().double()
    return ordered_key(value.masked_fill(value == 0, 0.0))


def _choose_smallest(keys: Sequence[Tensor], eligible: Tensor, count: int, add: Add) -> Tensor:
    """Mark the ``count`` eligible tokens of smallest ``keys[0]``, tied ones by ``keys[1]``, and so on."""
    assert count >= 0, count
    chosen = torch.zeros_like(eligible)
    if count == 0:
        return chosen
    left = torch.tensor([count], device=eligible.device)
    for key in keys:
        last, left = _nth_smallest(key, eligible, left, add)
        chosen |= eligible & (key < last)
        eligible = eligible & (key == last)
    # Tied in all keys.
    return chosen | eligible


def _nth_smallest(key: Tensor, eligible: Tensor, nth: Tensor, add: Add) -> tuple[Tensor, Tensor]:
    """Find the ``nth`` smallest keys of the eligible tokens over all ranks; the module's docstring says how.

    Args:
        key: int64, any shape.
        eligible: bool, same shape.
        nth: ``[K]`` int64, from 1 on; more than there are tokens means the last.
        add: called with ``[K, 2048]`` int64.

    Returns:
        The keys ``[K]``, and how many of the tokens that have just this key belong to the ``nth`` smallest, ``[K]``.
        The key has no meaning where no token is eligible.
    """
    unsigned = key ^ _SIGN
    found = torch.zeros_like(nth)
    sharing = [eligible] * len(nth)
    for shift in _SHIFTS:
        digit = (unsigned >> shift) & (_BINS - 1)
        # Tokens that do not count go to a bin of their own: selecting them would cost a copy.
        counts = [torch.where(each, digit, _BINS).flatten().bincount(minlength=_BINS + 1)[:_BINS] for each in sharing]
        total = add(torch.stack(counts)).cumsum(-1)
        nth = torch.minimum(nth, total[:, -1])
        below = total < nth.unsqueeze(-1)
        here = below.sum(-1)
        nth = nth - total.masked_fill(~below, 0).amax(-1)
        found |= here << shift
        sharing = [each & (digit == this) for each, this in zip(sharing, here, strict=True)]
    return found ^ _SIGN, nth


def _draw(seed: Tensor, index: Tensor) -> Tensor:
    """Return number ``index`` of the splitmix64 stream that starts at ``seed``; int64, products wrap around."""
    x = seed + (index + 1) * _GAMMA
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift logically to the right: the sign bits that torch shifts in are masked away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
