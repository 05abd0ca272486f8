r"""Log-prob and entropy of a few rows of logits in plain torch, forward and analytic backward, in three buffers.

For a row of logits ``l`` with inverse temperature ``b``, ``z = b l``, ``x = z - max z`` and weights ``w`` of the kept
tokens (1 above the boundary, a share on it, 0 below)::

    S = 1 + R = sum_v exp(x_v)                  log p_y = x_y - log(1 + R)
    S~ = 1 + R~ = sum_v w_v exp(x_v)            M~ = sum_v w_v x_v exp(x_v) / S~
    H~ = log(1 + R~) - M~

One token has ``x = 0`` and adds 1 to ``S``. ``R`` is summed without it and its logarithm taken by ``log1p``: of a row
in which that token has nearly all probability, ``log p`` and ``H~`` are of the size of ``R``, which ``1 + R`` rounds
away in fp32.

With ``q_v = w_v exp(x_v) / S~`` and incoming gradients ``g`` of ``log p_y`` and ``h`` of ``H~``, what reaches the logit
``l_v`` is::

    b g (1[v = y] - exp(x_v) / S)  -  b h q_v (x_v - M~)

At the label the first bracket is ``(R + (1 - exp(x_y))) / S``, two terms that are not negative, because
``1 - p_y`` would cancel. The second term is ``q_v (log q_v + H~)`` of the definition without its two logarithms,
which would cancel, too. So the backward pass needs six numbers of a row (`Rows`) in addition to the logits themselves.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from aent_verl.core.numerics import arithmetic_type, largest, shift_, shift_and_exp_
from aent_verl.core.selection import Boundary, Selector


class Rows(NamedTuple):
    """What the backward pass keeps of each row, ``[N, 1]`` each, in at least fp32.

    Attributes:
        maximum: largest logit as it came, before the temperature.
        rest: ``R = S - 1``, the sum over all tokens but one of the largest.
        kept_rest: ``R~ = S~ - 1``; equal to ``R`` if every token is kept, -1 if none.
        mean: ``M~``, 0 if no token is kept.
        threshold: boundary among the logits as they came; ``-inf``, where nothing has weight anyway, if all are kept.
        share: weight of the tokens tied at the boundary.
    """

    maximum: Tensor
    rest: Tensor
    kept_rest: Tensor
    mean: Tensor
    threshold: Tensor
    share: Tensor

    def part(self, part: slice) -> "Rows":
        """Return those of some of the rows."""
        return Rows(*(column[part] for column in self))


class Forward(NamedTuple):
    """Results of the forward pass, ``[N]`` each; the last two without gradient.

    All four are NaN for a row that is not a distribution: one with NaN, ``+inf`` or nothing but ``-inf``.
    """

    log_probs: Tensor
    entropy: Tensor
    entropy_full: Tensor
    removed_mass: Tensor


class Results:
    """Results of all ``tokens``, filled part by part.

    Allocated at once: small tensors that outlive a chunk lie between the large ones that do not, and a heap then grows
    with every chunk.
    """

    def __init__(self, tokens: int, like: Tensor) -> None:
        dtype = arithmetic_type(like.dtype)
        self.forward = Forward(*(torch.empty(tokens, dtype=dtype, device=like.device) for _ in Forward._fields))
        self.rows = Rows(*(torch.empty(tokens, 1, dtype=dtype, device=like.device) for _ in Rows._fields))

    def put(self, part: slice, forward: Forward, rows: Rows) -> None:
        """Copy the results of a part into their place."""
        for column, values in zip((*self.forward, *self.rows), (*forward, *rows), strict=True):
            column[part] = values


class Buffers:
    """Three buffers of one chunk's size, in the precision of the arithmetic."""

    def __init__(self, like: Tensor, rows: int) -> None:
        dtype = arithmetic_type(like.dtype)
        self._all = [torch.empty(rows, like.shape[1], dtype=dtype, device=like.device) for _ in range(3)]

    def first(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the first ``rows`` rows of each."""
        x, e, w = (buffer[:rows] for buffer in self._all)
        return x, e, w


def _weights(logits: Tensor, threshold: Tensor, share: Tensor, w: Tensor, scratch: Tensor) -> None:
    """Write the weight of each token into ``w``."""
    torch.gt(logits, threshold, out=w)
    if bool(share.any()):
        w.add_(torch.eq(logits, threshold, out=scratch).mul_(share))


def forward(
    logits: Tensor, labels: Tensor, scale: Tensor | None, selector: Selector, statistics: bool, buffers: Buffers
) -> tuple[Forward, Rows]:
    """Compute log-prob and entropy of the rows ``[C, V]``, with what the backward pass needs.

    Args:
        logits: any floating type; read once.
        labels: ``[C]``.
        scale: inverse temperature ``[C, 1]`` in the precision of the arithmetic, or None for 1.
        selector: finds the kept tokens.
        statistics: compute ``entropy_full`` and ``removed_mass``; else they repeat ``entropy`` and 0.
        buffers: overwritten.
    """
    x, e, w = buffers.first(logits.shape[0])
    x.copy_(logits)
    boundary = selector.boundary(x, scale, w, logits.dtype)
    maximum, top = largest(x)
    label = x.gather(-1, labels.unsqueeze(-1))
    shift_(label, maximum, scale)
    if boundary is not None:
        torch.gt(x, boundary.threshold, out=w)
    shift_and_exp_(x, e, maximum, scale)
    # The token left out of `R`. Its x is 0, or NaN with a maximum of +inf or -inf, and then so is every result.
    e.scatter_(-1, top, x.gather(-1, top))
    rest = _sum(e)
    if boundary is None:
        moment = _sum(torch.mul(e, x, out=w))
        kept_rest, kept_moment, removed = rest, moment, torch.zeros_like(rest)
        threshold, share = torch.full_like(maximum, -torch.inf), torch.zeros_like(maximum)
    else:
        kept_rest, kept_moment, removed, moment = _restricted_sums(x, e, w, boundary, maximum, scale, statistics)
        threshold, share, _ = boundary
    nothing = kept_rest == -1.0
    mean = (kept_moment / (1.0 + kept_rest)).masked_fill(nothing, 0.0)
    entropy = (kept_rest.log1p() - mean).masked_fill(nothing, 0.0)
    full = rest.log1p() - moment / (1.0 + rest) if statistics else entropy
    results = label - rest.log1p(), entropy, full, removed / (1.0 + rest)
    rows = maximum, rest, kept_rest, mean, threshold, share
    return Forward(*(r.to(x.dtype).squeeze(-1) for r in results)), Rows(*(r.to(x.dtype) for r in rows))


def _restricted_sums(
    x: Tensor, e: Tensor, w: Tensor, boundary: Boundary, maximum: Tensor, scale: Tensor | None, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``R~``, ``S~ M~``, the removed part of ``S``, and the sum of all ``x exp(x)``; ``[C, 1]`` each, in fp64.

    Without ``statistics`` the third is 0 and the last of no use. On entry ``w`` is 1 above the boundary, 0 elsewhere,
    and ``e`` leaves out the token that ``R`` does; ``e`` and ``w`` are overwritten.
    """
    at, at_moment = _at_boundary(boundary, maximum, scale)
    # Where the boundary is the maximum itself, `at` counts all that is kept, the token that `e` leaves out with it.
    top_at_boundary = (boundary.threshold >= maximum).double()
    kept_rest = _sum(w.mul_(e)) + (at - top_at_boundary)
    removed = rest = torch.zeros_like(kept_rest)
    if statistics:
        removed = (_sum(e.sub_(w)) - (at - top_at_boundary)).clamp(min=0.0)
        rest = _sum(e.mul_(x))
    above = _sum(w.mul_(x))
    return kept_rest, above + at_moment, removed, above + rest


def _sum(terms: Tensor) -> Tensor:
    """Sum of each row, ``[C, V] -> [C, 1]``, in fp64 from here on: it costs nothing and spares several roundings."""
    return terms.sum(-1, keepdim=True).double()


def _at_boundary(boundary: Boundary, maximum: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute what the kept tokens tied at the boundary add to ``S~`` and to ``S~ M~``, ``[C, 1]`` each, in fp64."""
    x, e = boundary.threshold.clone(), torch.empty_like(boundary.threshold)
    shift_and_exp_(x, e, maximum, scale)
    nothing = boundary.tied == 0
    normaliser = boundary.tied.double() * e
    return normaliser.masked_fill(nothing, 0.0), (normaliser * x).masked_fill(nothing, 0.0)


def backward(
    logits: Tensor,
    labels: Tensor,
    scale: Tensor | None,
    rows: Rows,
    grad_log_probs: Tensor | None,
    grad_entropy: Tensor | None,
    out: Tensor,
    weighted: bool,
    buffers: Buffers,
) -> None:
    """Write the gradient of the rows ``[C, V]`` into ``out``, which may be the memory of ``logits``.

    A row whose incoming gradients are 0, a prompt's or a padding token, gets 0, whatever its logits hold.

    Args:
        logits: as in `forward`.
        labels: ``[C]``.
        scale: inverse temperature ``[C, 1]`` or None.
        rows: of these rows.
        grad_log_probs: ``[C, 1]`` in the precision of the arithmetic, or None for 0.
        grad_entropy: likewise.
        out: ``[C, V]``.
        weighted: whether the entropy leaves tokens out.
        buffers: overwritten.
    """
    idle = _all_zero(rows.maximum, grad_log_probs, grad_entropy)
    if bool(idle.all()):
        out.zero_()
        return
    x, e, w = buffers.first(logits.shape[0])
    if out.dtype is x.dtype and out.is_contiguous():
        x = out
    x.copy_(logits)
    weighted = weighted and grad_entropy is not None
    if weighted:
        _weights(x, rows.threshold, rows.share, w, scratch=e)
    shift_and_exp_(x, e, rows.maximum, scale)
    if scale is not None:
        grad_log_probs = None if grad_log_probs is None else grad_log_probs * scale
        grad_entropy = None if grad_entropy is None else grad_entropy * scale
    at = labels.unsqueeze(-1)
    e_label = e.gather(-1, at)
    if grad_entropy is not None:
        # Where nothing is kept the weights are 0; the division must not make NaN of it.
        kept = (1.0 + rows.kept_rest).masked_fill(rows.kept_rest == -1.0, 1.0)
        x.sub_(rows.mean).mul_(-grad_entropy / kept)
        if weighted:
            x.mul_(w)
    else:
        x.zero_()
    if grad_log_probs is not None:
        normaliser = 1.0 + rows.rest
        at_label = x.gather(-1, at) * e_label + grad_log_probs * ((rows.rest + (1.0 - e_label)) / normaliser)
        x.sub_(grad_log_probs / normaliser)
    x.mul_(e)
    if grad_log_probs is not None:
        x.scatter_(-1, at, at_label)
    if bool(idle.any()):
        x[idle] = 0.0
    if x is not out:
        out.copy_(x)


def _all_zero(like: Tensor, *gradients: Tensor | None) -> Tensor:
    """Mark the rows, ``[C]``, in which every gradient that is there is 0; all are ``[C, 1]``, as ``like`` is."""
    mask = torch.ones_like(like, dtype=torch.bool)
    for gradient in gradients:
        if gradient is not None:
            mask &= gradient == 0
    return mask.squeeze(-1)
