"""The op on hidden states and LM head: the same as on logits, for every chunk, in memory that does not grow with N."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from aent_verl.core.fused import _add_product, linear_logprobs_and_entropy, logprobs_and_entropy
from tests.peak_memory import MIB, peak_extra

FUNCTIONALS: list[dict[str, Any]] = [
    {},
    {"functional": "clamped", "clamp_p": 0.33},
    {"functional": "nucleus", "top_p": 0.8},
]
each_functional = pytest.mark.parametrize("settings", FUNCTIONALS, ids=str)


def case(tokens: int = 7, width: int = 5, vocabulary: int = 31) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, LM head, labels and temperatures."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, width, dtype=torch.float64, generator=generator)
    weight = torch.randn(vocabulary, width, dtype=torch.float64, generator=generator)
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    temperature = torch.rand(tokens, dtype=torch.float64, generator=generator) + 0.5
    return hidden.requires_grad_(), weight.requires_grad_(), labels, temperature


def gradients(outputs: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
    ramp = torch.linspace(-1, 2, len(outputs[0]), dtype=torch.float64)
    return torch.autograd.grad(sum((ramp * out.double()).sum() for out in outputs[:2]), inputs)


@each_functional
def test_gradcheck(settings: dict[str, Any]) -> None:
    hidden, weight, labels, temperature = case()

    def op(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return linear_logprobs_and_entropy(h, w, labels, temperature=temperature, chunk_size=3, **settings)

    assert gradcheck(op, (hidden, weight))
    for output in (0, 1):  # where nobody asks for the gradient of the other
        assert gradcheck(lambda h, w, output=output: op(h, w)[output], (hidden, weight), fast_mode=True)


@each_functional
@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 100])
def test_is_the_op_on_logits(settings: dict[str, Any], chunk_size: int | None) -> None:
    hidden, weight, labels, temperature = case()
    mine = linear_logprobs_and_entropy(
        hidden, weight, labels, temperature=temperature, chunk_size=chunk_size, statistics=True, **settings
    )
    expected = logprobs_and_entropy(hidden @ weight.T, labels, temperature=temperature, statistics=True, **settings)
    torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(gradients(mine, hidden, weight), gradients(expected, hidden, weight))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_input_gets_no_gradient(frozen: str) -> None:
    hidden, weight, labels, _ = case()
    expected = gradients(linear_logprobs_and_entropy(hidden, weight, labels), hidden, weight)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    free, index = (weight, 1) if frozen == "hidden" else (hidden, 0)
    torch.testing.assert_close(gradients(linear_logprobs_and_entropy(hidden, weight, labels), free)[0], expected[index])


def test_tied_weight_gets_both_gradients() -> None:
    _, weight, labels, _ = case(tokens=31)

    def both(op: Any) -> Tensor:
        return gradients(op(weight.tanh(), weight), weight)[0]

    torch.testing.assert_close(
        both(lambda h, w: linear_logprobs_and_entropy(h, w, labels, chunk_size=4)),
        both(lambda h, w: logprobs_and_entropy(h @ w.T, labels)),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_chunks_do_not_cost_precision(dtype: torch.dtype) -> None:
    """Distance of the weight's gradient to fp64: in many chunks at most that of one, plus a tenth."""
    hidden, weight, labels, _ = case(tokens=512, width=16, vocabulary=101)
    h, w = (t.detach().to(dtype).requires_grad_() for t in (hidden, weight))
    exact = tuple(t.detach().double().requires_grad_() for t in (h, w))
    truth = gradients(linear_logprobs_and_entropy(*exact, labels), *exact)

    def distances(outputs: tuple[Tensor, ...]) -> list[float]:
        pairs = zip(gradients(outputs, h, w), truth, strict=True)
        return [(one.double() - true).norm().item() for one, true in pairs]

    chunked = distances(linear_logprobs_and_entropy(h, w, labels, chunk_size=8))
    whole = distances(logprobs_and_entropy(h @ w.T, labels))
    for mine, same in zip(chunked, whole, strict=True):
        assert mine <= 1.1 * same


def test_autocast_decides_the_type_of_the_product() -> None:
    hidden, weight, labels, _ = case()
    h, w = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine = linear_logprobs_and_entropy(h, w, labels, chunk_size=3)
        expected = logprobs_and_entropy(torch.nn.functional.linear(h, w), labels)
    found = gradients(mine, h, w)
    assert [t.dtype for t in found] == [torch.float32, torch.float32]
    torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(found, gradients(expected, h, w), atol=0.02, rtol=0.02)


