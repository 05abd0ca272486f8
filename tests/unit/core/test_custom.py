"""A custom functional: the fused op's log-probs and statistics, its own value and gradient, in chunks."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from aent_verl.core.custom import logprobs_and_custom_entropy
from aent_verl.core.entropy import full_entropy
from aent_verl.core.fused import logprobs_and_entropy

CHUNKS = [None, 1, 3, 100]


def tsallis(logits: Tensor, q: float) -> Tensor:
    return (1 - (q * logits.log_softmax(-1)).exp().sum(-1)) / (q - 1)


def batch(tokens: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(tokens, 11, generator=generator, dtype=torch.float64)
    return logits, torch.randint(11, (tokens,), generator=generator), 0.5 + torch.rand(tokens, generator=generator)


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_it_agrees_with_the_fused_op_where_both_can(chunk_size: int | None) -> None:
    logits, labels, temperature = batch()
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    gradients = []
    for result in (
        lambda z: logprobs_and_custom_entropy(z, labels, full_entropy, temperature=temperature, chunk_size=chunk_size),
        lambda z: logprobs_and_entropy(z, labels, temperature=temperature, statistics=True),
    ):
        leaf = logits.clone().requires_grad_()
        log_probs, entropy, statistics = result(leaf)
        (weights * (log_probs + 2 * entropy)).sum().backward()
        gradients.append((log_probs, entropy, statistics["entropy_full"], statistics["removed_mass"], leaf.grad))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_gradient() -> None:
    logits, labels, _ = batch()

    def function(z: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, entropy, _ = logprobs_and_custom_entropy(z, labels, partial(tsallis, q=2.0), chunk_size=2)
        return log_probs, entropy

    assert torch.autograd.gradcheck(function, logits.requires_grad_())


def test_half_precision_logits_are_given_in_fp32() -> None:
    logits, labels, _ = batch()
    _, entropy, _ = logprobs_and_custom_entropy(logits.bfloat16(), labels, partial(tsallis, q=2.0))
    assert entropy.dtype is torch.float32
    torch.testing.assert_close(entropy, tsallis(logits.bfloat16().float(), 2.0))


def test_no_tokens() -> None:
    _, entropy, _ = logprobs_and_custom_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), full_entropy)
    assert entropy.shape == (0,)


def test_a_result_of_another_shape_is_named() -> None:
    logits, labels, _ = batch()
    with pytest.raises(ValueError, match=r"returned shape \[7, 11\] for logits \[7, 11\]"):
        logprobs_and_custom_entropy(logits, labels, lambda z: z)


@pytest.mark.parametrize("kind", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_a_distribution_is_nan_and_has_no_gradient_that_nobody_asks_for(kind: float) -> None:
    z = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    z[2] = kind
    z.requires_grad_()
    _, entropy, _ = logprobs_and_custom_entropy(z, torch.zeros(4, dtype=torch.long), partial(tsallis, q=2))  # type: ignore[misc]
    assert entropy.isnan().tolist() == [False, False, True, False]
    (gradient,) = torch.autograd.grad(entropy[[0, 1, 3]].sum(), z)
    assert not gradient[2].any()
    assert gradient[[0, 1, 3]].abs().sum() > 0
