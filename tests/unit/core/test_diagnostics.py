"""Histograms that add up, quantiles within a bin of torch's, covariance from sums, and the fitted entropy change."""

import dataclasses
import json
import math
import warnings

import pytest
import torch
from torch import Tensor

from aent_verl.core.diagnostics import (
    BINS,
    TOP,
    EntropyChange,
    covariance_from_sums,
    entropy_histogram,
    histogram_quantiles,
)

SHARES = [0.0, 0.05, 0.25, 0.5, 0.8, 0.95, 0.999, 1.0]


def edge(i: int) -> float:
    return 12.5 * i**3 / 64**3


def entropies(kind: str, n: int = 5000) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    uniform = torch.rand(n, dtype=torch.float64, generator=generator)
    return {
        # Most tokens near zero, a tail up to the top: what a language model shows.
        "skewed": 12.0 * uniform**6,
        "uniform": 12.4 * uniform,
        "narrow": 1.0 + 1e-3 * uniform,
        "two clusters": torch.where(uniform < 0.5, 1e-4 * uniform, 3.0 + uniform),
        "all equal": torch.full_like(uniform, 0.7),
        "few": 5.0 * uniform[:3],
        "one": uniform[:1],
    }[kind]


KINDS = ("skewed", "uniform", "narrow", "two clusters", "all equal", "few", "one")


def count(entropy: Tensor) -> Tensor:
    return entropy_histogram(entropy, torch.ones_like(entropy, dtype=torch.bool))


def test_the_bins_are_those_of_the_docstring() -> None:
    assert (BINS, TOP) == (64, 12.5)
    # An entropy on an edge belongs to the bin above it; one just below it to the bin below.
    edges = torch.tensor([12.5 * (i / 64) ** 3 for i in range(1, 64)], dtype=torch.float64)
    assert count(edges).tolist() == [0.0] + [1.0] * 63
    assert count(edges * (1 - 1e-12)).tolist() == [1.0] * 63 + [0.0]


def test_the_ends_are_open_and_nan_is_counted_nowhere() -> None:
    values = torch.tensor([-1e-6, 0.0, -0.0, math.nan, 12.4, 12.5, 100.0, math.inf])
    counts = count(values)
    assert (counts[0], counts[63], counts.sum()) == (3, 4, 7)
    assert counts.dtype == torch.float64
    assert counts.shape == (BINS,)


def test_only_the_mask_is_counted_whatever_the_layout() -> None:
    values = entropies("skewed", 600).view(20, 30).float()
    mask = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.3
    values[~mask] = math.nan
    expected = count(values[mask])
    assert expected.sum() == mask.sum() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(entropy_histogram(values, mask), expected, rtol=0, atol=0)
        torch.testing.assert_close(entropy_histogram(values.T, mask.T), expected, rtol=0, atol=0)
        padded = torch.stack([values, values], -1)[..., 0]
        torch.testing.assert_close(entropy_histogram(padded[0], mask[0]), count(values[0][mask[0]]), rtol=0, atol=0)
    assert entropy_histogram(values, torch.zeros_like(mask)).tolist() == [0.0] * BINS


def test_low_precision_is_binned_at_its_own_value() -> None:
    values = torch.tensor([0.1, 0.5, 2.0], dtype=torch.bfloat16)
    torch.testing.assert_close(count(values), count(values.double()), rtol=0, atol=0)


def test_no_gradient_is_kept() -> None:
    assert not count(entropies("few").requires_grad_()).requires_grad


