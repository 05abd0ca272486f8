"""What does the arithmetic of the fused op over all rows: plain torch chunk by chunk, or Triton kernels."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from aent_verl.core import rows as chunk_of_rows
from aent_verl.core.numerics import arithmetic_type
from aent_verl.core.rows import Buffers, Forward, Results, Rows
from aent_verl.core.selection import Boundary, Everything, Selector, WithoutSmallest

Kernel = Literal["auto", "triton", "torch"]
KERNELS = ("auto", "triton", "torch")

# A CPU's last-level cache holds the three buffers of this size; elsewhere a chunk has to occupy the device.
_CHUNK_BYTES_CPU = 5 * 2**20
_CHUNK_BYTES = 64 * 2**20


class Backend(Protocol):
    """Forward and backward pass over the rows ``[N, V]``; ``scale`` is the inverse temperature ``[N, 1]`` or None."""

    def forward(self, logits: Tensor, labels: Tensor, scale: Tensor | None) -> tuple[Forward, Rows]:
        """Return results per token and what the backward pass needs of each row."""

    def backward(
        self,
        logits: Tensor,
        labels: Tensor,
        scale: Tensor | None,
        rows: Rows,
        grad_log_probs: Tensor | None,
        grad_entropy: Tensor | None,
        out: Tensor,
    ) -> None:
        """Write the gradient into ``out``, possibly the memory of ``logits``; incoming gradients are ``[N, 1]``."""


def choose(logits: Tensor, selector: Selector, statistics: bool, chunk_size: int | None, kernel: str) -> Backend:
    """Return the backend that ``kernel`` names for logits like these, or with ``"auto"`` the fastest that runs.

    Raises:
        ValueError: unknown name, or Triton cannot run.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is not allowed: must be one of {', '.join(KERNELS)}")
    if kernel == "triton" or (kernel == "auto" and logits.is_cuda):
        if _triton_runs(logits):
            return ByTriton(selector, statistics)
        if kernel == "triton":
            raise ValueError(
                f"kernel='triton' cannot run on {logits.dtype} logits on {logits.device}: it needs Triton, a CUDA "
                "device of compute capability 8.0 or more, and fp32, bf16 or fp16 logits whose rows are contiguous; "
                "use kernel='auto' or 'torch'"
            )
    return InChunks(selector, statistics, chunk_size)


def _triton_runs(logits: Tensor) -> bool:
    try:
        from aent_verl.core.kernels import token_entropy
    except ImportError:
        return False
    return logits.stride(-1) == 1 and token_entropy.supported(logits)


def slices(tokens: int, size: int) -> list[slice]:
    """Cut all tokens into slices of at most ``size``; one empty slice if there are none."""
    return [slice(start, start + size) for start in range(0, max(tokens, 1), size)]


def part_of(column: Tensor | None, part: slice) -> Tensor | None:
    """Return some of the rows of a column that may be absent."""
    return None if column is None else column[part]


def tokens_per_chunk(tokens: int, bytes_per_token: int, budget: int, chunk_size: int | None) -> int:
    """Return ``chunk_size``, or as many tokens as the budget allows; at least one, and no more than there are."""
    return max(1, min(chunk_size or budget // bytes_per_token, tokens))


@dataclass(frozen=True)
class InChunks:
    """Plain torch, ``chunk_size`` tokens at a time."""

    selector: Selector
    statistics: bool
    chunk_size: int | None = None

    def _chunks(self, logits: Tensor) -> Iterator[tuple[slice, Buffers]]:
        """Yield slices of the tokens, each with buffers that all of them share."""
        tokens, vocabulary = logits.shape
        budget = _CHUNK_BYTES_CPU if logits.device.type == "cpu" else _CHUNK_BYTES
        itemsize = arithmetic_type(logits.dtype).itemsize
        size = tokens_per_chunk(tokens, vocabulary * itemsize, budget, self.chunk_size)
        buffers = Buffers(logits, size)
        for part in slices(tokens, size):
            yield part, buffers

    def forward(self, logits: Tensor, labels: Tensor, scale: Tensor | None) -> tuple[Forward, Rows]:
        """As `Backend.forward`."""
        results = Results(logits.shape[0], logits)
        for part, buffers in self._chunks(logits):
            forward, rows = chunk_of_rows.forward(
                logits[part], labels[part], part_of(scale, part), self.selector, self.statistics, buffers
            )
            results.put(part, forward, rows)
        return results.forward, results.rows

    def backward(
        self,
        logits: Tensor,
        labels: Tensor,
        scale: Tensor | None,
        rows: Rows,
        grad_log_probs: Tensor | None,
        grad_entropy: Tensor | None,
        out: Tensor,
    ) -> None:
        """As `Backend.backward`."""
        for part, buffers in self._chunks(logits):
            chunk_of_rows.backward(
                logits[part],
                labels[part],
                part_of(scale, part),
                rows.part(part),
                part_of(grad_log_probs, part),
                part_of(grad_entropy, part),
                out[part],
                not isinstance(self.selector, Everything),
                buffers,
            )


@dataclass(frozen=True)
class ByTriton:
    """Triton kernels, all tokens at once; a boundary that the kernels do not find comes from torch in chunks."""

    selector: Selector
    statistics: bool

    def _boundary(self, logits: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor] | None:
        found: list[Boundary] = []
        for part, buffers in InChunks(self.selector, self.statistics)._chunks(logits):
            z, scratch, _ = buffers.first(logits[part].shape[0])
            boundary = self.selector.boundary(z.copy_(logits[part]), part_of(scale, part), scratch, logits.dtype)
            if boundary is None:
                return None
            found.append(boundary)
        return torch.cat([b.threshold for b in found]), torch.cat([b.share for b in found])

    def forward(self, logits: Tensor, labels: Tensor, scale: Tensor | None) -> tuple[Forward, Rows]:
        """As `Backend.forward`."""
        from aent_verl.core.kernels import token_entropy

        removed, boundary = 0, None
        if isinstance(self.selector, WithoutSmallest):
            removed = self.selector.removed(logits.shape[1])
        else:
            boundary = self._boundary(logits, scale)
        forward, rows = token_entropy.forward(
            logits, labels, scale, removed=removed, boundary=boundary, statistics=self.statistics
        )
        # These are several views of one tensor, none of which autograd allows to be changed in place.
        return Forward(*(column.clone() for column in forward)), rows

    def backward(
        self,
        logits: Tensor,
        labels: Tensor,
        scale: Tensor | None,
        rows: Rows,
        grad_log_probs: Tensor | None,
        grad_entropy: Tensor | None,
        out: Tensor,
    ) -> None:
        """As `Backend.backward`."""
        from aent_verl.core.kernels import token_entropy

        token_entropy.backward(logits, labels, scale, rows, grad_log_probs, grad_entropy, out)
