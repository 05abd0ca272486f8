r"""Which tokens an entropy keeps, as a boundary value and a share per row; found without sorting the vocabulary.

Both restricted entropies keep the largest logits of a row: every token above a boundary ``t`` and, of the ``n`` tokens
tied at ``t``, some ``r``, each of them with the weight ``share = r / n`` (`entropy` defines this). A few numbers a row
thus stand for the kept set, and no mask or index tensor outlives a chunk. The division by a positive temperature keeps
the order, so the boundary is one of the logits as they come.

*The k-th smallest on the CPU.* A pass that compares a chunk with one value per row and counts, while the chunk stays in
the cache, takes a small part of the time of any search that branches on data or scatters (docs/performance.md has the
figures of ``kthvalue``, numpy's ``partition``, histograms, ``topk`` and ``sort``). So large rows are searched by
counting: a bracket on order-preserving integer keys of the logits' own dtype (16 bits for half types), opened by a
sample of the row and narrowed by interpolation, or by halving where tokens are tied. That takes few passes on most rows
(a test counts them) and at most about two per bit of the key. Short rows do not repay the
passes' fixed cost, and CUDA's ``kthvalue`` is a radix selection already: there ``kthvalue`` is used.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aent_verl.core.entropy import NUCLEUS_MAX_TOKENS, check_clamp_p, check_top_p
from aent_verl.core.numerics import from_ordered_key, ordered_key, shift_, shift_and_exp_

_SAMPLE = 1024
_SHORT_ROW = 8192


class Boundary(NamedTuple):
    """Where a row's kept tokens begin, ``[C, 1]`` each, in the precision of the arithmetic.

    Attributes:
        threshold: every token above it is kept, none below.
        share: weight of each of the ``n`` tokens equal to it, ``r / n``.
        tied: how many of those are kept, ``r``.
    """

    threshold: Tensor
    share: Tensor
    tied: Tensor


class Selector(ABC):
    """Which tokens an entropy keeps: the largest logits of each row, down to a boundary.

    A class from elsewhere is one more functional of the fused op, at the same cost in memory: a frozen dataclass that
    derives from this one. It chooses a boundary, and no gradient flows through the choice.
    """

    @abstractmethod
    def boundary(self, z: Tensor, scale: Tensor | None, scratch: Tensor, dtype: torch.dtype) -> Boundary | None:
        """Return the boundary of each row, see `boundary_at`, or None if every token of all rows is kept.

        Args:
            z: logits before the temperature in fp32 or fp64, ``[C, V]``; not changed.
            scale: inverse temperature, ``[C, 1]``, or None for 1.
            scratch: same shape and dtype as ``z``; overwritten.
            dtype: type that the logits came in; its values are the candidates.
        """


@dataclass(frozen=True)
class Everything(Selector):
    """No token is left out: the full entropy."""

    def boundary(self, z: Tensor, scale: Tensor | None, scratch: Tensor, dtype: torch.dtype) -> Boundary | None:
        """Return None: there is no boundary."""
        return None


@dataclass(frozen=True)
class WithoutSmallest(Selector):
    """AEnt's clamp: all but the ``int(V * clamp_p)`` smallest, at least one (arXiv 2509.03493)."""

    clamp_p: float

    def removed(self, vocabulary: int) -> int:
        """Tell how many of ``vocabulary`` tokens go."""
        return min(int(vocabulary * self.clamp_p), vocabulary - 1)

    def boundary(self, z: Tensor, scale: Tensor | None, scratch: Tensor, dtype: torch.dtype) -> Boundary | None:
        """Return a boundary with all but the ``removed`` smallest above or on it."""
        removed = self.removed(z.shape[-1])
        if removed == 0:
            return None
        if z.device.type != "cpu" or z.shape[-1] <= _SHORT_ROW:
            return boundary_by_kthvalue(z, removed, scratch=scratch)
        return boundary_by_counting(z, removed, scratch=scratch, dtype=dtype)


@dataclass(frozen=True)
class Nucleus(Selector):
    """SIREN's nucleus: while the cumulative probability including the token is below ``top_p`` (arXiv 2509.25133)."""

    top_p: float

    def boundary(self, z: Tensor, scale: Tensor | None, scratch: Tensor, dtype: torch.dtype) -> Boundary | None:
        """Return a boundary at the smallest kept value; at the largest of all, with share 0, if none is kept."""
        largest, places = z.topk(min(NUCLEUS_MAX_TOKENS, z.shape[-1]), -1)
        maximum = largest[:, :1]
        shift_and_exp_(scratch.copy_(z), scratch, maximum, scale)
        # The largest adds 1, under which the others would be rounded away.
        normaliser = 1.0 + scratch.scatter_(-1, places[:, :1], 0.0).sum(-1, keepdim=True).double()
        x = largest.clone()
        shift_(x, maximum, scale)
        # Summed before it is divided: n of N equal tokens then have the fp64 number nearest n / N, no more and no less.
        kept = (x.exp().cumsum(-1, dtype=torch.float64) / normaliser < self.top_p).sum(-1, keepdim=True)
        threshold = largest.gather(-1, (kept - 1).clamp(min=0))
        return boundary_at(z, threshold, kept, scratch)