@pytest.mark.parametrize("parts", [1, 2, 7, 600])
def test_histograms_add_up_however_the_tokens_are_split(parts: int) -> None:
    values = entropies("skewed", 600)
    mask = torch.rand(600, generator=torch.Generator().manual_seed(1)) < 0.7
    order = torch.randperm(600, generator=torch.Generator().manual_seed(parts))
    chunks = zip(values[order].chunk(parts), mask[order].chunk(parts), strict=True)
    total = torch.stack([entropy_histogram(value, kept) for value, kept in chunks]).sum(0)
    assert total.tolist() == entropy_histogram(values, mask).tolist()
    assert total.sum() == mask.sum()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(4, dtype=torch.bool), r"shape \[4\] .* must be \[2, 3\]"),
        (torch.ones(1, 3, dtype=torch.bool), r"shape \[1, 3\] .* must be \[2, 3\]"),
        (torch.ones(2, 3), "type torch.float32 .* torch.bool"),
        (torch.ones(2, 3, dtype=torch.int64), "type torch.int64 .* torch.bool"),
    ],
    ids=str,
)
def test_a_mask_that_does_not_fit_is_refused(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropy_histogram(torch.zeros(2, 3), mask)


@pytest.mark.parametrize("kind", KINDS)
def test_quantiles_are_within_a_bin_of_torch(kind: str) -> None:
    values = entropies(kind)
    ours = histogram_quantiles(count(values).tolist(), SHARES)
    lower, higher = (
        torch.quantile(values, torch.tensor(SHARES, dtype=torch.float64), interpolation=which).tolist()
        for which in ("lower", "higher")
    )
    for quantile, below, above in zip(ours, lower, higher, strict=True):
        bin_below, bin_above = (max(i for i in range(BINS) if edge(i) <= value) for value in (below, above))
        assert edge(bin_below) - 1e-12 <= quantile <= edge(bin_above + 1) + 1e-12
    assert ours == sorted(ours)


@pytest.mark.parametrize("kind", ["skewed", "uniform", "narrow"])
def test_where_tokens_are_dense_quantiles_are_within_one_bin_width_of_torch(kind: str) -> None:
    values = entropies(kind)
    expected = torch.quantile(values, torch.tensor(SHARES, dtype=torch.float64)).tolist()
    for ours, exact in zip(histogram_quantiles(count(values).tolist(), SHARES), expected, strict=True):
        i = max(i for i in range(BINS) if edge(i) <= exact)
        assert abs(ours - exact) <= edge(i + 1) - edge(i)


def test_quantiles_by_hand() -> None:
    counts = [0.0] * BINS
    counts[2], counts[5] = 4.0, 12.0
    low, width = 12.5 * 8 / 262144, 12.5 * (27 - 8) / 262144
    high, other = 12.5 * 125 / 262144, 12.5 * (216 - 125) / 262144
    # 2 of the first bin's 4; all 4; 6 of the other's 12; the ends.
    expected = [low + width / 2, low + width, high + other / 2, low, high + other]
    assert histogram_quantiles(counts, [0.125, 0.25, 0.625, 0.0, 1.0]) == pytest.approx(expected, rel=1e-14)
    scaled = [count / 3 for count in counts]
    assert histogram_quantiles(scaled, [0.125, 0.625]) == pytest.approx([expected[0], expected[2]], rel=1e-12)


@pytest.mark.parametrize("mini_batches", [1, 3, 7, 10])
def test_rounding_moves_no_quantile_into_the_next_bin(mini_batches: int) -> None:
    """Of 100 tokens ``low`` are at 0 nats, the others at 5: so is the quantile of that share, of averages too."""
    for low in range(1, 100):
        tokens = torch.tensor([0.0] * low + [5.0] * (100 - low))
        counts = [count / mini_batches for count in (10 * count(tokens)).tolist()]
        at, above = histogram_quantiles(counts, [low / 100, low / 100 + 1e-9])
        assert at == pytest.approx(edge(1), rel=1e-9), low
        assert above > 4, low


def test_the_quantile_of_the_one_token_at_0_nats() -> None:
    """1 token at 0 nats and 9 at 5, counts averaged over three mini-batches as verl does."""
    counts = [count / 3 for count in count(torch.tensor([0.0] + [5.0] * 9)).tolist()]
    assert 0 <= histogram_quantiles(counts, [0.1])[0] < 5e-5


def test_quantiles_above_the_top_are_the_top() -> None:
    assert histogram_quantiles(count(torch.tensor([50.0, 60.0])).tolist(), [1.0]) == [12.5]


def test_an_empty_histogram_has_no_quantiles() -> None:
    assert all(math.isnan(q) for q in histogram_quantiles([0.0] * BINS, SHARES))
    assert len(histogram_quantiles([0.0] * BINS, SHARES)) == len(SHARES)
    assert all(math.isnan(q) for q in histogram_quantiles([math.nan] + [1.0] * (BINS - 1), [0.5]))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_outside_0_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"share=.* in \[0, 1\]"):
        histogram_quantiles([1.0] * BINS, [0.5, share])


