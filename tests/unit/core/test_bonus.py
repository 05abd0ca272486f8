"""Bonus forms, peaks and weights against float64 loops, their gradients, and what each of them promises."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from aent_verl.core.bonus import (
    anchored,
    linear,
    linear_difficulty,
    peak_mask,
    smoothed,
    smoothing_weight,
    threshold_difficulty,
    weighted,
)
from tests import reference

LENGTHS = (7, 1, 0, 12, 2)
EPO = {"mean": 0.8, "low": 0.5, "high": 1.5, "beta": 1.7}


def entropies() -> tuple[Tensor, Tensor]:
    """Ragged rows, [5, 12], and their mask; rubbish outside."""
    h = torch.rand(len(LENGTHS), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 2
    mask = torch.arange(12) < torch.tensor(LENGTHS).unsqueeze(1)
    rubbish = torch.tensor([math.nan, math.inf, -math.inf, 1e30], dtype=torch.float64).repeat(3)
    return torch.where(mask, h, rubbish), mask


def valid() -> Tensor:
    h, mask = entropies()
    return h[mask].clone().requires_grad_()


def gradient(loss: Tensor, h: Tensor) -> Tensor:
    return torch.autograd.grad(loss, h)[0]


def test_linear_is_the_definition() -> None:
    h = valid()
    loss = linear(h, 0.3)
    assert loss.tolist() == pytest.approx(reference.linear(h.tolist(), 0.3), abs=1e-15)
    assert gradient(loss.sum(), h).tolist() == [-0.3] * h.numel()
    assert gradcheck(lambda x: linear(x, 0.3), (h,))


@pytest.mark.parametrize("target", [0.2, 1.9])
def test_anchored_has_value_and_gradient_of_the_square(target: float) -> None:
    h = valid()
    loss = anchored(h, 0.3, aggregate=h.mean(), target=torch.tensor(target, dtype=torch.float64)).mean()
    assert loss.item() == pytest.approx(reference.anchored(h.tolist(), 0.3, target), abs=1e-14)
    expected = reference.anchored_gradient(h.tolist(), 0.3, target)
    assert gradient(loss, h).tolist() == pytest.approx(expected, abs=1e-14)


def test_anchored_gradcheck() -> None:
    """Two ways: with the aggregate held fixed, and the gradient of the square itself by finite differences."""
    h = valid()
    assert gradcheck(lambda x: anchored(x, 0.3, aggregate=0.7, target=0.2), (h,))
    ours = gradient(anchored(h, 0.3, aggregate=h.mean(), target=0.2).mean(), h)
    for i in range(h.numel()):
        shift = torch.zeros_like(h).index_fill(0, torch.tensor(i), 1e-5)
        up, down = (reference.anchored((h + sign * shift).tolist(), 0.3, 0.2) for sign in (1, -1))
        assert ours[i].item() == pytest.approx((up - down) / 2e-5, abs=1e-9)


def test_anchored_is_the_same_however_the_mini_batch_is_cut() -> None:
    """Unlike the square of each micro-batch's own mean."""
    h = valid()
    whole = gradient(anchored(h, 0.3, aggregate=h.mean(), target=0.2).mean(), h)
    parts = [anchored(part, 0.3, aggregate=h.mean(), target=0.2).sum() / h.numel() for part in h.split(4)]
    torch.testing.assert_close(gradient(torch.stack(parts).sum(), h), whole, atol=1e-14, rtol=0)
    squares = [0.3 * (part.mean() - 0.2) ** 2 * part.numel() / h.numel() for part in h.split(4)]
    assert (gradient(torch.stack(squares).sum(), h) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("target", [0.2, 1.9])
def test_anchored_pulls_from_both_sides(target: float) -> None:
    h = valid()
    step = gradient(anchored(h, 0.3, aggregate=h.mean(), target=target).mean(), h)
    assert abs((h - step).mean().item() - target) < abs(h.mean().item() - target)


def test_anchored_takes_aggregate_and_target_as_constants() -> None:
    """Over the whole mini-batch the gradient by the aggregate cancels, over a part of it it would not."""
    h = valid()
    aggregate, target = h.mean(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    part = anchored(h, 0.3, aggregate=aggregate, target=target)[:4].sum()
    assert torch.autograd.grad(part, target, allow_unused=True, retain_graph=True) == (None,)
    expected = gradient(anchored(h, 0.3, aggregate=aggregate.item(), target=0.2)[:4].sum(), h)
    torch.testing.assert_close(gradient(part, h), expected)


def test_anchored_at_the_target_is_at_rest() -> None:
    h = valid()
    loss = anchored(h, 0.3, aggregate=h.mean().item(), target=h.mean().item())
    assert loss.tolist() == gradient(loss.sum(), h).tolist() == [0.0] * h.numel()


@pytest.mark.parametrize("beta", [0.4, 1.7])
def test_smoothed_is_the_definition(beta: float) -> None:
    h = valid()
    assert ((h < 0.4).sum() >= 2) & ((h > 1.2).sum() >= 2) & (((h > 0.4) & (h < 1.2)).sum() >= 2)
    loss = smoothed(h, 0.3, mean=0.8, low=0.5, high=1.5, beta=beta)
    arguments = (h.tolist(), 0.3, 0.8, 0.5, 1.5, beta)
    assert loss.tolist() == pytest.approx(reference.smoothed(*arguments), abs=1e-14)
    assert gradient(loss.sum(), h).tolist() == pytest.approx(reference.smoothed_gradient(*arguments), abs=1e-14)
    assert gradcheck(lambda x: smoothed(x, 0.3, mean=0.8, low=0.5, high=1.5, beta=beta), (h,))


def test_smoothed_edges_belong_to_the_range() -> None:
    h = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    loss = smoothed(h, 0.3, mean=1.0, low=0.5, high=2.0, beta=1.7)
    assert gradient(loss.sum(), h).tolist() == [-0.3, -0.3]


def test_smoothed_mean_is_a_constant() -> None:
    h = valid()
    of_tensor = gradient(smoothed(h, 0.3, **EPO | {"mean": h.mean()}).sum(), h)
    assert torch.equal(of_tensor, gradient(smoothed(h, 0.3, **EPO | {"mean": h.mean().item()}).sum(), h))


def test_smoothed_without_history_is_the_linear_bonus() -> None:
    h = valid()
    assert torch.equal(smoothed(h, 0.3, **EPO | {"mean": None}), linear(h, 0.3))


def test_smoothed_turns_the_bonus_round_above_the_range_only_if_beta_exceeds_one() -> None:
    """A descent step raises entropies inside, and lowers those above for beta > 1."""
    h = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    for beta, sign in ((0.9, 1), (1.1, -1)):
        step = -gradient(smoothed(h, 0.3, mean=1.0, low=0.0, high=2.0, beta=beta).sum(), h)
        assert step.sign().tolist() == [1, sign]


def test_smoothed_refuses_a_range_that_is_upside_down() -> None:
    with pytest.raises(ValueError, match=r"low=2.0 and high=1.5"):
        smoothed(valid(), 0.3, **EPO | {"low": 2.0})


@pytest.mark.parametrize("total", [0, 1, 2, 7, 100])
def test_smoothing_weight_is_the_definition(total: int) -> None:
    weights = [smoothing_weight(k, total, gamma=3.0) for k in range(total + 1)]
    assert weights == pytest.approx([reference.smoothing_weight(k, total, 3.0) for k in range(total + 1)], abs=1e-15)
    assert weights[0] == 2.0
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] > 1.0


@pytest.mark.parametrize("quantile", [0.0, 0.31, 0.5, 0.8, 0.99])
def test_peaks_are_the_definition(quantile: float) -> None:
    h, mask = entropies()
    peaks = peak_mask(h.clone().requires_grad_(), mask, quantile)
    assert peaks.tolist() == reference.peak_mask(h.tolist(), mask.tolist(), quantile)
    for row, row_mask, row_peaks in zip(h, mask, peaks, strict=True):
        if row_mask.any():
            threshold = torch.quantile(row[row_mask], quantile)
            assert torch.equal(row_peaks, row_mask & (row > threshold))


@pytest.mark.parametrize("quantile", [0.0, 0.31, 0.5, 0.8, 0.99])
def test_number_of_peaks_of_distinct_entropies(quantile: float) -> None:
    """All above the position in the order: the share 1 - quantile, and the same for any increasing function."""
    h, mask = entropies()
    peaks = peak_mask(h, mask, quantile)
    assert peaks.sum(-1).tolist() == [max(0, n - 1 - math.floor(quantile * (n - 1))) for n in LENGTHS]
    assert torch.equal(peak_mask(h.exp(), mask, quantile), peaks)


@pytest.mark.parametrize("percent", range(100))
def test_the_token_at_the_quantile_itself_is_not_a_peak(percent: int) -> None:
    """Of the entropies 0, 1, ..., 100 the quantile of p % is p; .29 of 100 is less than 29 in fp64."""
    h = torch.arange(101.0).unsqueeze(0)
    assert peak_mask(h, torch.ones_like(h), percent / 100).sum() == 100 - percent


def test_peaks_do_not_depend_on_other_responses() -> None:
    h, mask = entropies()
    rows = [peak_mask(h[i : i + 1], mask[i : i + 1], 0.8) for i in range(len(LENGTHS))]
    assert torch.equal(torch.cat(rows), peak_mask(h, mask, 0.8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_constant_entropies_have_no_peak(dtype: torch.dtype) -> None:
    _, mask = entropies()
    for value in (0.0, 0.1, 1.7):
        assert not peak_mask(torch.full(mask.shape, value, dtype=dtype), mask, 0.8).any()


def test_near_entropies_of_low_precision_are_told_apart() -> None:
    """The quantile lies between two neighbours of fp32; rounded to fp32 it would be the upper one."""
    h = torch.tensor([[1.0, 1.0, 1.0, 1.0 + 2**-23]])
    assert peak_mask(h, torch.ones(1, 4, dtype=torch.bool), 0.9).tolist() == [[False, False, False, True]]


def test_nan_is_not_a_peak_but_reaches_the_loss() -> None:
    h = torch.tensor([[math.nan, 1.0, 2.0, 3.0, math.nan]])
    mask = torch.tensor([[True] * 4 + [False]])
    peaks = peak_mask(h, mask, 0.4)
    assert peaks.tolist() == [[False, False, True, True, False]]
    assert weighted(h, mask, peaks, torch.zeros(1)).isnan().tolist() == [[True, False, False, False, False]]


@pytest.mark.parametrize("quantile", [-0.1, 1.0, math.nan])
def test_quantile_outside_its_range_is_refused(quantile: float) -> None:
    with pytest.raises(ValueError, match=r"quantile=.* outside \[0, 1\)"):
        peak_mask(*entropies(), quantile)


def test_difficulty_is_the_definition() -> None:
    accuracy = torch.arange(11, dtype=torch.float64) / 10
    assert linear_difficulty(accuracy).tolist() == reference.linear_difficulty(accuracy.tolist())
    expected = reference.threshold_difficulty(accuracy.tolist(), 0.3)
    for dtype in (torch.float64, torch.float32):
        weight = threshold_difficulty(torch.arange(11, dtype=dtype) / 10, threshold=0.3)
        assert weight.dtype is dtype
        assert weight.tolist() == expected == [1.0] * 4 + [0.0] * 7
    accuracy.requires_grad_()
    assert not linear_difficulty(accuracy).requires_grad
    assert not threshold_difficulty(accuracy, threshold=0.3).requires_grad


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_threshold_outside_its_range_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold=.* outside \[0, 1\]"):
        threshold_difficulty(torch.zeros(2), threshold=threshold)


def test_weighted_is_the_definition() -> None:
    h, mask = entropies()
    h.requires_grad_()
    peaks, weight = peak_mask(h, mask, 0.5), torch.linspace(0.2, 1.0, len(LENGTHS), dtype=torch.float64)
    everywhere, ones = torch.ones_like(mask), torch.ones_like(weight)
    for given_peaks in (peaks, None):
        for given_weight in (weight, None):
            term = weighted(h, mask, given_peaks, given_weight)
            used = (everywhere if given_peaks is None else peaks).tolist()
            by = (ones if given_weight is None else weight).tolist()
            assert term.tolist() == reference.weighted(h.tolist(), mask.tolist(), used, by)
            slope = gradient(term.sum(), h)
            assert slope.tolist() == reference.weighted(torch.ones_like(h).tolist(), mask.tolist(), used, by)


def test_weight_has_no_gradient() -> None:
    h, mask = entropies()
    weight = torch.ones(len(LENGTHS), dtype=torch.float64, requires_grad=True)
    assert not weighted(h, mask, None, weight).requires_grad


@pytest.mark.parametrize("form", ["linear", "anchored", "smoothed"])
def test_rubbish_outside_the_response_leaves_no_trace(form: str) -> None:
    """Value and gradient are those of the sliced tokens, and 0 outside: through the form, and through the weight."""
    h, mask = entropies()
    forms = {
        "linear": lambda x: linear(x, 0.3),
        "anchored": lambda x: anchored(x, 0.3, aggregate=0.9, target=0.2),
        "smoothed": lambda x: smoothed(x, 0.3, **EPO),
    }
    h.requires_grad_()
    term = weighted(forms[form](h), mask, peak_mask(h, mask, 0.0), torch.ones(len(LENGTHS)))
    assert term[~mask].tolist() == [0.0] * int((~mask).sum())
    slope = gradient(term.sum(), h)
    assert slope[~mask].tolist() == [0.0] * int((~mask).sum())
    sliced = h.detach()[mask].requires_grad_()
    plain = forms[form](sliced) * peak_mask(h, mask, 0.0)[mask]
    assert torch.equal(term[mask], plain)
    assert torch.equal(slope[mask], gradient(plain.sum(), sliced))


def test_weighted_gradcheck() -> None:
    h = valid().detach().reshape(2, -1).requires_grad_()
    mask = torch.rand(h.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    peaks, weight = peak_mask(h, mask, 0.5), torch.tensor([0.3, 0.9], dtype=torch.float64)
    assert gradcheck(lambda x: weighted(x, mask, peaks, weight), (h,))
