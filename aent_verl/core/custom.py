"""A custom entropy with the log-probs of the fused op, from a plain differentiable function."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aent_verl.core.backends import Kernel, tokens_per_chunk
from aent_verl.core.fused import Result, logprobs_and_entropy
from aent_verl.core.numerics import at_least_fp32

# Logits of one chunk: the function may make several tensors of that size.
_CHUNK_BYTES = 64 * 2**20

Functional = Callable[[Tensor], Tensor]


def logprobs_and_custom_entropy(
    logits: Tensor,
    labels: Tensor,
    function: Functional,
    *,
    temperature: float | Tensor = 1.0,
    chunk_size: int | None = None,
    kernel: Kernel = "auto",
) -> Result:
    """Compute log-probs, ``function`` of each row, and the op's statistics; ``[N, V], [N] -> [N], [N], {...}``.

    The function sees some rows at a time, and again in the backward pass, so that what it needs for its gradient is
    never there for all of them. Its gradient and the log-probs' are separate tensors of the logits' size, and their sum
    a third: an entropy that is used for long deserves a place in the fused op.

    Args:
        logits: ``[N, V]``, before the temperature.
        labels: int64 in ``[0, V)``.
        function: ``[n, V] -> [n]``, of logits after the temperature in at least fp32; differentiable, row by row.
        temperature: one number, or one per token, ``[N]``.
        chunk_size: rows at a time; None chooses by memory.
        kernel: what computes log-probs and statistics, as in `fused.logprobs_and_entropy`.

    Returns:
        Log-probs ``[N]``, the entropy ``[N]`` and ``{"entropy_full", "removed_mass"}``, the latter 0; NaN of a
        row that is not a distribution.

    Raises:
        ValueError: as `fused.logprobs_and_entropy`, or a result of another shape.
    """
    result = logprobs_and_entropy(logits, labels, temperature=temperature, statistics=True, kernel=kernel)
    log_probs, statistics = result[0], result[2]  # type: ignore[misc]
    size = tokens_per_chunk(logits.shape[0], 4 * logits.shape[1], _CHUNK_BYTES, chunk_size)

    def rows(z: Tensor, t: Tensor | float) -> Tensor:
        z = at_least_fp32(z) / t
        # Without these a row outside the loss, whose gradient is 0, would get 0 times NaN from autograd.
        bad = ~z.detach().amax(-1).isfinite()
        values = function(z.masked_fill(bad.unsqueeze(-1), 0.0))
        if values.shape != z.shape[:1]:
            raise ValueError(f"the functional returned shape {list(values.shape)} for logits {list(z.shape)}")
        return values.masked_fill(bad, math.nan)

    count = max(1, math.ceil(logits.shape[0] / size))
    # chunk, not slices: the backward pass of a slice is a tensor of all logits' size.
    parts = logits.chunk(count)
    t = temperature.unsqueeze(-1).chunk(count) if isinstance(temperature, Tensor) else [temperature] * len(parts)
    values = [checkpoint(rows, part, part_t, use_reentrant=False) for part, part_t in zip(parts, t, strict=True)]
    entropy = torch.cat(values)
    return log_probs, entropy.to(log_probs.dtype), statistics