def test_a_wrong_number_of_bins_is_refused() -> None:
    with pytest.raises(ValueError, match=r"counts of 63 bins .* must be 64"):
        histogram_quantiles([1.0] * 63, [0.5])


def test_covariance_by_hand() -> None:
    # a = 1, 3, -1 and l = -2, -1, -6: means 1 and -3, products of deviations 0, 4, 6.
    sums = {"n": 3, "sum_a": 3.0, "sum_l": -9.0, "sum_al": -2.0 - 3.0 + 6.0}
    assert covariance_from_sums(**sums) == pytest.approx(10 / 3, rel=1e-15)
    doubled = {name: 2 * value for name, value in sums.items()}
    assert covariance_from_sums(**doubled) == pytest.approx(10 / 3, rel=1e-15)


def test_covariance_is_torch_s() -> None:
    a, log_p = torch.randn(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = covariance_from_sums(n=1000, sum_a=a.sum().item(), sum_l=log_p.sum().item(), sum_al=(a @ log_p).item())
    expected = torch.cov(torch.stack([a, log_p]), correction=0)[0, 1].item()
    assert ours == pytest.approx(expected, rel=1e-12)
    # Nothing of it depends on where the advantages are centred.
    b = a + 5
    moved = covariance_from_sums(n=1000, sum_a=b.sum().item(), sum_l=log_p.sum().item(), sum_al=(b @ log_p).item())
    assert moved == pytest.approx(expected, rel=1e-10)


def test_covariance_without_tokens_is_nan_and_of_one_token_is_0() -> None:
    assert covariance_from_sums(n=1, sum_a=2.0, sum_l=-3.0, sum_al=-6.0) == 0
    assert math.isnan(covariance_from_sums(n=0, sum_a=0.0, sum_l=0.0, sum_al=0.0))


Step = tuple[float | None, float | None]


def changes(steps: list[tuple[float, float]], state: EntropyChange | None = None) -> tuple[EntropyChange, list[Step]]:
    state, out = state or EntropyChange(), []
    for entropy, covariance in steps:
        state, measured, estimate = state.update(entropy=entropy, covariance=covariance)
        out.append((measured, estimate))
    return state, out


def test_entropy_change_by_hand() -> None:
    state, seen = changes([(2.0, 0.5), (1.75, 0.25), (1.5, 1.0), (1.25, 0.0)])
    # Pairs (x, y): (.5, -.25), (.25, -.25), (1, -.25). After the first eta = .5; after the second
    # eta = (.125 + .0625) / (.25 + .0625) = .6.
    assert seen[:2] == [(None, None), (-0.25, None)]
    assert seen[2] == (-0.25, pytest.approx(-0.5 * 0.25))
    assert seen[3] == (-0.25, pytest.approx(-0.6 * 1.0))
    assert state == EntropyChange(entropy=1.25, covariance=0.0, sum_xy=-0.4375, sum_xx=1.3125)
    assert state.eta == pytest.approx(1 / 3)


def test_where_the_theory_holds_the_estimate_is_the_change() -> None:
    covariances = [0.3, -0.2, 0.7, 0.05, -0.4]
    entropy, steps = 2.0, []
    for covariance in covariances:
        steps.append((entropy, covariance))
        entropy -= 0.125 * covariance
    state, seen = changes(steps)
    assert state.eta == pytest.approx(0.125)
    for measured, estimate in seen[2:]:
        assert estimate == pytest.approx(measured)


def test_the_fit_is_least_squares_through_the_origin() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, dtype=torch.float64, generator=generator)
    y = -0.3 * x + 0.1 * torch.randn(50, dtype=torch.float64, generator=generator)
    h = torch.cat([torch.tensor([5.0], dtype=torch.float64), 5.0 + y.cumsum(0)])
    state, _ = changes(list(zip(h.tolist(), [*x.tolist(), 0.0], strict=True)))
    expected = torch.linalg.lstsq(x[:, None], y[:, None]).solution.item()
    assert state.eta == pytest.approx(-expected, rel=1e-9)


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_an_entropy_that_is_not_finite_loses_two_pairs_and_no_more(lost: float) -> None:
    state, seen = changes([(2.0, 0.5), (1.75, 0.25), (lost, 1.0), (1.0, 0.5), (0.75, 0.0)])
    # What is expected of step 3 can be said, what happened cannot; eta stays .5 of the first pair until step 5.
    assert seen[2] == (None, pytest.approx(-0.125))
    assert seen[3] == (None, pytest.approx(-0.5))
    assert seen[4] == (-0.25, pytest.approx(-0.25))
    assert state == EntropyChange(entropy=0.75, covariance=0.0, sum_xy=-0.125 - 0.125, sum_xx=0.25 + 0.25)


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_a_covariance_that_is_not_finite_loses_one_pair(lost: float) -> None:
    state, seen = changes([(2.0, 0.5), (1.75, lost), (1.0, 0.5), (0.75, 0.0)])
    assert seen[2] == (-0.75, None)
    assert seen[3] == (-0.25, pytest.approx(-0.25))
    assert state == EntropyChange(entropy=0.75, covariance=0.0, sum_xy=-0.125 - 0.125, sum_xx=0.25 + 0.25)


