"""The op by Triton against the op in torch, through the public functions; Triton's interpreter runs in a worker."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from aent_verl.core import backends, entropy
from aent_verl.core.backends import ByTriton, InChunks
from aent_verl.core.fused import linear_logprobs_and_entropy, logprobs_and_entropy
from aent_verl.core.selection import Everything
from tests.interpreter import interpret
from tests.lab import TopK

FUNCTIONALS: list[dict[str, Any]] = [
    {},
    {"functional": "clamped", "clamp_p": 0.33},
    {"functional": "nucleus", "top_p": 0.8},
    {"functional": TopK(20)},
]


# Where and in which type a function runs the op.
Place = tuple[str, torch.dtype]
ON_CPU: Place = ("cpu", torch.float32)


def on_logits(settings: dict[str, Any], inplace: bool, place: Place = ON_CPU) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    leaf = (torch.randn(5, 301, generator=generator) * 3).to(*place).requires_grad_()
    labels = torch.randint(301, (5,), generator=generator).to(place[0])
    log_probs, entropy, statistics = logprobs_and_entropy(
        leaf * 1.0,
        labels,
        temperature=torch.linspace(0.6, 1.4, 5),
        statistics=True,
        inplace_backward=inplace,
        **settings,
    )
    # In place, which autograd would refuse if the results were views of one tensor.
    log_probs -= 0.5 * entropy
    log_probs.sum().backward()
    assert leaf.grad is not None
    return [log_probs.detach(), entropy.detach(), *statistics.values(), leaf.grad]


def on_hidden(settings: dict[str, Any], chunk_size: int, place: Place = ON_CPU) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(5, 16, generator=generator).to(*place).requires_grad_()
    weight = torch.randn(301, 16, generator=generator).to(*place).requires_grad_()
    labels = torch.randint(301, (5,), generator=generator).to(place[0])
    log_probs, entropy = linear_logprobs_and_entropy(
        hidden, weight, labels, temperature=0.7, chunk_size=chunk_size, **settings
    )
    (log_probs - 0.5 * entropy).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [log_probs.detach(), entropy.detach(), hidden.grad, weight.grad]


def by_triton(function: Callable[..., list[Tensor]], settings: dict[str, Any], option: Any) -> list[Tensor]:
    return function({**settings, "kernel": "triton"}, option)


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    pytest.importorskip("triton")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=interpret) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("settings", FUNCTIONALS, ids=str)
@pytest.mark.parametrize(("function", "option"), [(on_logits, False), (on_logits, True), (on_hidden, 2)])
def test_triton_gives_what_torch_gives(
    worker: ProcessPoolExecutor, settings: dict[str, Any], function: Callable[..., list[Tensor]], option: Any
) -> None:
    found = worker.submit(by_triton, function, settings, option).result()
    torch.testing.assert_close(found, function(settings, option), atol=2e-5, rtol=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kernel", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", FUNCTIONALS, ids=str)
@pytest.mark.parametrize(("function", "option"), [(on_logits, False), (on_logits, True), (on_hidden, 2)])
def test_cuda_gives_what_the_cpu_gives(
    settings: dict[str, Any], function: Callable[..., list[Tensor]], option: Any, dtype: torch.dtype, kernel: str
) -> None:
    found = function({**settings, "kernel": kernel}, option, ("cuda", dtype))
    expected = function(settings, option, ("cpu", dtype))
    tolerance = 2e-5 if dtype is torch.float32 else 2e-2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu().float(), other.float(), atol=tolerance, rtol=tolerance)


def overwritten_too_early(case: str, kernel: str) -> str | None:
    """The error that autograd raises when someone needs logits whose memory holds the gradient already."""
    leaf = torch.zeros(3, 40, requires_grad=True)
    labels = torch.tensor([0, 1, 2])
    log_probs, _ = logprobs_and_entropy(leaf.exp(), labels, inplace_backward=True, kernel=kernel)
    if case == "twice":
        log_probs, _ = logprobs_and_entropy(leaf * 1.0, labels, inplace_backward=True, kernel=kernel)
        log_probs.sum().backward(retain_graph=True)
    try:
        log_probs.sum().backward()
    except RuntimeError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("case", ["by whoever made them", "twice"])
def test_autograd_notices_what_a_kernel_overwrites(worker: ProcessPoolExecutor, case: str) -> None:
    for found in (
        worker.submit(overwritten_too_early, case, "triton").result(),
        overwritten_too_early(case, "torch"),
    ):
        assert found is not None
        assert "modified by an inplace operation" in found


def test_triton_is_not_given_rows_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    token_entropy = pytest.importorskip("aent_verl.core.kernels.token_entropy", exc_type=ImportError)
    monkeypatch.setattr(token_entropy, "supported", lambda logits: True)
    assert backends._triton_runs(torch.zeros(6, 4))
    assert not backends._triton_runs(torch.zeros(4, 6).T)


@pytest.mark.parametrize(("chunk_size", "rows"), [(None, 6), (4, 4), (100, 6)])
def test_buffers_hold_one_chunk(monkeypatch: pytest.MonkeyPatch, chunk_size: int | None, rows: int) -> None:
    made = []

    class Recorded(backends.Buffers):
        def __init__(self, like: Tensor, rows: int) -> None:
            made.append(rows)
            super().__init__(like, rows)

    monkeypatch.setattr(backends, "Buffers", Recorded)
    logprobs_and_entropy(torch.zeros(6, 97), torch.zeros(6, dtype=torch.long), chunk_size=chunk_size)
    assert made == [rows]


def test_triton_is_chosen_on_cuda_alone_and_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        is_cuda = True

    logits: Any = OnCuda()
    monkeypatch.setattr(backends, "_triton_runs", lambda logits: True)
    assert isinstance(backends.choose(logits, Everything(), False, None, "auto"), ByTriton)
    assert isinstance(backends.choose(logits, Everything(), False, None, "torch"), InChunks)
    assert isinstance(backends.choose(torch.zeros(1, 1), Everything(), False, None, "auto"), InChunks)
    monkeypatch.setattr(backends, "_triton_runs", lambda logits: False)
    assert isinstance(backends.choose(logits, Everything(), False, None, "auto"), InChunks)


BAD = ("nan", "-nan", "inf", "two inf", "nan and inf", "all -inf", "all nan")


def on_bad_rows(settings: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Results and gradients of rows that are not a distribution, each between two that are."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(2 * len(BAD) + 1, 2500, generator=generator) * 3
    for row, kind in enumerate(BAD):
        bad = z[2 * row + 1]
        if kind.startswith("all"):
            bad[:] = float(kind.removeprefix("all "))
        else:
            bad[2100] = float("inf") if "inf" in kind else float(kind)
            bad[3] = float("inf") if kind == "two inf" else float("nan") if "and" in kind else bad[3]
    leaf = z.to(dtype).requires_grad_()
    labels = torch.full((len(z),), 2100)
    log_probs, entropy, statistics = logprobs_and_entropy(leaf, labels, temperature=0.7, statistics=True, **settings)
    of_log_probs, of_entropy = (torch.autograd.grad(x.sum(), leaf, retain_graph=True)[0] for x in (log_probs, entropy))
    plain = logprobs_and_entropy(leaf, labels, temperature=0.7, **settings)
    found = {"log_probs": log_probs, "entropy": entropy, **statistics, "without statistics": plain[1]}
    return {key: value.detach() for key, value in found.items()} | {
        "of log_probs": of_log_probs,
        "of entropy": of_entropy,
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("settings", FUNCTIONALS, ids=str)
def test_a_row_that_is_not_a_distribution_is_nan_in_every_number_and_backend(
    worker: ProcessPoolExecutor, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    both = {
        "torch": on_bad_rows(settings, dtype),
        "triton": worker.submit(on_bad_rows, {**settings, "kernel": "triton"}, dtype).result(),
    }
    tolerance = 2e-5 if dtype is torch.float32 else 2e-2
    for key, values in both["torch"].items():
        torch.testing.assert_close(both["triton"][key], values, atol=tolerance, rtol=tolerance, equal_nan=True)
    for kernel, found in both.items():
        for key, values in found.items():
            bad = values[1::2].isnan()
            assert bad.all(), (kernel, key, [BAD[i] for i in range(len(BAD)) if not bad[i].all()])
            assert values[::2].isfinite().all(), (kernel, key)


@pytest.mark.parametrize("kind", BAD)
def test_the_plain_functions_say_nan_too(kind: str) -> None:
    z = torch.randn(40)
    z[7] = float("inf") if "inf" in kind else float("nan")
    z[3] = float("inf") if kind == "two inf" else float("nan") if "and" in kind else z[3]
    z = torch.full_like(z, float(kind.removeprefix("all "))) if kind.startswith("all") else z
    for keep in (entropy.keep_share(z, 0.33), entropy.nucleus_share(z, 0.8), torch.ones(())):
        assert entropy.removed_mass(z, keep).isnan()
    for value in (entropy.full_entropy(z), entropy.clamped_entropy(z, 0.33), entropy.nucleus_entropy(z, 0.8)):
        assert value.isnan()
