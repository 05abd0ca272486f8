r"""Log-prob of the sampled token and an entropy of the whole distribution from one differentiable op.

Reads the logits ``[N, V]`` a chunk of tokens at a time, keeps a handful of numbers per token for the backward pass, and
writes the gradient once: no second copy of the logits, no mask or index tensor of their size. Arithmetic is
fp32 (fp64 for fp64), whatever the logits' type. The definitions are in `entropy`, the formulas in `rows`, the choice of
tokens in `selection`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aent_verl.core.backends import Backend, Kernel, choose, part_of, slices, tokens_per_chunk
from aent_verl.core.numerics import arithmetic_type
from aent_verl.core.rows import Forward, Results, Rows
from aent_verl.core.selection import Selector, selector

Statistics = dict[str, Tensor]
WithStatistics = tuple[Tensor, Tensor, Statistics]
Result = tuple[Tensor, Tensor] | WithStatistics

_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LINEAR_CHUNK_BYTES_CPU = 64 * 2**20
_LINEAR_CHUNK_BYTES = 256 * 2**20
_PRODUCT_BYTES = 64 * 2**20


def logprobs_and_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    functional: str | Selector = "full",
    clamp_p: float | None = None,
    top_p: float | None = None,
    temperature: float | Tensor = 1.0,
    chunk_size: int | None = None,
    statistics: bool = False,
    inplace_backward: bool = False,
    kernel: Kernel = "auto",
) -> Result:
    """Compute log-probs of ``labels`` and the entropy of each row, in nats; ``[N, V], [N] -> [N], [N]``.

    Both results are differentiable in ``logits``, separately or together; they are fp32, or fp64 for fp64 logits.

    Args:
        logits: fp32, bf16, fp16 or fp64, before the temperature; any strides.
        labels: int64 in ``[0, V)``.
        functional: ``"full"``, ``"clamped"`` (AEnt, arXiv 2509.03493) or ``"nucleus"`` (SIREN, arXiv 2509.25133), or a
            `selection.Selector` of one's own.
        clamp_p: share of the vocabulary that the clamped entropy leaves out, in ``[0, 1)``.
        top_p: probability that the nucleus stays below, in ``(0, 1)``.
        temperature: one number, or one per token, ``[N]``; finite, greater than 0. Those of a tensor are not checked.
        chunk_size: tokens per chunk; None chooses by memory. The Triton kernels need no chunks.
        statistics: return also ``{"entropy_full": [N], "removed_mass": [N]}`` (nats; probability that the functional
            leaves out), without gradient.
        inplace_backward: write the gradient over the memory of ``logits``. Nothing else may need their values once the
            backward pass has come here; autograd raises if something does.
        kernel: ``"triton"``, ``"torch"``, or ``"auto"``: Triton on CUDA where it runs, else torch.

    Raises:
        ValueError: wrong shapes or types, a label or a parameter out of range, a kernel that cannot run here.
    """
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits have shape {list(logits.shape)}; expected [N, V] with V >= 1")
    _check_type("logits", logits)
    _check_labels(labels, *logits.shape)
    _check_chunk_size(chunk_size)
    if inplace_backward:
        _check_may_be_overwritten(logits)
    backend = choose(logits, selector(functional, clamp_p, top_p), statistics, chunk_size, kernel)
    scale = _inverse(temperature, logits)
    result: Forward = _OnLogits.apply(logits, labels, scale, backend, inplace_backward)  # type: ignore[no-untyped-call]
    return _result(result, statistics)


def linear_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    functional: str | Selector = "full",
    clamp_p: float | None = None,
    top_p: float | None = None,
    temperature: float | Tensor = 1.0,
    chunk_size: int | None = None,
    statistics: bool = False,
    kernel: Kernel = "auto",
) -> Result:
    """Compute the same from hidden states and the LM head, never holding the logits of more than one chunk of tokens.

    With logits ``hidden @ weight.T``: ``[N, D], [V, D], [N] -> [N], [N]``, differentiable in ``hidden`` and ``weight``.
    The backward pass computes each chunk's logits again. The product runs in the type of its inputs, or in autocast's;
    the gradient of ``weight`` is summed over the chunks in at least fp32, which takes ``4 V D`` bytes.

    Args:
        hidden: ``[N, D]``, fp32, bf16, fp16 or fp64.
        weight: ``[V, D]``, of the same type unless autocast is on.
        labels: int64 in ``[0, V)``.
        functional: as in `logprobs_and_entropy`, with ``clamp_p``, ``top_p``, ``temperature``, ``statistics`` and
            ``kernel``.
        clamp_p: share of the vocabulary that the clamped entropy leaves out.
        top_p: probability that the nucleus stays below.
        temperature: one number, or one per token.
        chunk_size: tokens whose logits exist at one time; None chooses by memory.
        statistics: return the statistics, too.
        kernel: what turns a chunk's logits into results.

    Raises:
        ValueError: as `logprobs_and_entropy`; hidden states and weight that do not fit together.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"hidden has shape {list(hidden.shape)} and weight {list(weight.shape)}; "
            "expected [N, D] and [V, D] with V >= 1"
        )
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype is not torch.float64:
        hidden, weight = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (hidden, weight))
    _check_type("hidden", hidden)
    if weight.dtype is not hidden.dtype:
        raise ValueError(f"weight is {weight.dtype} and hidden {hidden.dtype}; expected one type")
    tokens, vocabulary = hidden.shape[0], weight.shape[0]
    _check_labels(labels, tokens, vocabulary)
    _check_chunk_size(chunk_size)
    budget = _LINEAR_CHUNK_BYTES_CPU if device == "cpu" else _LINEAR_CHUNK_BYTES
    size = tokens_per_chunk(tokens, vocabulary * hidden.element_size(), budget, chunk_size)
    like = hidden.new_empty(0, vocabulary)
    backend = choose(like, selector(functional, clamp_p, top_p), statistics, None, kernel)
    scale = _inverse(temperature, hidden)
    result: Forward = _OnHidden.apply(hidden, weight, labels, scale, backend, size)  # type: ignore[no-untyped-call]
    return _result(result, statistics)


