"""Clip-Cov and KL-Cov against float64 loops, their gradients by hand and by finite differences, and bad input."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from aent_verl.core.policy_losses import LOG_RATIO_LIMIT, clip_cov, clipped, covariance, kl_cov, log_ratio
from tests import reference

RANGES = [(0.2, 0.28), (1.0, 1.0)]


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New and old log-probs, advantages and a selection, [3, 16]; ratios on both sides of every clip, and beyond 20."""
    generator = torch.Generator().manual_seed(8)
    draw = [torch.randn(3, 16, dtype=torch.float64, generator=generator) for _ in range(3)]
    old = -draw[0].abs() - 1
    new = old + draw[1] * 0.7
    new[0, :4], new[1, :4] = old[0, :4] + torch.tensor([25.0, -25.0, 19.5, -19.5]), old[1, :4]
    advantages = draw[2]
    advantages[:, -1] = 0.0
    # Between the two widths of a lop-sided clip range: the upper one lets the first pass, the lower stops the second.
    new[2, :2], advantages[2, :2] = old[2, :2] + torch.tensor([1.24, 0.76]).log(), torch.tensor([1.0, -1.0]).double()
    return new.requires_grad_(), old.requires_grad_(), advantages.requires_grad_(), draw[1] > 0.8


def tokens(*tensors: Tensor) -> list[tuple[float, ...]]:
    return list(zip(*(x.flatten().tolist() for x in tensors), strict=True))


def check(loss: Tensor, new: Tensor, expected: list[tuple[float, float]]) -> None:
    """Value and gradient of each token, relative to its own size: they reach e^20."""
    slope = torch.autograd.grad(loss.sum(), new)[0]
    assert loss.flatten().tolist() == pytest.approx([value for value, _ in expected], rel=1e-12, abs=1e-12)
    assert slope.flatten().tolist() == pytest.approx([value for _, value in expected], rel=1e-12, abs=1e-12)


def test_log_ratio_is_clamped_in_value_and_gradient() -> None:
    new = torch.tensor([0.0, -5.0, -1e4, 1e30, -math.inf, math.inf, math.nan], requires_grad=True)
    old = torch.tensor([-1.0, 0.0, 0.0, 0.0, 0.0, math.inf, 0.0], requires_grad=True)
    x = log_ratio(new, old)
    limit = LOG_RATIO_LIMIT
    assert limit == 20.0
    assert x.tolist() == pytest.approx([1.0, -5.0, -limit, limit, -limit, math.nan, math.nan], nan_ok=True)
    assert torch.autograd.grad(x.exp().nansum(), new, retain_graph=True)[0].tolist() == pytest.approx(
        [math.e, math.exp(-5), 0, 0, 0, 0, 0]
    )
    assert torch.autograd.grad(x.sum(), old, allow_unused=True) == (None,)


def test_log_ratio_of_bf16_is_taken_in_fp32() -> None:
    """The difference of two bf16 numbers needs more digits than bf16 has."""
    new, old = torch.tensor([-10.0], dtype=torch.bfloat16), torch.tensor([-0.001953125], dtype=torch.bfloat16)
    assert log_ratio(new, old).tolist() == [-9.998046875]


def test_covariance_is_the_definition() -> None:
    new, _, advantages, _ = batch()
    cov = covariance(advantages, new, mean_advantage=advantages.mean(), mean_log_prob=new.mean().item())
    expected = reference.covariance(advantages.flatten().tolist(), new.flatten().tolist())
    assert cov.flatten().tolist() == pytest.approx(expected, abs=1e-12)
    assert not cov.requires_grad
    assert cov.mean().item() == pytest.approx(
        torch.cov(torch.stack((advantages.flatten(), new.flatten())), correction=0)[0, 1].item()
    )


