"""What a device alone can show: memory, waiting for the device, and more elements than fit into 31 bits."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from aent_verl.core import backends
from aent_verl.core.fused import linear_logprobs_and_entropy, logprobs_and_entropy
from aent_verl.core.selection import selector
from benchmarks.measure import backward, peak_growth
from tests.gpu.place import QWEN, Place, decided
from tests.gpu.test_op import MAIN, Cases, each_main
from tests.unit.core.test_fused import FUNCTIONALS

pytestmark = pytest.mark.gpu

MIB = 2**20


@pytest.fixture(autouse=True)
def _on_cuda(place: Place) -> None:
    if place.device != "cuda":
        pytest.skip("measured by torch's CUDA allocator and its check for synchronisation")


def logits_and_labels(tokens: int, vocabulary: int = QWEN) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.empty(tokens, vocabulary, dtype=torch.bfloat16, device="cuda")
    logits.normal_(std=2.5, generator=generator)
    return logits, torch.randint(vocabulary, (tokens,), generator=generator, device="cuda")


class Output(torch.autograd.Function):
    """Logits as an op's output, which may be overwritten, without a copy of them; the gradient ends here."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, logits: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[0, 0].float(), None


@each_main
@pytest.mark.parametrize("inplace", [False, True])
def test_no_second_copy_of_the_logits(kernel: str, inplace: bool, name: str, cases: Cases) -> None:
    """The peak beyond the logits: their gradient, or nothing of their size if that is written over them."""
    tokens = 4096
    settings = {"temperature": 0.7, "inplace_backward": inplace, "kernel": kernel, **FUNCTIONALS[name][0]}

    def run(logits: Tensor, labels: Tensor) -> None:
        one = torch.ones((), device="cuda", requires_grad=True)
        backward(logprobs_and_entropy(Output.apply(one, logits), labels, **settings))

    run(*logits_and_labels(64))
    logits, labels = logits_and_labels(tokens)
    size = logits.numel() * logits.element_size()
    extra = peak_growth(lambda: run(logits, labels), "cuda")
    assert extra is not None
    beyond = extra - (0 if inplace else size)
    cases.append(
        {"kernel": kernel, "functional": name, "logits, MiB": size / MIB, "beyond gradient, MiB": beyond / MIB}
    )
    # The kernels keep a few numbers per token. In torch there are buffers of one chunk, and what its top-k needs.
    if name == "nucleus .8":
        assert beyond < size
    else:
        assert beyond <= (16 * MIB if kernel == "triton" else size / 2)
    assert inplace or beyond > -MIB


@each_main
def test_memory_of_the_head_grows_with_the_chunk(kernel: str, name: str, cases: Cases) -> None:
    width, chunk = 256, 512

    def run(tokens: int) -> int:
        generator = torch.Generator("cuda").manual_seed(0)
        hidden = torch.randn(tokens, width, generator=generator, device="cuda").bfloat16().requires_grad_()
        weight = torch.randn(QWEN, width, generator=generator, device="cuda").mul_(0.1).bfloat16().requires_grad_()
        labels = torch.randint(QWEN, (tokens,), generator=generator, device="cuda")
        settings = {"chunk_size": chunk, "kernel": kernel, **FUNCTIONALS[name][0]}
        extra = peak_growth(lambda: backward(linear_logprobs_and_entropy(hidden, weight, labels, **settings)), "cuda")
        assert extra is not None
        return extra

    run(2 * chunk)
    few, many = run(4 * chunk), run(32 * chunk)
    # What has to grow: the gradient of the states, and fewer than 64 numbers a token.
    needed = 28 * chunk * (2 * width + 64 * 4)
    cases.append({"kernel": kernel, "functional": name, "more, MiB": (many - few) / MIB, "needed, MiB": needed / MIB})
    assert many - few <= needed + 16 * MIB


@pytest.mark.parametrize("name", MAIN[:2])
def test_the_kernels_never_wait_for_the_device(name: str) -> None:
    """Forward and backward pass, once compiled; the nucleus has its boundary from torch, and is not promised."""
    logits, labels = logits_and_labels(64)
    settings = FUNCTIONALS[name][0]
    chosen = selector(settings.get("functional", "full"), settings.get("clamp_p"), None)
    backend = backends.choose(logits, chosen, True, None, "triton")
    gradient, out = torch.ones(64, 1, device="cuda"), torch.empty_like(logits)

    def run() -> None:
        _, rows = backend.forward(logits, labels, None)
        backend.backward(logits, labels, None, rows, gradient, gradient, out)

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_main
def test_the_op_waits_once_for_its_check_of_the_labels(name: str, cases: Cases) -> None:
    logits, labels = logits_and_labels(64)
    logits.requires_grad_()

    def run() -> None:
        logits.grad = None
        backward(logprobs_and_entropy(logits, labels, temperature=0.7, kernel="triton", **FUNCTIONALS[name][0]))

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    cases.append({"functional": name, "waits": len(waits)})
    assert len(waits) <= 1 or name == "nucleus .8"


@each_main
@pytest.mark.parametrize("inplace", [False, True])
def test_more_elements_than_31_bits_count(inplace: bool, name: str) -> None:
    """A micro-batch of 16,384 tokens has 2.5e9 logits: its last rows are those that they are alone."""
    tokens, last = 16_384, 8
    needed = 2.5 * 2 * tokens * QWEN
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free memory on the device")
    logits, labels = logits_and_labels(tokens)
    alone = logits[-last:].clone().requires_grad_()
    settings = {"temperature": 0.7, "kernel": "triton", **FUNCTIONALS[name][0]}
    expected = logprobs_and_entropy(alone, labels[-last:], **settings)
    (of_alone,) = torch.autograd.grad(sum(x.sum() for x in expected), alone)
    whole = Output.apply(torch.ones((), device="cuda", requires_grad=True), logits)
    found = logprobs_and_entropy(whole, labels, inplace_backward=inplace, **settings)
    (of_whole,) = torch.autograd.grad(sum(x.sum() for x in found), whole)
    judged = decided(alone.detach().double() / 0.7, FUNCTIONALS[name][0])
    for one, other in zip((*found, of_whole), (*expected, of_alone), strict=True):
        assert torch.equal(one[-last:][judged], other[judged])