@each_functional
def test_statistics_have_no_gradient(settings: dict[str, Any]) -> None:
    hidden, weight, labels, _ = case()
    *_, statistics = linear_logprobs_and_entropy(hidden, weight, labels, statistics=True, **settings)
    assert not statistics["entropy_full"].requires_grad
    assert not statistics["removed_mass"].requires_grad


def test_second_derivative_is_refused() -> None:
    hidden, weight, labels, _ = case()
    log_probs, _ = linear_logprobs_and_entropy(hidden, weight, labels)
    (first,) = torch.autograd.grad(log_probs.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.square().sum().backward()


@pytest.mark.parametrize(("dtype", "large"), [(torch.bfloat16, 256.0), (torch.float16, 2048.0)], ids=str)
def test_product_is_not_rounded_to_the_type_of_its_factors(dtype: torch.dtype, large: float) -> None:
    total = torch.ones(1, 1)
    _add_product(total, torch.ones(1, 2, dtype=dtype), torch.tensor([[large], [1.0]], dtype=dtype))
    assert total.item() == large + 2.0


def test_zero_tokens() -> None:
    hidden, weight, labels, _ = case()
    outputs = linear_logprobs_and_entropy(hidden[:0], weight, labels[:0])
    assert [out.shape for out in outputs] == [(0,), (0,)]
    for gradient, like in zip(gradients(outputs, hidden, weight), (hidden, weight), strict=True):
        assert torch.equal(gradient, torch.zeros_like(like))


H, W, Y = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("hidden", "weight", "labels", "settings", "message"),
    [
        (H, W.T, Y, {}, r"hidden has shape \[3, 4\] and weight \[4, 5\]; expected \[N, D\] and \[V, D\]"),
        (H.unsqueeze(0), W, Y, {}, r"hidden has shape \[1, 3, 4\]"),
        (H, W[:0], Y, {}, "with V >= 1"),
        (H, W.double(), Y, {}, "weight is torch.float64 and hidden torch.float32; expected one type"),
        (H.long(), W.long(), Y, {}, "hidden: torch.int64 is not allowed"),
        (H, W, Y[:2], {}, r"labels are torch.int64 of shape \[2\]; expected int64 of shape \[3\]"),
        (H, W, Y + 5, {}, r"labels\[0\]=5 is outside \[0, 5\)"),
        (H, W, Y, {"chunk_size": 0}, "chunk_size=0 is not allowed"),
        (H, W, Y, {"temperature": -1.0}, "temperature=-1.0 is not allowed"),
        (H, W, Y, {"kernel": "triton"}, "kernel='triton' cannot run"),
        (H, W, Y, {"functional": "clamped", "clamp_p": math.nan}, r"clamp_p=nan is outside \[0, 1\)"),
    ],
)
def test_refused(hidden: Tensor, weight: Tensor, labels: Tensor, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_logprobs_and_entropy(hidden, weight, labels, **settings)


def extra_memory(tokens: int, chunk_size: int) -> int:
    """Peak beyond inputs, of forward and backward pass at width 16 and a vocabulary of 4,096."""
    setup = f"""
        from aent_verl.core.fused import linear_logprobs_and_entropy
        hidden = torch.randn({tokens}, 16).requires_grad_()
        weight = torch.randn(4096, 16).requires_grad_()
        labels = torch.randint(4096, ({tokens},))
        # Loads what is loaded at first use.
        first, _ = linear_logprobs_and_entropy(hidden[:2], weight, labels[:2], functional="clamped", clamp_p=0.33)
        first.sum().backward()
        hidden.grad = weight.grad = None
    """
    run = f"""
        log_probs, entropy = linear_logprobs_and_entropy(
            hidden, weight, labels, functional="clamped", clamp_p=0.33, chunk_size={chunk_size}
        )
        (log_probs.sum() + entropy.sum()).backward()
    """
    return peak_extra(setup, run)


@pytest.mark.slow
def test_memory_grows_with_the_chunk_and_not_with_the_tokens() -> None:
    one, four, sixteen = (extra_memory(n * 1024, chunk_size=256) for n in (1, 4, 16))
    # What has to grow: the gradient of the hidden states, and fewer than 64 numbers a token.
    needed = 16 * 1024 * (16 + 64) * 4
    assert max(four, sixteen) - one <= needed + 8 * MIB
    # The logits of all tokens would be 256 MiB.
    assert sixteen < 64 * MIB
    larger = extra_memory(4 * 1024, chunk_size=2048)
    assert larger - four >= 0.8 * (2048 - 256) * 4096 * 4
