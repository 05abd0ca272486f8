"""Rows in which one token has nearly all the probability, in fp32 against fp64 of the same logits; error is relative.

Log-prob, entropy and the gradient at the label are then of the size of ``R``, the probability of all other tokens, and
what is formed as ``1 + R`` or ``1 - p`` in fp32 has lost them.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from aent_verl.core import entropy as plain
from aent_verl.core.fused import linear_logprobs_and_entropy, logprobs_and_entropy
from aent_verl.core.numerics import largest
from tests.interpreter import interpret

# docs/mathematics.md says so: three parts, the rounding of x, of the inverse temperature, and of what follows, each of
# up to |x| or a few units of 2^-24.
BUDGET = 1e-5
VOCABULARY = 50_000
RESTS = (1e-4, 1e-7, 1e-12)
KERNELS = ("torch", pytest.param("triton", marks=pytest.mark.slow))
TEMPERATURE = 0.8
FUNCTIONALS: list[dict[str, Any]] = [
    {},
    {"functional": "clamped", "clamp_p": 0.33},
    # Nothing is kept; and as much as a nucleus may hold.
    {"functional": "nucleus", "top_p": 0.8},
    {"functional": "nucleus", "top_p": 1 - 1e-15},
]


class Result(NamedTuple):
    """In fp64: values ``[N]``, gradients ``[N, V]``."""

    log_probs: Tensor
    entropy: Tensor
    entropy_full: Tensor
    removed_mass: Tensor
    of_log_probs: Tensor
    of_entropy: Tensor


def peaked(rest: float, vocabulary: int = VOCABULARY, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits ``[N, V]`` of one token with the odds 1 to ``rest``, and the labels: itself, but for the last row.

    It comes first, last, in the middle of growing logits, beside tokens of no probability, and with a strong second.
    """
    z = torch.randn(6, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z[2] = z[2].sort().values
    z[3, 1::3] = -torch.inf
    top = torch.tensor([0, vocabulary - 1, vocabulary // 2, 5, 4000, 4000])
    at = top.unsqueeze(-1)
    z[4, 0] += 20
    z.scatter_(-1, at, -torch.inf)
    z.scatter_(-1, at, z.logsumexp(-1, keepdim=True) - torch.tensor(rest, dtype=torch.float64).log())
    labels = top.clone()
    labels[5] = 17
    return ((z + 3.0) * TEMPERATURE).to(dtype), labels


def op(logits: Tensor, labels: Tensor, kernel: str, settings: dict[str, Any]) -> Result:
    """What the op gives; a worker's own threads and Triton."""
    leaf = logits.clone().requires_grad_()
    log_probs, entropy, statistics = logprobs_and_entropy(
        leaf, labels, temperature=TEMPERATURE, statistics=True, kernel=kernel, **settings
    )
    of_log_probs, of_entropy = (torch.autograd.grad(x.sum(), leaf, retain_graph=True)[0] for x in (log_probs, entropy))
    results = (log_probs, entropy, *statistics.values(), of_log_probs, of_entropy)
    return Result(*(x.detach().double() for x in results))


def truth(logits: Tensor, labels: Tensor, keep: Tensor, temperature: float = TEMPERATURE) -> Result:
    """By the definition, in fp64, every small number a sum of small ones."""
    z = logits.double() / temperature
    at = labels.unsqueeze(-1)
    top = z.argmax(-1, keepdim=True)
    x = z - z.amax(-1, keepdim=True)
    rest = x.exp().scatter(-1, top, 0.0).sum(-1, keepdim=True)
    log_p = x - rest.log1p()
    p = log_p.exp()
    # 1 - p of the label: the sum over the others.
    others = p.scatter(-1, at, 0.0)
    of_log_probs = (-others).scatter(-1, at, others.sum(-1, keepdim=True)) / temperature
    nothing = (keep == 0).all(-1, keepdim=True)
    keep = keep.masked_fill(nothing, 1.0)
    kept_rest = (keep * x.exp()).scatter(-1, top, keep.gather(-1, top) - 1).sum(-1, keepdim=True)
    log_q = (x - kept_rest.log1p()).masked_fill(x == -torch.inf, 0.0)
    q = keep * x.exp() / (1 + kept_rest)
    entropy = -(q * log_q).sum(-1, keepdim=True)
    of_entropy = (-q * (log_q + entropy) / temperature).masked_fill(nothing, 0.0)
    entropy, keep = entropy.masked_fill(nothing, 0.0), keep.masked_fill(nothing, 0.0)
    full = -(p * log_p.masked_fill(x == -torch.inf, 0.0)).sum(-1)
    removed = ((1 - keep) * p).sum(-1)
    return Result(log_p.gather(-1, at).squeeze(-1), entropy.squeeze(-1), full, removed, of_log_probs, of_entropy)


def share_of(logits: Tensor, settings: dict[str, Any]) -> Tensor:
    if "clamp_p" in settings:
        return plain.keep_share(logits.double(), settings["clamp_p"])
    if "top_p" in settings:
        return plain.nucleus_share(logits.double() / TEMPERATURE, settings["top_p"])
    return torch.ones_like(logits, dtype=torch.float64)


def assert_within_budget(found: Result, expected: Result) -> None:
    for name, actual, exact in zip(Result._fields, found, expected, strict=True):
        # Below e^-70 a probability counts as 0.
        torch.testing.assert_close(actual, exact, rtol=BUDGET, atol=1e-25, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=interpret) as pool:
        yield pool


def run(worker: ProcessPoolExecutor, logits: Tensor, labels: Tensor, kernel: str, settings: dict[str, Any]) -> Result:
    if kernel == "torch":
        return op(logits, labels, kernel, settings)
    pytest.importorskip("triton")
    return worker.submit(op, logits, labels, kernel, settings).result()


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("settings", FUNCTIONALS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_small_numbers_keep_their_digits(
    worker: ProcessPoolExecutor, kernel: str, settings: dict[str, Any], rest: float
) -> None:
    logits, labels = peaked(rest)
    expected = truth(logits, labels, share_of(logits, settings))
    assert (expected.log_probs[:5] < 0).all()
    assert_within_budget(run(worker, logits, labels, kernel, settings), expected)
