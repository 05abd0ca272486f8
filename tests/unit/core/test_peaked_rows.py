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

# As docs/mathematics.md has it: the rounding of x and of the inverse temperature, each |x| times 2^-24 in exp(x), and a
# few more roundings. The second is in units of q_v, where the gradient q_v (log q_v + H) changes its sign.
BUDGET = 1e-5
AT_SIGN_CHANGE = 3e-6
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

    It comes first, last, in the middle of growing logits, among tokens of no probability, and with a strong second.
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


@pytest.mark.parametrize("rest", [1e4, 1e2, 1.0, 1e-2])
@pytest.mark.parametrize("settings", FUNCTIONALS[:2], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_other_rows_are_within_the_budget_too(
    worker: ProcessPoolExecutor, kernel: str, settings: dict[str, Any], rest: float
) -> None:
    logits, labels = peaked(rest)
    keep = share_of(logits, settings)
    expected, found = truth(logits, labels, keep), run(worker, logits, labels, kernel, settings)
    assert_within_budget(found._replace(of_entropy=expected.of_entropy), expected)
    q = keep * (logits.double() / TEMPERATURE).softmax(-1)
    bound = BUDGET * expected.of_entropy.abs() + AT_SIGN_CHANGE * q / q.sum(-1, keepdim=True) + 1e-25
    assert ((found.of_entropy - expected.of_entropy).abs() <= bound).all()


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_logits_in_bf16_are_no_excuse(worker: ProcessPoolExecutor, kernel: str, rest: float) -> None:
    """The arithmetic is fp32 all the same; the gradient is rounded to bf16 once, at its end."""
    logits, labels = peaked(rest, 5000, torch.bfloat16)
    found, expected = run(worker, logits, labels, kernel, {}), truth(logits, labels, share_of(logits, {}))
    assert_within_budget(Result(*found[:4], *expected[4:]), expected)
    # The interpreter cuts off what a device rounds.
    torch.testing.assert_close(found[4:], expected[4:], rtol=2**-7, atol=1e-25)


@pytest.mark.parametrize("kernel", KERNELS)
def test_tied_and_nearly_tied_maxima(worker: ProcessPoolExecutor, kernel: str) -> None:
    """Only one of them is left out of ``R``; and one that is 1e-7 lower has the exponential 1 in fp32."""
    logits = torch.full((3, 5000), -20.0)
    logits[:, 3000] = 1.0
    logits[0, [7, 4999]] = 1.0
    logits[1, 100] = 1.0 - 2**-24
    logits[2, 3000:4999] = 1.0
    labels = torch.tensor([7, 3000, 4000])
    for settings in FUNCTIONALS[:3]:
        expected = truth(logits, labels, share_of(logits, settings))
        found = run(worker, logits, labels, kernel, settings)
        torch.testing.assert_close(found[:5], expected[:5], rtol=BUDGET, atol=1e-25)
        # At the maximum log q + H of its definition is 0 but for rounding.
        torch.testing.assert_close(found.of_entropy, expected.of_entropy, rtol=BUDGET, atol=1e-7)


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_hidden_states(worker: ProcessPoolExecutor, kernel: str, rest: float) -> None:
    """The op on hidden states, here the rows of a unit matrix: its gradients are those of the logits themselves."""
    logits, labels = peaked(rest, 5000)
    logits = logits.clamp(min=-100.0)
    if kernel == "triton":
        pytest.importorskip("triton")
        found = worker.submit(on_hidden, logits, labels, kernel).result()
    else:
        found = on_hidden(logits, labels, kernel)
    expected = truth(logits, labels, share_of(logits, {}))
    of_both = expected.of_log_probs + expected.of_entropy
    torch.testing.assert_close(found, (expected.log_probs, expected.entropy, of_both.T), rtol=BUDGET, atol=1e-25)


def on_hidden(logits: Tensor, labels: Tensor, kernel: Any) -> tuple[Tensor, Tensor, Tensor]:
    weight = logits.T.clone().requires_grad_()
    hidden = torch.eye(len(logits))
    log_probs, entropy = linear_logprobs_and_entropy(hidden, weight, labels, temperature=TEMPERATURE, kernel=kernel)
    (log_probs + entropy).sum().backward()
    assert weight.grad is not None
    return log_probs.detach().double(), entropy.detach().double(), weight.grad.double()


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("clamp_p", [0.0, 0.33])
def test_plain_functions_and_their_gradients(clamp_p: float, rest: float) -> None:
    logits, labels = peaked(rest)
    leaf = logits.requires_grad_()
    entropy = plain.clamped_entropy(leaf, clamp_p) if clamp_p else plain.full_entropy(leaf)
    entropy.sum().backward()
    keep = plain.keep_share(logits, clamp_p)
    expected = truth(logits.detach(), labels, keep.double(), temperature=1.0)
    assert leaf.grad is not None
    torch.testing.assert_close(entropy.detach().double(), expected.entropy, rtol=BUDGET, atol=0)
    torch.testing.assert_close(leaf.grad.double(), expected.of_entropy, rtol=BUDGET, atol=1e-25)
    mass = plain.removed_mass(logits, keep).double()
    torch.testing.assert_close(mass, expected.removed_mass, rtol=BUDGET, atol=1e-25)


def test_gradcheck_of_a_peaked_row() -> None:
    logits = torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits[:, 4] += 12
    logits.requires_grad_()
    labels = torch.tensor([4, 0])
    for settings in FUNCTIONALS[:2]:
        assert torch.autograd.gradcheck(
            lambda z, s=settings: logprobs_and_entropy(z, labels, temperature=TEMPERATURE, **s),
            logits,
            eps=1e-6,
            atol=1e-9,
        )
    assert torch.autograd.gradcheck(plain.full_entropy, logits, eps=1e-6, atol=1e-9)
    assert torch.autograd.gradgradcheck(plain.full_entropy, logits, eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("vocabulary", [1, 5, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("kind", ["random", "tied", "last", "nan", "inf", "-inf"])
def test_the_largest_is_the_maximum_and_where_it_is(kind: str, vocabulary: int) -> None:
    z = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    if kind == "tied":
        z = z.round()
    elif kind == "last":
        z[:, -1] = 9.0
    elif kind != "random":
        z[1:3, vocabulary // 2 :: 7] = float(kind)
    maximum, column = largest(z)
    torch.testing.assert_close(maximum, z.amax(-1, keepdim=True), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(z.gather(-1, column), maximum, rtol=0, atol=0, equal_nan=True)
