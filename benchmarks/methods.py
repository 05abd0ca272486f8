"""The ways to a log-prob and an entropy that are compared: stock verl's, the authors', ours.

Each takes logits ``[N, V]`` and labels ``[N]`` and returns what is differentiated, log-probs first. No gradient is
written over the logits, which the next round needs: of stock verl and of us this costs the same one buffer.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.utils.checkpoint
import verl.utils.torch_functional as verl_F
from torch import Tensor

from aent_verl.core.fused import logprobs_and_entropy
from benchmarks.measure import backward, peak_growth
from tests.reference import topk_clamped_entropy

CLAMP_P = 0.33
TOP_P = 0.8
CLAMPED: dict[str, Any] = {"functional": "clamped", "clamp_p": CLAMP_P}
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        label: in the table.
        run: logits and labels to the outputs.
        reads: how often the forward pass must read the logits at least.
        devices: where it is run unless it is asked for by name.
    """

    label: str
    run: Callable[[Tensor, Tensor], Outputs]
    reads: int = 1
    devices: tuple[str, ...] = ("cpu", "cuda")


def stock_logprob(logits: Tensor, labels: Tensor) -> Tensor:
    """verl's log-prob, by flash-attn's cross-entropy where that is installed and the logits are on CUDA."""
    if not logits.is_cuda:
        os.environ["VERL_DISABLE_FLASH_ATTN_CE"] = "1"
    return verl_F.logprobs_from_logits(logits, labels, inplace_backward=False)


def flash_attention() -> bool:
    """Whether `stock_logprob` on CUDA is flash-attn's kernel."""
    return verl_F.FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE and os.environ.get("VERL_DISABLE_FLASH_ATTN_CE", "0") != "1"


def _with(entropy: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Outputs]:
    def run(logits: Tensor, labels: Tensor) -> Outputs:
        # Entropy first, as in verl's engine.
        value = entropy(logits)
        return stock_logprob(logits, labels), value

    return run


def _chunked(logits: Tensor) -> Tensor:
    # verl's default of 2048 at 4096 tokens.
    return verl_F.entropy_from_logits_with_chunking(logits, chunk_size=max(1, logits.shape[0] // 2))


def _checkpointed(logits: Tensor) -> Tensor:
    # verl leaves use_reentrant at its default, which is True, with a warning.
    return torch.utils.checkpoint.checkpoint(verl_F.entropy_from_logits, logits, use_reentrant=True)


@cache
def _compiled() -> Callable[[Tensor], Tensor]:
    return torch.compile(verl_F.entropy_from_logits, dynamic=True)


def _ours(logits: Tensor, labels: Tensor, **settings: Any) -> Outputs:
    return logprobs_and_entropy(logits, labels, **settings)[:2]


def _ours_logprob(logits: Tensor, labels: Tensor) -> Outputs:
    return _ours(logits, labels)[:1]


METHODS = {
    "stock-logprob": Method("verl: log-prob only", lambda logits, labels: (stock_logprob(logits, labels),)),
    "stock-plain": Method("verl: log-prob + full entropy", _with(verl_F.entropy_from_logits)),
    "stock-chunked": Method("  the same, chunked", _with(_chunked)),
    "stock-checkpointed": Method("  the same, checkpointed", _with(_checkpointed)),
    "stock-compiled": Method(
        "  the same, compiled (verl's default)",
        _with(lambda logits: _compiled()(logits)),
        devices=("cuda",),
    ),
    "topk": Method(
        "authors: verl's log-prob + top-k clamped entropy",
        _with(partial(topk_clamped_entropy, clamp_p=CLAMP_P)),
        reads=2,
    ),
    "ours-logprob": Method("ours: log-prob, entropy without gradient", _ours_logprob, devices=("cuda",)),
    "ours-full": Method("ours: log-prob + full entropy", _ours),
    "ours-clamped": Method(f"ours: log-prob + clamped entropy, p = {CLAMP_P}", partial(_ours, **CLAMPED), reads=2),
    "ours-clamped-statistics": Method(
        "  the same, with statistics", partial(_ours, statistics=True, **CLAMPED), reads=2
    ),
    "ours-clamped-torch": Method(
        "  the same, without statistics or Triton",
        partial(_ours, kernel="torch", **CLAMPED),
        reads=2,
        devices=("cuda",),
    ),
    "ours-nucleus": Method(
        f"ours: log-prob + nucleus entropy, p = {TOP_P}", partial(_ours, functional="nucleus", top_p=TOP_P), reads=2
    ),
}
BASE = "stock-logprob"


def inputs(tokens: int, vocabulary: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Logits of a spread that language models have, and labels."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(tokens, vocabulary, generator=generator, device=device).mul_(2.5).to(dtype)
    labels = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    return logits.requires_grad_(), labels


def peak(method: str, tokens: int, vocabulary: int, dtype: torch.dtype, device: str) -> int | None:
    """Bytes at the peak of one forward and backward pass: with the gradient of the logits, without the logits."""
    warnings.simplefilter("ignore")
    run = METHODS[method].run
    backward(run(*inputs(2, vocabulary, dtype, device)))
    logits, labels = inputs(tokens, vocabulary, dtype, device)
    return peak_growth(lambda: backward(run(logits, labels)), device)