def selector(functional: str | Selector, clamp_p: float | None, top_p: float | None) -> Selector:
    """Return the selector that ``functional`` names, with its own parameter, or ``functional`` itself if it is one.

    Raises:
        ValueError: unknown name, a parameter that is missing, out of range, or not this functional's.
    """
    own = {"full": (), "clamped": ("clamp_p",), "nucleus": ("top_p",)}
    if not isinstance(functional, Selector) and functional not in own:
        raise ValueError(f"functional={functional!r} is not allowed: must be one of {', '.join(own)}, or a Selector")
    uses = () if isinstance(functional, Selector) else own[functional]
    for name, value in (("clamp_p", clamp_p), ("top_p", top_p)):
        if (value is not None) != (name in uses):
            needed = "needs a number" if value is None else f"does not use it, it must be None; got {value!r}"
            raise ValueError(f"{name}: functional={functional!r} {needed}")
    if isinstance(functional, Selector):
        return functional
    if clamp_p is not None:
        check_clamp_p(clamp_p)
        return WithoutSmallest(clamp_p)
    if top_p is not None:
        check_top_p(top_p)
        return Nucleus(top_p)
    return Everything()


def boundary_by_kthvalue(z: Tensor, removed: int, *, scratch: Tensor) -> Boundary:
    """Find a boundary that leaves out exactly the ``removed`` smallest of each row ``[C, V]``."""
    threshold = z.kthvalue(removed, dim=-1, keepdim=True).values
    return boundary_at(z, threshold, z.shape[-1] - removed, scratch)


def boundary_at(z: Tensor, threshold: Tensor, kept: Tensor | int, scratch: Tensor) -> Boundary:
    """Make the boundary that keeps the ``kept`` largest of each row, the last of which has the logit ``threshold``.

    Args:
        z: logits as they came, in fp32 or fp64, ``[C, V]``.
        threshold: a value of each row, ``[C, 1]``.
        kept: how many tokens stay, a number or ``[C, 1]``; those tied at the threshold share what is left of it.
        scratch: same shape and dtype as ``z``; overwritten.
    """
    above = torch.gt(z, threshold, out=scratch).sum(-1, keepdim=True)
    equal = torch.eq(z, threshold, out=scratch).sum(-1, keepdim=True)
    tied = kept - above
    return Boundary(threshold, tied / equal, tied)


def _first_pivots(z: Tensor, removed: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Find keys ``[C, 1]`` slightly below and above the place where a sample of each row puts the boundary."""
    if dtype is torch.float64:
        # After it both ends have one sign, and their difference fits into 64 bits.
        yield torch.zeros(z.shape[0], 1, dtype=torch.int64, device=z.device)
    sample = z[:, :: max(1, z.shape[1] // _SAMPLE)]
    size = sample.shape[1]
    share = removed / z.shape[1]
    margin = 1 + 2.5 * math.sqrt(size * share * (1 - share))
    for rank in (math.floor(size * share - margin), math.ceil(size * share + margin)):
        if 1 <= rank <= size:
            yield ordered_key(sample.kthvalue(rank, dim=-1, keepdim=True).values.to(dtype))


def boundary_by_counting(z: Tensor, removed: int, *, scratch: Tensor, dtype: torch.dtype) -> Boundary:
    """Find a boundary that leaves out exactly the ``removed`` smallest of each row ``[C, V]``.

    The threshold need not be the ``removed``-th smallest value itself: where nothing is tied, any value that separates
    will do, and the share is 0. A row with NaN gives an arbitrary boundary.

    Args:
        z: fp32 or fp64 values that are exact in ``dtype``.
        removed: how many tokens go, ``1 <= removed < V``.
        scratch: same shape and dtype as ``z``; overwritten.
        dtype: type whose values are the candidates.
    """
    keep = z.shape[1] - removed
    # The boundary is in (low, high]; `below` and `above` count the tokens in between that go and that stay.
    low = ordered_key(torch.full((z.shape[0], 1), -torch.inf, dtype=dtype, device=z.device)) - 1
    high = ordered_key(torch.full((z.shape[0], 1), torch.inf, dtype=dtype, device=z.device))
    below, above = torch.full_like(low, removed, dtype=z.dtype), torch.full_like(low, keep, dtype=z.dtype)
    before = torch.full_like(below, torch.inf)
    pivots = _first_pivots(z, removed, dtype)
    while True:
        pivot = next(pivots, None)
        if pivot is None:
            if bool(((above == 0) | (high - low <= 1)).all()):
                break
            between = below + above
            # Interpolate to cut the larger side, aiming beyond the boundary by about the error of a uniform guess.
            # Where that removed less than a quarter, tokens are tied or far from uniform: halve the keys instead.
            aim = below + torch.where(above > below, 0.5, -0.5) * (between.sqrt() - 1)
            weight = torch.where(between > 0.75 * before, 0.5, aim / between)
            before = between
            pivot = low + ((high - low) * weight.double()).long()
        pivot = torch.maximum(torch.minimum(pivot, high - 1), low + 1)
        surplus = keep - torch.gt(z, from_ordered_key(pivot, dtype).to(z.dtype), out=scratch).sum(-1, keepdim=True)
        too_low = surplus < 0
        low, high = torch.where(too_low, pivot, low), torch.where(too_low, high, pivot)
        below, above = torch.where(too_low, -surplus, below), torch.where(too_low, above, surplus)
    return Boundary(from_ordered_key(high, dtype).to(z.dtype), above / (below + above), above)