def test_covariances_of_zero_fit_nothing() -> None:
    state, seen = changes([(2.0, 0.0), (1.0, 0.0), (0.5, 0.0)])
    assert seen == [(None, None), (-1.0, None), (-0.5, None)]
    assert state.eta is None


def test_update_is_pure_and_resumes_exactly() -> None:
    steps = [(2.0, 1 / 3), (math.nan, 0.2), (1.7, 0.1 + 0.2), (1.6, math.nan), (1.5, -0.4), (1.55, 0.7)]
    whole, seen = changes(steps)
    for stop in range(len(steps) + 1):
        saved, before = changes(steps[:stop])
        kept = dataclasses.replace(saved)
        restored = EntropyChange.from_dict(json.loads(json.dumps(saved.to_dict(), allow_nan=False)))
        assert restored == saved
        after, rest = changes(steps[stop:], restored)
        assert (after, before + rest) == (whole, seen)
        assert saved == kept
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole.entropy = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    [{name: value} for name in ("entropy", "covariance") for value in (math.nan, "1", True)]
    + [{name: value} for name in ("sum_xy", "sum_xx") for value in (math.nan, math.inf, None, "1")]
    + [{"extra": 1}],
    ids=str,
)
def test_damaged_state_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="entropy change state"):
        EntropyChange.from_dict(EntropyChange(1.0, 0.5, -0.1, 0.2).to_dict() | change)


@pytest.mark.parametrize("name", ["entropy", "covariance", "sum_xy", "sum_xx"])
def test_state_with_a_missing_field_is_refused(name: str) -> None:
    data = EntropyChange(1.0, 0.5, -0.1, 0.2).to_dict()
    del data[name]
    with pytest.raises(ValueError, match=rf"lacks \['{name}'\]"):
        EntropyChange.from_dict(data)
