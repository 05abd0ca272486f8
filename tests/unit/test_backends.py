"""The op by Triton against the op in torch, through the public functions; Triton's interpreter runs in a worker."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from aent_verl.core import backends
from aent_verl.core.backends import ByTriton, InChunks
from aent_verl.core.fused import linear_logprobs_and_entropy, logprobs_and_entropy
from aent_verl.core.selection import Everything
from tests.unit.test_kernels import interpret

FUNCTIONALS: list[dict[str, Any]] = [
    {},
    {"functional": "clamped", "clamp_p": 0.33},
    {"functional": "nucleus", "top_p": 0.8},
]


def on_logits(settings: dict[str, Any], inplace: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    leaf = (torch.randn(5, 301, generator=generator) * 3).requires_grad_()
    labels = torch.randint(301, (5,), generator=generator)
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


def on_hidden(settings: dict[str, Any], chunk_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(5, 16, generator=generator).requires_grad_()
    weight = torch.randn(301, 16, generator=generator).requires_grad_()
    labels = torch.randint(301, (5,), generator=generator)
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


@pytest.mark.parametrize("settings", FUNCTIONALS, ids=str)
@pytest.mark.parametrize(("function", "option"), [(on_logits, False), (on_logits, True), (on_hidden, 2)])
def test_triton_gives_what_torch_gives(
    worker: ProcessPoolExecutor, settings: dict[str, Any], function: Callable[..., list[Tensor]], option: Any
) -> None:
    found = worker.submit(by_triton, function, settings, option).result()
    torch.testing.assert_close(found, function(settings, option), atol=2e-5, rtol=2e-5)


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
