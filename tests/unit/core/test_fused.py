"""The fused op against the plain definitions: values, gradients, error budgets, chunks and special rows."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from aent_verl.core.entropy import (
    clamped_entropy,
    full_entropy,
    keep_share,
    nucleus_entropy,
    nucleus_share,
    removed_mass,
)
from aent_verl.core.fused import logprobs_and_entropy
from tests.lab import TopK


def top_k_entropy(z: Tensor) -> Tensor:
    """Without all but 20; the half keeps rounding away from the whole number."""
    return clamped_entropy(z, max(0, z.shape[-1] - 19.5) / z.shape[-1])


FUNCTIONALS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "full": ({}, full_entropy),
    "clamped .33": ({"functional": "clamped", "clamp_p": 0.33}, lambda z: clamped_entropy(z, 0.33)),
    "clamped .9": ({"functional": "clamped", "clamp_p": 0.9}, lambda z: clamped_entropy(z, 0.9)),
    "clamped 0": ({"functional": "clamped", "clamp_p": 0.0}, full_entropy),
    "nucleus .8": ({"functional": "nucleus", "top_p": 0.8}, lambda z: nucleus_entropy(z, 0.8)),
    "top 20": ({"functional": TopK(20)}, top_k_entropy),
}
each_functional = pytest.mark.parametrize("name", FUNCTIONALS)
KINDS = ("random", "peaked", "flat", "tied", "masked")
# The second takes the search by counting.
VOCABULARIES = (97, 9001)


def rows(kind: str, vocabulary: int, tokens: int = 6) -> tuple[Tensor, Tensor]:
    """fp64 logits [N, V] and labels [N] of finite logits."""
    generator = torch.Generator().manual_seed(vocabulary)
    z = torch.randn(tokens, vocabulary, dtype=torch.float64, generator=generator) * 3
    labels = torch.randint(1, vocabulary, (tokens,), generator=generator)
    if kind == "peaked":
        z[:, 5] += 40
        assert (z.softmax(-1)[:, 5] > 0.999).all()
    elif kind == "flat":
        z *= 1e-3
    elif kind == "tied":
        z = torch.randint(-3, 4, z.shape, generator=generator).double()
    elif kind == "masked":
        z[:, ::3] = -torch.inf
        labels -= (labels % 3 == 0).long()
    return z, labels


def plain(z: Tensor, labels: Tensor, entropy: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    wide = z if z.dtype is torch.float64 else z.float()
    return wide.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1), entropy(z)


def gradient(outputs: tuple[Tensor, Tensor], z: Tensor, weights: tuple[float, float]) -> Tensor:
    """Gradient of a sum in which every token has a weight of its own; a weight of 0 leaves that output out."""
    ramp = torch.linspace(-1, 2, len(outputs[0]), dtype=torch.float64)
    terms = [(w * ramp * out.double()).sum() for out, w in zip(outputs, weights, strict=True) if w]
    return torch.autograd.grad(sum(terms, start=torch.zeros(())), z, retain_graph=True)[0]


EACH_AND_BOTH = ((1.0, 0.0), (0.0, 1.0), (1.0, -0.7))


@each_functional
@pytest.mark.parametrize("temperature", [1.0, 0.6, "per token"])
def test_gradcheck(name: str, temperature: float | str) -> None:
    z, labels = rows("random", 31)
    t = torch.linspace(0.5, 1.5, 6, dtype=torch.float64) if isinstance(temperature, str) else temperature

    def op(x: Tensor) -> tuple[Tensor, Tensor]:
        return logprobs_and_entropy(x, labels, temperature=t, chunk_size=4, **FUNCTIONALS[name][0])

    assert gradcheck(op, (z.requires_grad_(),))
    for output in (0, 1):  # where nobody asks for the gradient of the other
        assert gradcheck(lambda x, output=output: op(x)[output], (z,), fast_mode=True)


@each_functional
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_is_the_plain_form(name: str, kind: str, vocabulary: int, temperature: float) -> None:
    z, labels = rows(kind, vocabulary)
    z.requires_grad_()
    settings, entropy = FUNCTIONALS[name]
    mine = logprobs_and_entropy(z, labels, temperature=temperature, **settings)
    expected = plain(z / temperature, labels, entropy)
    torch.testing.assert_close(mine, expected, atol=1e-10, rtol=1e-10)
    for weights in EACH_AND_BOTH:
        torch.testing.assert_close(gradient(mine, z, weights), gradient(expected, z, weights), atol=1e-10, rtol=1e-10)


# Not the twenty tokens: there both forms are within half a unit in the last place, in every precision.
@pytest.mark.parametrize("name", [name for name in FUNCTIONALS if name != "top 20"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "margin"), [(torch.bfloat16, 0.1), (torch.float16, 0.1), (torch.float32, 0.25)], ids=str
)
def test_no_further_from_the_truth_than_the_plain_form(name: str, kind: str, dtype: torch.dtype, margin: float) -> None:
    """Mean distance to fp64 on the same logits: at most the plain form's in this precision plus a tenth.

    In fp32 both are within half a unit in the last place, where more than a quarter would be a fault.
    """
    wide, labels = rows(kind, 3001, tokens=64)
    z = wide.to(dtype).requires_grad_()
    settings, entropy = FUNCTIONALS[name]
    mine, same = logprobs_and_entropy(z, labels, **settings), plain(z, labels, entropy)
    exact = z.detach().double().requires_grad_()
    truth = plain(exact, labels, entropy)
    assert mine[0].dtype is mine[1].dtype is torch.float32

    def no_further(one: Tensor, other: Tensor, true: Tensor) -> None:
        mine, same = ((t.detach().double() - true.detach()).abs().mean() for t in (one, other))
        assert mine <= (1 + margin) * same

    for triple in zip(mine, same, truth, strict=True):
        no_further(*triple)
    for weights in EACH_AND_BOTH:
        no_further(gradient(mine, z, weights), gradient(same, z, weights), gradient(truth, exact, weights))


@each_functional
@pytest.mark.parametrize("chunk_size", [1, 4, 6, 100])
def test_chunks_change_no_bit(name: str, chunk_size: int) -> None:
    z, labels = rows("random", 9001)
    z = z.float().requires_grad_()
    settings, _ = FUNCTIONALS[name]
    t = torch.linspace(0.5, 1.5, 6)
    whole = logprobs_and_entropy(z, labels, temperature=t, **settings)
    parts = logprobs_and_entropy(z, labels, temperature=t, chunk_size=chunk_size, **settings)
    for one, other in zip(parts, whole, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(gradient(parts, z, (1.0, 0.5)), gradient(whole, z, (1.0, 0.5)))


@each_functional
@pytest.mark.parametrize("kind", KINDS)
def test_statistics(name: str, kind: str) -> None:
    z, labels = rows(kind, 97)
    z.requires_grad_()
    settings, _ = FUNCTIONALS[name]
    log_probs, entropy, statistics = logprobs_and_entropy(z, labels, statistics=True, **settings)
    for one, other in zip((log_probs, entropy), logprobs_and_entropy(z, labels, **settings), strict=True):
        assert torch.equal(one, other)
    keep = torch.ones_like(z)
    if "clamp_p" in settings:
        keep = keep_share(z, settings["clamp_p"])
    elif "top_p" in settings:
        keep = nucleus_share(z, settings["top_p"])
    elif settings:
        keep = keep_share(z, 77.5 / 97)
    torch.testing.assert_close(statistics["entropy_full"], full_entropy(z.detach()), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(statistics["removed_mass"], removed_mass(z, keep), atol=1e-12, rtol=1e-6)
    assert not statistics["entropy_full"].requires_grad
    assert not statistics["removed_mass"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_inplace_backward_writes_over_the_logits(dtype: torch.dtype) -> None:
    wide, labels = rows("random", 97)
    leaf = wide.to(dtype).requires_grad_()
    expected = gradient(logprobs_and_entropy(leaf, labels, functional="clamped", clamp_p=0.33), leaf, (1.0, 0.5))
    logits = leaf * 1.0
    outputs = logprobs_and_entropy(logits, labels, functional="clamped", clamp_p=0.33, inplace_backward=True)
    assert torch.equal(logits, leaf)
    found = gradient(outputs, logits, (1.0, 0.5))
    assert torch.equal(found, expected)
    assert found.data_ptr() == logits.data_ptr()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(outputs, logits, (1.0, 0.5))


def test_inplace_backward_is_noticed_by_whoever_needs_the_values() -> None:
    wide, labels = rows("random", 97)
    leaf = wide.requires_grad_()
    # The backward pass of exp needs its result.
    log_probs, _ = logprobs_and_entropy(leaf.exp(), labels, inplace_backward=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_probs.sum().backward()


def test_inplace_backward_is_refused_where_it_would_destroy_what_is_needed() -> None:
    wide, labels = rows("random", 97)
    leaf = wide.requires_grad_()
    for logits in (leaf, leaf[:], leaf.unsqueeze(0).squeeze(0)):
        with pytest.raises(ValueError, match="inplace_backward=True is not allowed for a leaf or a view of one"):
            logprobs_and_entropy(logits, labels, inplace_backward=True)
    expanded = (leaf[:1] * 1.0).expand(6, 97)
    with pytest.raises(ValueError, match="inplace_backward=True is not allowed for expanded logits"):
        logprobs_and_entropy(expanded, labels, inplace_backward=True)


@each_functional
def test_memory_layout_does_not_matter(name: str) -> None:
    wide, labels = rows("random", 97)
    settings, _ = FUNCTIONALS[name]
    base = wide.clone().requires_grad_()
    expected = logprobs_and_entropy(base, labels, **settings)
    for view in (
        wide.T.contiguous().T,
        torch.cat([wide, wide], -1)[:, :97],
        wide.repeat_interleave(2, -1)[:, ::2],
        wide.repeat_interleave(2, 0)[::2],
    ):
        assert not view.is_contiguous()
        z = view.requires_grad_()
        found = logprobs_and_entropy(z, labels, **settings)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient(found, z, (1.0, 0.5)), gradient(expected, base, (1.0, 0.5)))
    repeated = wide[:1].expand(6, 97).clone().requires_grad_()
    expanded = wide[:1].requires_grad_()
    one = logprobs_and_entropy(expanded.expand(6, 97), labels, **settings)
    many = logprobs_and_entropy(repeated, labels, **settings)
    torch.testing.assert_close(gradient(one, expanded, (1.0, 0.5))[0], gradient(many, repeated, (1.0, 0.5)).sum(0))


@each_functional
def test_zero_tokens(name: str) -> None:
    z = torch.zeros(0, 97, requires_grad=True)
    log_probs, entropy, statistics = logprobs_and_entropy(
        z, torch.zeros(0, dtype=torch.long), statistics=True, **FUNCTIONALS[name][0]
    )
    assert log_probs.shape == entropy.shape == statistics["entropy_full"].shape == (0,)
    (log_probs.sum() + entropy.sum()).backward()
    assert z.grad is not None
    assert z.grad.shape == (0, 97)


@each_functional
def test_vocabulary_of_one_token(name: str) -> None:
    z = torch.tensor([[3.0], [-2.0]], requires_grad=True)
    log_probs, entropy = logprobs_and_entropy(z, torch.tensor([0, 0]), **FUNCTIONALS[name][0])
    (log_probs + entropy).sum().backward()
    assert log_probs.tolist() == entropy.tolist() == [0.0, 0.0]
    assert z.grad is not None
    assert z.grad.tolist() == [[0.0], [0.0]]


def test_clamp_leaves_at_least_one_token() -> None:
    z, labels = rows("random", 97)
    z.requires_grad_()
    log_probs, entropy = logprobs_and_entropy(z, labels, functional="clamped", clamp_p=1 - 1e-9)
    assert entropy.abs().max() < 1e-12
    torch.testing.assert_close(log_probs, plain(z, labels, full_entropy)[0])


@each_functional
def test_nan_and_rows_without_a_distribution_are_nan(name: str) -> None:
    z, labels = rows("random", 97)
    z[1, 5] = math.nan
    z[2, 5] = -math.nan
    z[3] = -torch.inf
    z[4, 7] = torch.inf
    bad = [False, True, True, True, True, False]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        log_probs, entropy = logprobs_and_entropy(z.to(dtype), labels, **FUNCTIONALS[name][0])
        assert log_probs.isnan().tolist() == entropy.isnan().tolist() == bad


@each_functional
@pytest.mark.parametrize("chunk_size", [1, 2, 6])
def test_row_without_incoming_gradient_gets_none_whatever_it_holds(name: str, chunk_size: int) -> None:
    z, labels = rows("random", 97)
    z.requires_grad_()
    settings, _ = FUNCTIONALS[name]
    expected = gradient(logprobs_and_entropy(z, labels, **settings), z, (1.0, 0.5))
    spoilt = z.detach().clone()
    spoilt[1], spoilt[2, 5], spoilt[3] = math.nan, math.inf, -math.inf
    spoilt.requires_grad_()
    outputs = logprobs_and_entropy(spoilt, labels, chunk_size=chunk_size, **settings)
    kept = torch.tensor([0, 4, 5])
    ramp = torch.linspace(-1, 2, 6, dtype=torch.float64)
    (ramp[kept] * (outputs[0] + 0.5 * outputs[1])[kept]).sum().backward()
    assert spoilt.grad is not None
    assert torch.equal(spoilt.grad[kept], expected[kept])
    assert spoilt.grad[1:4].abs().max() == 0.0


@each_functional
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_far_below_the_maximum_is_zero_and_not_nan(name: str, dtype: torch.dtype) -> None:
    """A label of probability 0 has log-prob -inf; its row still has an entropy and a finite gradient."""
    z = torch.tensor([[0.0, -1.0, -2.0, -torch.inf, -1e30, -100.0]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([3])
    log_probs, entropy = logprobs_and_entropy(z, labels, **FUNCTIONALS[name][0])
    (log_probs + entropy).sum().backward()
    assert log_probs.item() == -torch.inf
    assert entropy.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert z.grad[0, 3] == 1.0
    assert z.grad[0, 4] == 0.0


def test_large_logits_at_a_temperature() -> None:
    """The maximum goes before the temperature comes: nothing overflows, and not everything vanishes."""
    z, labels = rows("random", 97)
    z = (z + 300.0).float().requires_grad_()
    for temperature in (0.5, 2.0):
        mine = logprobs_and_entropy(z, labels, temperature=temperature)
        expected = plain(z.double() / temperature, labels, full_entropy)
        torch.testing.assert_close(mine, tuple(out.float() for out in expected), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            gradient(mine, z, (1.0, 0.5)), gradient(expected, z, (1.0, 0.5)), atol=1e-4, rtol=1e-4
        )


@each_functional
@pytest.mark.parametrize("chunk_size", [1, 6])
def test_row_with_only_one_of_the_two_gradients_gets_it(name: str, chunk_size: int) -> None:
    z, labels = rows("random", 97)
    z.requires_grad_()
    settings, entropy = FUNCTIONALS[name]
    of_mine, of_plain = (
        torch.autograd.grad(log_probs[:2].sum() + value[1:3].sum(), z)[0]
        for log_probs, value in (
            logprobs_and_entropy(z, labels, chunk_size=chunk_size, **settings),
            plain(z, labels, entropy),
        )
    )
    torch.testing.assert_close(of_mine, of_plain, atol=1e-10, rtol=1e-10)


def test_fp64_keeps_probabilities_that_fp32_has_not() -> None:
    z = torch.tensor([[0.0, -100.0]], dtype=torch.float64, requires_grad=True)
    logprobs_and_entropy(z, torch.tensor([0]))[0].sum().backward()
    assert z.grad is not None
    assert z.grad[0, 1].item() == pytest.approx(-math.exp(-100), rel=1e-9, abs=0.0)


def test_second_derivative_is_refused() -> None:
    z, labels = rows("random", 97)
    z.requires_grad_()
    log_probs, _ = logprobs_and_entropy(z, labels)
    (first,) = torch.autograd.grad(log_probs.square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.square().sum().backward()


def test_removed_mass_is_never_negative() -> None:
    """The share of tied tokens is subtracted: rounding must not leave less than nothing."""
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(3000, 7, generator=generator) * 3).round()
    labels = torch.zeros(3000, dtype=torch.long)
    *_, statistics = logprobs_and_entropy(z, labels, functional="nucleus", top_p=1 - 1e-12, statistics=True)
    assert statistics["removed_mass"].min() == 0.0


def test_one_token_with_all_the_mass_leaves_an_empty_nucleus() -> None:
    z, labels = rows("peaked", 97)
    z.requires_grad_()
    _, entropy, statistics = logprobs_and_entropy(z, labels, functional="nucleus", top_p=0.8, statistics=True)
    entropy.sum().backward()
    assert entropy.tolist() == [0.0] * 6
    assert statistics["removed_mass"].tolist() == pytest.approx([1.0] * 6)
    assert z.grad is not None
    assert z.grad.abs().max() == 0.0
