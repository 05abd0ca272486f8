"""Log-prob and entropy of all rows of logits, forward and analytic backward, by Triton kernels.

The formulas and what is saved are those of `aent_verl.core.rows`. The forward pass reads the logits once; or, where
the smallest logits are left out, twice in 16 bits and four times in fp32 (`programs` says how). The backward pass
reads them once. Nothing of the logits' size is allocated.
"""

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from aent_verl.core.rows import Forward, Rows

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Columns that a program reads at a time, and what they are compiled with. The same for all, no autotuning: the number
# of rows changes with every batch, and vocabularies are long. 8 warps share a block, so that a thread has 8 elements
# in the forward pass, one 16-byte load in half precision: with up to four sums for each that leaves registers for
# several programs on a multiprocessor, which hide each other's barriers. The backward pass has no sums: twice the
# columns. Other sizes have not been measured.
_FORWARD: dict[str, int | bool] = {"BLOCK": 2048, "num_warps": 8, "enable_fp_fusion": True}
# The compiler gives this one over 100 registers on devices of capability 9.0, of which two programs fit; it needs no
# more than 80, of which three do, and nothing is spilled.
_CLAMPED_WITH_STATISTICS: dict[str, int | bool] = {**_FORWARD, "maxnreg": 80}
_BACKWARD: dict[str, int | bool] = {"BLOCK": 4096, "num_warps": 8, "enable_fp_fusion": True}


@cache
def _programs() -> ModuleType | None:
    """Import the device programs, or None where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    from aent_verl.core.kernels import programs

    return programs


def supported(logits: Tensor) -> bool:
    """Tell whether `forward` and `backward` take these logits: fp32, bf16 or fp16, on CUDA of capability 8.0 or higher.

    Where Triton's interpreter was on (``TRITON_INTERPRET=1``) when the kernels were first needed, it is those on CPU.
    """
    programs = _programs()
    if programs is None or logits.dtype not in _DTYPES:
        return False
    if not programs.COMPILED:
        return logits.device.type == "cpu"
    # Triton runs on ROCm devices, too, but these kernels have not.
    return logits.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(logits.device) >= (8, 0)


def _on_device_of(logits: Tensor) -> AbstractContextManager[object]:
    """Make the tensors' device the current one, on which Triton launches, wherever the tensors are."""
    return torch.cuda.device(logits.device) if logits.is_cuda else nullcontext()


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return columns ``[N, 1]`` as the kernels read them; gradients may come expanded."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def forward(
    logits: Tensor,
    labels: Tensor,
    scale: Tensor | None,
    *,
    removed: int,
    boundary: tuple[Tensor, Tensor] | None,
    statistics: bool,
) -> tuple[Forward, Rows]:
    """Compute log-prob and entropy of the rows ``[N, V]``, with what the backward pass needs.

    Args:
        logits: ``[N, V]`` that are `supported`; any row stride, columns next to each other.
        labels: int64 ``[N]``. One outside the vocabulary has NaN as log-prob.
        scale: inverse temperature, fp32 ``[N, 1]``, or None for 1.
        removed: how many of the smallest logits are left out, ``0 <= removed < V``.
        boundary: threshold and share of the tokens kept, fp32 ``[N, 1]`` each; only with ``removed = 0``.
        statistics: compute ``entropy_full`` and ``removed_mass``; else they repeat ``entropy`` and 0.

    Returns:
        All in fp32. A row with NaN, ``+inf`` or nothing but ``-inf`` has NaN in every result.
    """
    programs = _programs()
    assert programs is not None
    rows, vocabulary = logits.shape
    assert logits.stride(1) == 1 or vocabulary == 1
    assert 0 <= removed < vocabulary
    assert boundary is None or removed == 0
    results = torch.empty(10, rows, dtype=torch.float32, device=logits.device)
    if rows:
        common = logits, logits.stride(0), vocabulary, *_contiguous(labels, scale)
        statistics = statistics and (removed > 0 or boundary is not None)
        with _on_device_of(logits):
            if removed:
                options = _CLAMPED_WITH_STATISTICS if statistics else _FORWARD
                programs.forward_without_smallest[(rows,)](
                    *common, removed, results, rows, logits.element_size(), statistics, **options
                )
            else:
                given = _contiguous(*(boundary or (None, None)))
                programs.forward_in_one_read[(rows,)](*common, *given, results, rows, statistics, **_FORWARD)
    return Forward(*results[6:]), Rows(*results[:6].unsqueeze(-1))


def backward(
    logits: Tensor,
    labels: Tensor,
    scale: Tensor | None,
    rows: Rows,
    grad_log_probs: Tensor | None,
    grad_entropy: Tensor | None,
    out: Tensor,
) -> None:
    """Write the gradient of the rows ``[N, V]`` into ``out``.

    Where the incoming gradients of a row are both 0, zeros are written whatever the logits hold.

    Args:
        logits: as in `forward`.
        labels: likewise.
        scale: likewise.
        rows: of the forward pass.
        grad_log_probs: fp32 ``[N, 1]``, or None for 0.
        grad_entropy: likewise.
        out: ``[N, V]`` in the dtype of ``logits``, of any row stride; may be the very memory of ``logits``.
    """
    programs = _programs()
    assert programs is not None
    count, vocabulary = logits.shape
    assert out.shape == logits.shape
    assert out.dtype is logits.dtype
    assert vocabulary == 1 or logits.stride(1) == out.stride(1) == 1
    if count == 0:
        return
    blocks = -(-vocabulary // _BACKWARD["BLOCK"])
    with _on_device_of(logits):
        programs.backward[(count * blocks,)](
            logits, logits.stride(0), vocabulary, *_contiguous(labels, scale, *rows, grad_log_probs, grad_entropy),
            out, out.stride(0), **_BACKWARD,
        )  # fmt: skip
