"""The entropies against float64 brute force, their gradients, ties, -inf, NaN and the theorems that they must obey."""

import math

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
    top_k_and_rest_entropy,
    tre_entropy,
)
from tests import reference

CLAMPS = (0.0, 0.25, 0.33, 0.9)


def rows(kind: str, vocabulary: int = 37) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(5, vocabulary, dtype=torch.float64, generator=generator)
    if kind == "distinct":
        return z * 3
    if kind == "peaked":
        z[:, 4] += 30
        return z
    if kind == "ties":
        return torch.randint(-2, 3, z.shape, generator=generator).double()
    if kind == "bf16 ties":
        return z.bfloat16().double()
    if kind == "all equal":
        return torch.full_like(z, 1.7)
    if kind == "few -inf":
        z[:, ::9] = -torch.inf
        return z
    if kind == "mostly -inf":
        z[:, 3:] = -torch.inf
        return z
    if kind == "large":
        return z * 1e4
    raise AssertionError(kind)


KINDS = ("distinct", "peaked", "ties", "bf16 ties", "all equal", "few -inf", "mostly -inf", "large")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clamp_p", CLAMPS)
def test_value_is_the_definition(kind: str, clamp_p: float) -> None:
    z = rows(kind)
    torch.testing.assert_close(clamped_entropy(z, clamp_p), reference.clamped_entropy(z, clamp_p), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clamp_p", CLAMPS)
def test_gradient_is_the_definition(kind: str, clamp_p: float) -> None:
    z = rows(kind).requires_grad_()
    clamped_entropy(z, clamp_p).sum().backward()
    expected = torch.tensor([reference.clamped_gradient_row(row, clamp_p) for row in z.tolist()], dtype=torch.float64)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_full_entropy_is_the_definition(kind: str) -> None:
    z = rows(kind)
    expected = torch.tensor([reference.full_entropy_row(row) for row in z.tolist()], dtype=torch.float64)
    torch.testing.assert_close(full_entropy(z), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("clamp_p", CLAMPS)
def test_gradcheck_on_distinct_rows(clamp_p: float) -> None:
    z = rows("distinct", 11).requires_grad_()
    assert gradcheck(lambda x: clamped_entropy(x, clamp_p), (z,))
    assert gradcheck(full_entropy, (z,))


def test_gradcheck_on_all_equal_rows() -> None:
    """Nothing removed: finite differences agree. With ties at the boundary the gradient is the symmetric one: zero."""
    z = rows("all equal", 11).requires_grad_()
    assert gradcheck(full_entropy, (z,))
    assert gradcheck(lambda x: clamped_entropy(x, 0.0), (z,))
    clamped_entropy(z, 0.33).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().max() < 1e-12


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 97, 1009])
@pytest.mark.parametrize("clamp_p", CLAMPS)
def test_equal_logits_give_the_log_of_the_kept_count(vocabulary: int, clamp_p: float) -> None:
    z = torch.zeros(2, vocabulary, dtype=torch.float64)
    expected = math.log(vocabulary - int(vocabulary * clamp_p))
    assert clamped_entropy(z, clamp_p).tolist() == pytest.approx([expected] * 2, abs=1e-12)


@pytest.mark.parametrize("clamp_p", CLAMPS)
def test_kept_count_is_exact_and_ties_share_alike(clamp_p: float) -> None:
    z = rows("ties")
    keep = keep_share(z, clamp_p)
    assert torch.equal(keep.sum(-1).round(decimals=9), torch.full((5,), 37.0 - int(37 * clamp_p), dtype=torch.float64))
    for row, share in zip(z, keep, strict=True):
        for value in row.unique():
            assert share[row == value].unique().numel() == 1


