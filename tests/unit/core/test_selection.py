"""The boundary of the kept tokens against sorting: exact counts for every key type, with ties, -inf, signed zeros."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from aent_verl.core import selection
from aent_verl.core.entropy import keep_share, nucleus_share
from aent_verl.core.selection import (
    Boundary,
    Everything,
    Nucleus,
    WithoutSmallest,
    boundary_by_counting,
    boundary_by_kthvalue,
)

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KINDS = (
    "random", "all equal", "few values", "values of bf16", "few -inf", "mostly -inf", "large", "peaked", "signed zeros",
    "two clusters",
)  # fmt: skip


def rows(kind: str, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """[3, V] exact in ``dtype``, in the type of the arithmetic."""
    generator = torch.Generator().manual_seed(vocabulary)
    z = torch.randn(3, vocabulary, dtype=torch.float64, generator=generator) * 3
    if kind == "all equal":
        z.fill_(1.7)
    elif kind == "few values":
        z = torch.randint(-2, 3, z.shape, generator=generator).double()
    elif kind == "values of bf16":
        z = z.bfloat16().double()
    elif kind == "few -inf":
        z[:, ::9] = -torch.inf
    elif kind == "mostly -inf":
        z[:, vocabulary // 3 :] = -torch.inf
    elif kind == "large":
        z *= 1e4
    elif kind == "peaked":
        z[:, 0] += 100
    elif kind == "signed zeros":
        z = torch.where(z.abs() < 1, torch.zeros_like(z).copysign(z), z)
    elif kind == "two clusters":
        z = z * 1e-6 + 1000.0 * (z > 0)
    return z.to(dtype).to(torch.promote_types(dtype, torch.float32))


def kept(z: Tensor, boundary: Boundary | None) -> Tensor:
    assert boundary is not None
    threshold, share, tied = boundary
    torch.testing.assert_close(tied, share * (z == threshold).sum(-1, keepdim=True), rtol=1e-6, atol=0)
    return (z > threshold).double() + (z == threshold).double() * share.double()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", [2, 3, 50, 1009, 20011])
def test_exactly_the_smallest_go(kind: str, vocabulary: int, dtype: torch.dtype) -> None:
    z = rows(kind, vocabulary, dtype)
    for removed in sorted({1, vocabulary // 3, int(vocabulary * 0.9), vocabulary - 1} - {0}):
        expected = keep_share(z.double(), (removed + 0.5) / vocabulary)
        assert expected.sum(-1).round().tolist() == [vocabulary - removed] * 3
        found = boundary_by_counting(z, removed, scratch=torch.empty_like(z), dtype=dtype)
        torch.testing.assert_close(kept(z, found), expected, atol=1e-6, rtol=0)
        by_kthvalue = boundary_by_kthvalue(z, removed, scratch=torch.empty_like(z))
        torch.testing.assert_close(kept(z, by_kthvalue), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_number_of_passes_is_bounded(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = 0
    compare = torch.gt

    def counted(*args: Tensor, out: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return compare(*args, out=out)

    monkeypatch.setattr(torch, "gt", counted)
    z = rows(kind, 20011, dtype)
    for removed in (1, 6603, 18009, 20010):
        passes = 0
        boundary_by_counting(z, removed, scratch=torch.empty_like(z), dtype=dtype)
        assert passes <= 2 * dtype.itemsize * 8 + 3
        if kind == "random":
            assert passes <= 25


def test_row_with_nan_comes_to_an_end() -> None:
    z = rows("random", 20011, torch.float32)
    z[1, ::2] = math.nan
    z[2] = math.nan
    for removed in (1, 6603, 20010):
        boundary = boundary_by_counting(z, removed, scratch=torch.empty_like(z), dtype=torch.float32)
        assert boundary.threshold.shape == (3, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_p", [0.1, 0.8, 0.999])
def test_nucleus_is_the_plain_one(kind: str, top_p: float) -> None:
    z = rows(kind, 1009, torch.float64)
    boundary = Nucleus(top_p).boundary(z, None, torch.empty_like(z), z.dtype)
    torch.testing.assert_close(kept(z, boundary), nucleus_share(z, top_p))


def test_nucleus_at_a_temperature() -> None:
    z = rows("random", 1009, torch.float64)
    scale = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    boundary = Nucleus(0.8).boundary(z, scale, torch.empty_like(z), z.dtype)
    torch.testing.assert_close(kept(z, boundary), nucleus_share(z * scale, 0.8))


def test_nucleus_holds_at_most_ten_thousand_tokens() -> None:
    z = torch.zeros(1, 30_000)
    z[0, 0] = 1.0
    boundary = Nucleus(0.99).boundary(z, None, torch.empty_like(z), z.dtype)
    assert kept(z, boundary).sum().item() == pytest.approx(10_000)
    assert nucleus_share(z, 0.99).sum().item() == pytest.approx(10_000)


def test_token_that_reaches_top_p_exactly_is_left_out() -> None:
    """Of four equal tokens, cumulative probabilities 1/4, 1/2, 3/4, 1 without rounding, one stays below a half."""
    z = torch.zeros(1, 4)
    boundary = Nucleus(0.5).boundary(z, None, torch.empty_like(z), z.dtype)
    assert kept(z, boundary).tolist() == nucleus_share(z, 0.5).tolist() == [[0.25] * 4]


@pytest.mark.parametrize("tokens", [7, 10, 40, 100, 1000])
def test_of_equal_tokens_the_one_that_reaches_top_p_is_left_out(tokens: int) -> None:
    """80 of 100 have the probability .8, which is not below .8; a sum of fp32 hundredths is."""
    z = torch.full((1, tokens), 2.5)
    for reaches in range(2, tokens, max(1, tokens // 25)):
        top_p = reaches / tokens
        boundary = Nucleus(top_p).boundary(z, None, torch.empty_like(z), z.dtype)
        assert boundary is not None
        assert boundary.tied.item() == reaches - 1
        assert nucleus_share(z, top_p).sum().item() == pytest.approx(reaches - 1)


def test_nucleus_of_a_peaked_row_in_the_last_digits() -> None:
    """Three tokens share 3e-8: the first of them lies within, the second crosses."""
    z = torch.full((1, 4), math.log(1e-8))
    z[0, 2] = 0.0
    boundary = Nucleus(1 - 1.5e-8).boundary(z, None, torch.empty_like(z), z.dtype)
    assert boundary is not None
    assert boundary.tied.item() == 1
    assert nucleus_share(z, 1 - 1.5e-8).sum().item() == pytest.approx(2)


def test_boundary_that_lies_at_an_end_of_the_sample() -> None:
    """Where the sample has nothing on one side of the boundary, there is one pivot less to begin with."""
    z = rows("random", 20011, torch.float32)
    for few in range(100, 250, 10):
        for removed in (few, 20011 - few):
            found = boundary_by_counting(z, removed, scratch=torch.empty_like(z), dtype=torch.float32)
            assert kept(z, found).sum(-1).tolist() == pytest.approx([20011 - removed] * 3)


def test_long_and_short_rows_take_different_ways_to_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    z = rows("values of bf16", 1009, torch.bfloat16)
    short = WithoutSmallest(0.33).boundary(z, None, torch.empty_like(z), torch.bfloat16)
    monkeypatch.setattr(selection, "_SHORT_ROW", 0)
    long = WithoutSmallest(0.33).boundary(z, None, torch.empty_like(z), torch.bfloat16)
    torch.testing.assert_close(kept(z, long), kept(z, short))


def test_nothing_to_remove_has_no_boundary() -> None:
    z = rows("random", 50, torch.float32)
    assert WithoutSmallest(0.0).boundary(z, None, torch.empty_like(z), z.dtype) is None
    assert WithoutSmallest(0.019).boundary(z, None, torch.empty_like(z), z.dtype) is None
    assert Everything().boundary(z, None, torch.empty_like(z), z.dtype) is None


def test_at_least_one_token_stays() -> None:
    assert WithoutSmallest(0.999999999).removed(50) == 49
    assert WithoutSmallest(0.9).removed(1) == 0


@pytest.mark.parametrize(
    ("functional", "clamp_p", "top_p", "message"),
    [
        ("renyi", None, None, "functional='renyi' is not allowed: must be one of full, clamped, nucleus"),
        ("full", 0.3, None, "clamp_p: functional='full' does not use it"),
        ("full", None, 0.8, "top_p: functional='full' does not use it"),
        ("clamped", None, None, "clamp_p: functional='clamped' needs a number"),
        ("clamped", 0.3, 0.8, "top_p: functional='clamped' does not use it"),
        ("clamped", 1.0, None, r"clamp_p=1.0 is outside \[0, 1\)"),
        ("clamped", -0.1, None, r"clamp_p=-0.1 is outside \[0, 1\)"),
        ("clamped", math.nan, None, r"clamp_p=nan is outside \[0, 1\)"),
        ("nucleus", None, None, "top_p: functional='nucleus' needs a number"),
        ("nucleus", 0.3, 0.8, "clamp_p: functional='nucleus' does not use it"),
        ("nucleus", None, 0.0, r"top_p=0.0 is outside \(0, 1\)"),
        ("nucleus", None, 1.0, r"top_p=1.0 is outside \(0, 1\)"),
        (selection.Everything(), 0.3, None, r"clamp_p: functional=Everything\(\) does not use it"),
    ],
)
def test_wrong_parameters_are_named(functional: Any, clamp_p: float | None, top_p: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selection.selector(functional, clamp_p, top_p)
