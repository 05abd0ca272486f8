"""The ways to a log-prob and an entropy that are compared: stock verl's, plain torch's, the authors', ours.

Each takes logits ``[N, V]`` and labels ``[N]`` and returns what is differentiated, log-probs first. No gradient is
written over the logits, which the next round needs: of stock verl and of us this costs the same one buffer.

Without verl, on a bare GPU machine, stock verl is left out, and plain torch takes its place.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from aent_verl.core.fused import logprobs_and_entropy
from benchmarks.measure import backward, peak_growth
from tests.reference import topk_clamped_entropy

CLAMP_P = 0.33
TOP_P = 0.8
CLAMPED: dict[str, Any] = {"functional": "clamped", "clamp_p": CLAMP_P}
Outputs = tuple[Tensor, ...]
VERL = find_spec("verl") is not None
if VERL:
    import verl.utils.torch_functional as verl_F


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        label: in the table.
        run: logits and labels to the outputs.
        reads: how often the forward pass must read the logits at least.
        devices: where it is run unless it is asked for by name.
        needs_verl: whether it is verl's own code.
    """

    label: str
    run: Callable[[Tensor, Tensor], Outputs]
    reads: int = 1
    devices: tuple[str, ...] = ("cpu", "cuda")
    needs_verl: bool = False

    def runs_on(self, device: str) -> bool:
        return device in self.devices and (VERL or not self.needs_verl)


def stock_logprob(logits: Tensor, labels: Tensor) -> Tensor:
    """verl's log-prob, by flash-attn's cross-entropy where that is installed and the logits are on CUDA."""
    if not logits.is_cuda:
        os.environ["VERL_DISABLE_FLASH_ATTN_CE"] = "1"
    return verl_F.logprobs_from_logits(logits, labels, inplace_backward=False)


def flash_attention() -> bool:
    """Whether `stock_logprob` on CUDA is flash-attn's kernel."""
    disabled = os.environ.get("VERL_DISABLE_FLASH_ATTN_CE", "0") == "1"
    return VERL and verl_F.FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE and not disabled


def plain_logprob(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _plain(logits: Tensor, labels: Tensor) -> Outputs:
    """One log-softmax in fp32, and both from it."""
    log_p = logits.float().log_softmax(-1)
    return log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def _verls_form(logits: Tensor, labels: Tensor) -> Outputs:
    """What verl computes without flash-attn, in the logits' own type, but not row by row."""
    entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    return logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1), entropy


@cache
def _compiled_plain() -> Callable[[Tensor, Tensor], Outputs]:
    return torch.compile(_plain, dynamic=True)


def _with(entropy: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Outputs]:
    def run(logits: Tensor, labels: Tensor) -> Outputs:
        # Entropy first, as in verl's engine.
        value = entropy(logits)
        return (stock_logprob if VERL else plain_logprob)(logits, labels), value

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


# verl's numbers are what counts where there is verl; on a CPU plain torch would say nothing more.
_PLAIN_DEVICES = ("cuda",) if VERL else ("cpu", "cuda")
METHODS = {
    "stock-logprob": Method(
        "verl: log-prob only", lambda logits, labels: (stock_logprob(logits, labels),), needs_verl=True
    ),
    "stock-plain": Method(
        "verl: log-prob + full entropy", _with(lambda logits: verl_F.entropy_from_logits(logits)), needs_verl=True
    ),
    "stock-chunked": Method("  the same, chunked", _with(_chunked), needs_verl=True),
    "stock-checkpointed": Method("  the same, checkpointed", _with(_checkpointed), needs_verl=True),
    "stock-compiled": Method(
        "  the same, compiled (verl's default)",
        _with(lambda logits: _compiled()(logits)),
        devices=("cuda",),
        needs_verl=True,
    ),
    "plain-logprob": Method(
        "torch: log-prob only", lambda logits, labels: (plain_logprob(logits, labels),), devices=_PLAIN_DEVICES
    ),
    "plain": Method("torch: log_softmax in fp32, log-prob + full entropy", _plain, devices=_PLAIN_DEVICES),
    "plain-compiled": Method(
        "  the same, compiled", lambda logits, labels: _compiled_plain()(logits, labels), devices=("cuda",)
    ),
    "plain-verl": Method("torch: verl's form of log-prob + full entropy", _verls_form, devices=_PLAIN_DEVICES),
    "topk": Method(
        f"authors: {'verl' if VERL else 'torch'}'s log-prob + top-k clamped entropy",
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
BASE = "stock-logprob" if VERL else "plain-logprob"
# What the times of all are divided by in the record, where it was run.
BASES = tuple(name for name in METHODS if name.startswith(("stock", "plain")))


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
