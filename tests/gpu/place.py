"""Where the op is tested, on which rows, and how far from fp64 it may be."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aent_verl.core.entropy import keep_share, nucleus_share
from aent_verl.core.fused import logprobs_and_entropy
from tests.unit.core.test_fused import FUNCTIONALS, KINDS, rows
from tests.unit.core.test_peaked_rows import truth as exact_of_peaked_rows

# A multiple of both kernels' blocks; odd, so that no load is aligned; Qwen's; Gemma's; a long row.
VOCABULARIES = (32_768, 50_257, 151_936, 262_144, 1_000_003)
QWEN = 151_936
# Tokens of each of `KINDS`.
TOKENS, TOKENS_OF_LONG_ROWS = 8, 2
# On a CPU every vocabulary is cut to the last digits of its size: the Triton interpreter is slow.
_SMALL = 4_500

# exp(x) of fp32: x has been rounded as a difference, as a product with the inverse temperature, and as one with log2 e;
# and what the device's exponential, sums and divisions add.
_PER_X, _FIXED = 4 * 2.0**-24, 64 * 2.0**-24
# Half the distance of neighbours in bf16; the interpreter cuts off where a device rounds.
_OUTPUT = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}


@dataclass(frozen=True)
class Place:
    """Device under test, the op's backends that run there, and sizes."""

    device: str
    kernels: tuple[str, ...]

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"

    def size(self, vocabulary: int) -> int:
        return vocabulary if not self.rehearsal else _SMALL - vocabulary % 7

    def tokens(self, vocabulary: int) -> int:
        return TOKENS_OF_LONG_ROWS if self.rehearsal or vocabulary > 500_000 else TOKENS

    def inputs(self, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[N, V]`` of all kinds of rows, labels likely and unlikely, and temperatures."""
        return tuple(t.to(self.device) for t in _inputs(self.size(vocabulary), self.tokens(vocabulary), dtype))

    def output_rounding(self, dtype: torch.dtype) -> float:
        return _OUTPUT[dtype] * (2 if self.rehearsal else 1)


@lru_cache(maxsize=2)
def _inputs(vocabulary: int, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    both = [rows(kind, vocabulary, tokens) for kind in KINDS]
    logits = torch.cat([z for z, _ in both]).to(dtype)
    labels = torch.cat([labels for _, labels in both])
    # The least likely token of finite logit is outside every clamped set and nucleus, the likeliest is inside.
    finite = logits.float().masked_fill(logits == -torch.inf, torch.inf)
    labels[::tokens] = finite[::tokens].argmin(-1)
    labels[1::tokens] = logits.float()[1::tokens].argmax(-1)
    return logits, labels, torch.linspace(0.6, 1.4, len(labels))


class Result(NamedTuple):
    """Values ``[N]`` and their gradients ``[N, V]``."""

    log_probs: Tensor
    entropy: Tensor
    grad_log_probs: Tensor
    grad_entropy: Tensor


def by_op(logits: Tensor, labels: Tensor, **settings: Any) -> Result:
    """The op, with the gradient of each result alone."""
    leaf = logits.detach().requires_grad_()
    log_probs, entropy = logprobs_and_entropy(leaf, labels, **settings)[:2]
    of_log_probs, of_entropy = (torch.autograd.grad(x.sum(), leaf, retain_graph=True)[0] for x in (log_probs, entropy))
    return Result(log_probs.detach(), entropy.detach(), of_log_probs, of_entropy)


class Truth(NamedTuple):
    """In fp64: the result, and for each token ``x`` of its exponential and its probability among the kept ones.

    ``decided`` are the rows whose nucleus does not hang on the rounding of fp32: the mass of no token ends within a
    few millionths of the bound.
    """

    result: Result
    x: Tensor
    q: Tensor
    decided: Tensor


def truth(logits: Tensor, labels: Tensor, name: str, temperature: Tensor | None = None) -> Truth:
    """By the definition in which every small number is a sum of small ones, on the device of the logits."""
    settings = FUNCTIONALS[name][0]
    t = torch.ones(len(logits), 1) if temperature is None else temperature.unsqueeze(-1)
    t = t.to(logits.device, torch.float64)
    z = logits.double() / t
    keep = share_of(z, settings)
    exact = exact_of_peaked_rows(logits, labels, keep, t)
    q = keep * z.softmax(-1)
    q = q / q.sum(-1, keepdim=True).clamp(min=1e-300)
    x = (z - z.amax(-1, keepdim=True)).clamp(min=-200.0)
    result = Result(exact.log_probs, exact.entropy, exact.of_log_probs, exact.of_entropy)
    return Truth(result, x, q, decided(z, settings))


def decided(z: Tensor, settings: dict[str, Any]) -> Tensor:
    """Mark the rows whose kept set fp32 must find, ``[N, V] -> [N]``."""
    if "top_p" not in settings:
        return torch.ones_like(z[:, 0], dtype=torch.bool)
    below, above = (nucleus_share(z, settings["top_p"] * (1 + margin)) for margin in (-5e-6, 5e-6))
    rows = (below == above).all(-1)
    assert rows.sum() > len(rows) / 3, "too few rows left to judge"
    return rows


def share_of(z: Tensor, settings: dict[str, Any]) -> Tensor:
    if "clamp_p" in settings:
        return keep_share(z, settings["clamp_p"])
    if "top_p" in settings:
        return nucleus_share(z, settings["top_p"])
    # The twenty likeliest tokens, as a share that rounding keeps away from.
    return keep_share(z, (z.shape[-1] - 19.5) / z.shape[-1]) if settings else torch.ones_like(z)


def errors(found: Result, true: Truth, rounding: float) -> dict[str, dict[str, float]]:
    """Largest error of each result against fp64, and the largest share of what it may be; more than 1 is a fault.

    ``rounding`` is the relative error of a gradient that is written in a half type.
    """
    expected = true.result
    of_exp = _PER_X * true.x.abs() + _FIXED
    # Where the gradient of the entropy changes its sign it is a difference of numbers of the size of q.
    near = of_exp * true.q * (1 + true.x.abs() / 8)
    # The torch path counts a probability below e^-70 as 0, as many of them as a row has.
    tiny = 1e-24
    bounds = Result(
        1e-5 + 1e-6 * expected.log_probs.abs(),
        1e-5 + 1e-6 * expected.entropy.abs(),
        (of_exp + rounding) * expected.grad_log_probs.abs() + tiny,
        (of_exp + rounding) * expected.grad_entropy.abs() + near + tiny,
    )
    largest, of_bound = {}, {}
    for name, one, other, bound in zip(Result._fields, found, expected, bounds, strict=True):
        error = (one.double() - other).abs()[true.decided]
        largest[name], of_bound[name] = error.max().item(), (error / bound[true.decided]).max().item()
    return {"max_error": largest, "of_bound": of_bound}


def assert_within_bounds(case: dict[str, dict[str, float]]) -> None:
    # A NaN is not within.
    beyond = {name: share for name, share in case["of_bound"].items() if not share <= 1}
    assert not beyond, f"times what is allowed: {beyond}; largest errors: {case['max_error']}"