def test_covariance_of_fp32_is_fp64() -> None:
    """log p = -1e-9 differs from 0 only before rounding against the mean."""
    cov = covariance(torch.ones(2), torch.tensor([0.0, -1e-9]), mean_advantage=0.0, mean_log_prob=-0.5)
    assert cov.dtype is torch.float64
    assert cov[0] > cov[1]
    cov = covariance(torch.tensor([1.0, 1.0 + 2**-23]), torch.ones(2), mean_advantage=-3.0, mean_log_prob=0.0)
    assert cov[0] < cov[1]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_clipped_is_the_definition(low: float, high: float) -> None:
    new, old, advantages, _ = batch()
    ratio = log_ratio(new, old).exp()
    mask = clipped(ratio, advantages, low=low, high=high)
    expected = [reference.clipped(r, a, low, high) for r, a in tokens(ratio, advantages)]
    assert mask.flatten().tolist() == expected
    assert 0 < sum(expected) < len(expected)


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_clip_cov_is_the_definition(low: float, high: float) -> None:
    new, old, advantages, dropped = batch()
    loss = clip_cov(new, old, advantages, dropped, clip_low=low, clip_high=high)
    check(loss, new, [reference.clip_cov(*token, low, high) for token in tokens(new, old, advantages, dropped)])


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_clip_cov_without_dropped_tokens_is_ppo(low: float, high: float) -> None:
    """Its gradient vanishes at exactly the tokens that `clipped` names, and at those beyond the log-ratio's limit."""
    new, old, advantages, dropped = batch()
    loss = clip_cov(new, old, advantages, torch.zeros_like(dropped), clip_low=low, clip_high=high)
    ratio = (new - old).clamp(-20, 20).exp()
    plain = torch.where(advantages > 0, -advantages * ratio.clamp(max=1 + high), -advantages * ratio.clamp(min=1 - low))
    torch.testing.assert_close(loss, plain)
    still = torch.autograd.grad(loss.sum(), new)[0] == 0
    out = clipped(ratio, advantages, low=low, high=high) | ((new - old).abs() > 20) | (advantages == 0)
    assert torch.equal(still, out)


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
def test_kl_cov_is_the_definition(coefficient: float) -> None:
    new, old, advantages, penalised = batch()
    loss = kl_cov(new, old, advantages, penalised, coefficient=coefficient)
    check(loss, new, [reference.kl_cov(*token, coefficient) for token in tokens(new, old, advantages, penalised)])


def test_gradchecks() -> None:
    new, old, advantages, selected = batch()
    new, old, advantages, selected = new[2:].detach().requires_grad_(), old[2:].detach(), advantages[2:], selected[2:]
    assert gradcheck(lambda x: log_ratio(x, old), (new,))
    assert gradcheck(lambda x: clip_cov(x, old, advantages.detach(), selected, clip_low=0.2, clip_high=0.28), (new,))
    assert gradcheck(lambda x: kl_cov(x, old, advantages.detach(), selected, coefficient=0.3), (new,))


def test_kl_cov_pulls_penalised_tokens_back() -> None:
    """With A = 0 a descent step moves log p towards the old one; on-policy the penalty does nothing at all."""
    old = torch.full((3,), -1.0, dtype=torch.float64)
    new = torch.tensor([-0.5, -1.5, -1.0], dtype=torch.float64, requires_grad=True)
    loss = kl_cov(new, old, torch.zeros(3), torch.ones(3, dtype=torch.bool), coefficient=0.3)
    assert loss.tolist() == pytest.approx([0.15, 0.15, 0.0])
    assert torch.autograd.grad(loss.sum(), new)[0].tolist() == [0.3, -0.3, 0.0]


def test_advantages_and_old_log_probs_are_constants() -> None:
    new, old, advantages, selected = batch()
    for loss in (
        clip_cov(new, old, advantages, selected, clip_low=0.2, clip_high=0.28),
        kl_cov(new, old, advantages, selected, coefficient=1.0),
    ):
        assert torch.autograd.grad(loss.sum(), (old, advantages), allow_unused=True) == (None, None)


def test_inputs_are_not_written_to() -> None:
    inputs = batch()
    before = [x.detach().clone() for x in inputs]
    clip_cov(*inputs, clip_low=0.2, clip_high=0.28)
    kl_cov(*inputs, coefficient=1.0)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("where", ["new", "old", "both"])
def test_rubbish_outside_the_response_leaves_no_trace_in_the_gradient(rubbish: float, where: str) -> None:
    new, old, advantages, selected = (x.detach() for x in batch())
    mask = torch.ones_like(selected)
    mask[:, 12:] = False
    if where != "old":
        new[~mask] = rubbish
    if where != "new":
        old[~mask] = rubbish
    new.requires_grad_()
    for loss in (
        clip_cov(new, old, advantages, selected & mask, clip_low=0.2, clip_high=0.28),
        kl_cov(new, old, advantages, selected | ~mask, coefficient=1.0),
    ):
        slope = torch.autograd.grad(loss.masked_fill(~mask, 0.0).sum(), new)[0]
        assert slope[~mask].abs().tolist() == [0.0] * int((~mask).sum())
        assert slope[mask].isfinite().all()
        assert loss[mask].isfinite().all()


@pytest.mark.parametrize("rubbish", [math.nan, math.inf])
def test_dropped_tokens_may_hold_anything(rubbish: float) -> None:
    for i in range(3):
        inputs = [torch.zeros(1, dtype=torch.float64) for _ in range(3)]
        inputs[i] += rubbish
        new = inputs[0].requires_grad_()
        loss = clip_cov(new, *inputs[1:], torch.tensor([True]), clip_low=0.2, clip_high=0.28)
        assert loss.item() == torch.autograd.grad(loss.sum(), new)[0].item() == 0.0


def test_nan_inside_the_response_is_seen() -> None:
    new, zero, none = torch.full((1,), math.nan), torch.zeros(1), torch.tensor([False])
    assert clip_cov(new, zero, zero, none, clip_low=0.2, clip_high=0.28).isnan().all()
    assert kl_cov(new, zero, zero, none, coefficient=1.0).isnan().all()