@pytest.mark.parametrize("clamp_p", CLAMPS)
def test_order_of_the_vocabulary_does_not_matter(clamp_p: float) -> None:
    z = rows("ties")
    order = torch.randperm(z.shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(clamped_entropy(z[:, order], clamp_p), clamped_entropy(z, clamp_p), atol=1e-12, rtol=0)


def test_masked_equals_sliced() -> None:
    """Removing a token by clamping is removing it from the vocabulary."""
    z = rows("distinct")
    kept = z.sort(-1).values[:, int(37 * 0.33) :]
    torch.testing.assert_close(clamped_entropy(z, 0.33), full_entropy(kept))


def test_clamp_of_zero_is_the_full_entropy() -> None:
    z = rows("distinct")
    assert torch.equal(clamped_entropy(z, 0.0), full_entropy(z))


def test_entropy_lies_between_zero_and_the_log_of_the_kept_count() -> None:
    for kind in KINDS:
        value = clamped_entropy(rows(kind), 0.25)
        assert (value >= 0).all()
        assert (value <= math.log(37 - 9) + 1e-12).all()


def test_shift_of_all_logits_changes_nothing() -> None:
    z = rows("distinct")
    torch.testing.assert_close(clamped_entropy(z + 1e3, 0.33), clamped_entropy(z, 0.33), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_finite_logits_of_low_precision_never_give_nan(kind: str, dtype: torch.dtype) -> None:
    z = rows(kind).to(dtype).clamp(max=torch.finfo(dtype).max).requires_grad_()
    value = clamped_entropy(z, 0.33)
    value.sum().backward()
    assert value.dtype is torch.float32
    assert value.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    expected = reference.clamped_entropy(z.detach(), 0.33)
    torch.testing.assert_close(value.detach().double(), expected, atol=1e-5, rtol=1e-5)


def test_extreme_finite_logits() -> None:
    z = torch.tensor([[3e38, -3e38, 0.0, 3e38]], requires_grad=True)
    value = clamped_entropy(z, 0.25)
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(2))
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_nan_stays_nan() -> None:
    z = rows("distinct")
    z[2, 5] = math.nan
    for value in (full_entropy(z), clamped_entropy(z, 0.33)):
        assert value.isnan().tolist() == [False, False, True, False, False]


def test_removed_mass_is_the_probability_of_what_goes() -> None:
    z = rows("distinct")
    expected = z.softmax(-1).sort(-1).values[:, : int(37 * 0.33)].sum(-1)
    torch.testing.assert_close(removed_mass(z, keep_share(z, 0.33)), expected)
    assert removed_mass(z, keep_share(z, 0.0)).tolist() == [0.0] * 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_p", [0.3, 0.8, 0.999])
def test_nucleus_entropy_is_the_definition(kind: str, top_p: float) -> None:
    z = rows(kind)
    expected = [reference.nucleus_entropy_row(row, top_p, 10_000) for row in z.tolist()]
    assert nucleus_entropy(z, top_p).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_p", [0.3, 0.8, 0.99])
def test_tre_entropy_is_the_definition(kind: str, top_p: float) -> None:
    z = rows(kind)
    expected = [reference.tre_entropy_row(row, top_p) for row in z.tolist()]
    assert tre_entropy(z, top_p).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("top_p", [0.3, 0.99])
def test_tre_entropy_has_its_gradient(top_p: float) -> None:
    z = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tre_entropy(x, top_p), z)


def test_tre_entropy_at_its_ends() -> None:
    z = torch.zeros(4, 37, dtype=torch.float64)
    z[1, 5] = 50.0
    z[2, 3:5] = 50.0
    z[3, 7] = math.nan
    z.requires_grad_()
    entropy = tre_entropy(z, 0.9)
    # All tokens equal, one alone, two that share everything.
    assert entropy[:3].tolist() == pytest.approx([math.log(37), 0.0, math.log(37)])
    assert entropy[3].isnan()
    (gradient,) = torch.autograd.grad(entropy[:3].sum(), z)
    assert gradient[:3].isfinite().all()
    assert not gradient[1].any()
    with pytest.raises(ValueError, match=r"top_p=1\.0 is outside"):
        tre_entropy(z, 1.0)


@pytest.mark.parametrize("top_p", [0.0, 1.0, math.nan])
def test_top_p_outside_its_range_is_refused(top_p: float) -> None:
    with pytest.raises(ValueError, match=r"top_p=.* outside \(0, 1\)"):
        nucleus_entropy(torch.zeros(1, 4), top_p)


def test_nan_stays_nan_in_the_nucleus() -> None:
    z = rows("distinct")
    z[2, 5] = math.nan
    assert nucleus_share(z, 0.8)[2].tolist() == [0.0] * 37
    assert nucleus_entropy(z, 0.8).isnan().tolist() == [False, False, True, False, False]


def test_leading_dimensions_are_kept() -> None:
    z = torch.randn(2, 3, 11)
    assert clamped_entropy(z, 0.33).shape == full_entropy(z).shape == (2, 3)
    assert clamped_entropy(z[:0], 0.33).shape == (0, 3)


@pytest.mark.parametrize("clamp_p", [-0.1, 1.0, 1.5, math.nan])
def test_clamp_outside_its_range_is_refused(clamp_p: float) -> None:
    with pytest.raises(ValueError, match=r"clamp_p=.* outside \[0, 1\)"):
        clamped_entropy(torch.zeros(1, 4), clamp_p)


@pytest.mark.slow
def test_core_imports_neither_verl_nor_ray_nor_hydra() -> None:
    import subprocess
    import sys

    code = (
        "import sys, pkgutil, importlib, aent_verl.core as core\n"
        "for m in pkgutil.iter_modules(core.__path__): importlib.import_module(f'aent_verl.core.{m.name}')\n"
        "print([m for m in ('verl', 'ray', 'vllm', 'hydra', 'omegaconf', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 10, 37, 100])
def test_the_entropy_of_the_likeliest_and_all_others_as_one(kind: str, k: int) -> None:
    z = rows(kind).requires_grad_()
    expected = []
    for row in z.tolist():
        ordered = sorted(reference.softmax_of(row), reverse=True)
        expected.append(reference.entropy_of([*ordered[:k], math.fsum(ordered[k:])]))
    found = top_k_and_rest_entropy(z, k)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_entropy_of_the_likeliest_and_all_others_has_its_gradient(k: int) -> None:
    z = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: top_k_and_rest_entropy(x, k), z)
    with pytest.raises(ValueError, match="k=0 is not allowed: must be at least 1"):
        top_k_and_rest_entropy(z, 0)