def _result(forward: Forward, statistics: bool) -> Result:
    log_probs, entropy, full, mass = forward
    return (log_probs, entropy, {"entropy_full": full, "removed_mass": mass}) if statistics else (log_probs, entropy)


def _check_may_be_overwritten(logits: Tensor) -> None:
    base = logits._base if logits._is_view() else logits
    if base is not None and base.is_leaf and base.requires_grad:
        raise ValueError("inplace_backward=True is not allowed for a leaf or a view of one: it would lose its value")
    if logits.shape[0] > 1 and logits.stride(0) == 0:
        raise ValueError("inplace_backward=True is not allowed for expanded logits: their rows share memory")


def _check_type(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _TYPES:
        raise ValueError(f"{name}: {tensor.dtype} is not allowed; expected float32, bfloat16, float16 or float64")


def _check_chunk_size(chunk_size: int | None) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} is not allowed: must be at least 1, or None")


def _check_labels(labels: Tensor, tokens: int, vocabulary: int) -> None:
    """Raise ``ValueError`` for labels that a kernel would follow out of the row."""
    if labels.shape != (tokens,) or labels.dtype is not torch.int64:
        raise ValueError(f"labels are {labels.dtype} of shape {list(labels.shape)}; expected int64 of shape [{tokens}]")
    outside = (labels < 0) | (labels >= vocabulary)
    if bool(outside.any()):
        where = int(outside.nonzero()[0])
        raise ValueError(f"labels[{where}]={int(labels[where])} is outside [0, {vocabulary}), the vocabulary")


def _inverse(temperature: float | Tensor, like: Tensor) -> Tensor | None:
    """Return the inverse temperature ``[N, 1]`` in the precision of the arithmetic; None for a temperature of 1."""
    dtype = arithmetic_type(like.dtype)
    tokens = like.shape[0]
    if isinstance(temperature, Tensor):
        if temperature.shape != (tokens,):
            raise ValueError(f"temperature has shape {list(temperature.shape)}; expected a number or shape [{tokens}]")
        return temperature.detach().to(like.device, dtype).reciprocal().unsqueeze(-1)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature!r} is not allowed: must be finite and greater than 0")
    return None if temperature == 1.0 else torch.full((tokens, 1), 1.0 / temperature, dtype=dtype, device=like.device)


def _column(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.unsqueeze(-1)


class _OnLogits(torch.autograd.Function):
    """The op on logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, scale: Tensor | None, backend: Backend, inplace: bool
    ) -> Forward:
        result, rows = backend.forward(logits, labels, scale)
        ctx.save_for_backward(logits, labels, scale, *rows)
        ctx.backend, ctx.inplace = backend, inplace
        ctx.mark_non_differentiable(result.entropy_full, result.removed_mass)
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor | None, grad_entropy: Tensor | None, *_: None) -> Any:
        logits, labels, scale, *rows = ctx.saved_tensors
        out = logits.detach() if ctx.inplace else torch.empty_like(logits)
        ctx.backend.backward(logits, labels, scale, Rows(*rows), _column(grad_log_probs), _column(grad_entropy), out)
        if ctx.inplace:
            # Autograd then notices whoever still needs the values; a kernel alone would write behind its back.
            torch.autograd.graph.increment_version(logits)
        return out, None, None, None, None


class _OnHidden(torch.autograd.Function):
    """The op on hidden states and the LM head, ``size`` tokens at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, scale: Tensor | None, backend: Backend, size: int
    ) -> Forward:
        results = Results(hidden.shape[0], hidden)
        buffer = hidden.new_empty(size, weight.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            for part in slices(hidden.shape[0], size):
                logits = torch.mm(hidden[part], weight.T, out=buffer[: hidden[part].shape[0]])
                results.put(part, *backend.forward(logits, labels[part], part_of(scale, part)))
        ctx.save_for_backward(hidden, weight, labels, scale, *results.rows)
        ctx.backend, ctx.size = backend, size
        ctx.mark_non_differentiable(results.forward.entropy_full, results.forward.removed_mass)
        ctx.set_materialize_grads(False)
        return results.forward

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor | None, grad_entropy: Tensor | None, *_: None) -> Any:
        hidden, weight, labels, scale, *rows = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=arithmetic_type(weight.dtype)) if wants_weight else None
        buffer = hidden.new_empty(ctx.size, weight.shape[0])
        columns = (scale, _column(grad_log_probs), _column(grad_entropy))
        with torch.autocast(hidden.device.type, enabled=False):
            for part in slices(hidden.shape[0], ctx.size):
                states = hidden[part]
                logits = torch.mm(states, weight.T, out=buffer[: states.shape[0]])
                inverse, of_log_probs, of_entropy = (part_of(column, part) for column in columns)
                kept = Rows(*rows).part(part)
                ctx.backend.backward(logits, labels[part], inverse, kept, of_log_probs, of_entropy, logits)
                if grad_hidden is not None:
                    torch.mm(logits, weight, out=grad_hidden[part])
                if grad_weight is not None:
                    _add_product(grad_weight, logits.T, states)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Compute ``total += left @ right`` without rounding the product to the half precision of its factors."""
    if left.dtype is total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        # In parts: the product has the size of the whole weight.
        for part in slices(total.shape[0], max(1, _PRODUCT_BYTES // (4 * total.shape[1]))):
            total[part].add_(torch.mm(left[part], right, out_dtype=total.dtype))
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
