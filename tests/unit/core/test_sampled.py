"""The entropy of what a truncated rollout samples from, against its definition and vLLM's own sampler."""

import math

import pytest
import torch

from aent_verl.core.sampled import Truncation
from tests import reference
from tests.unit.plugin.test_engine import both_layouts, outputs, packed

CASES = [(-1, 0.9), (-1, 0.3), (5, 1.0), (1, 1.0), (7, 0.8), (20, 0.95), (0, 0.999), (1000, 0.5)]


def rows(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (2.0 * torch.randn(40, 61, generator=torch.Generator().manual_seed(3))).to(dtype)


@pytest.mark.parametrize(("top_k", "top_p"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_agrees_with_the_definition(top_k: int, top_p: float, dtype: torch.dtype) -> None:
    logits = rows(dtype)
    found = Truncation(top_k, top_p).entropy(logits, temperature=0.7, chunk_size=7)
    expected = [reference.sampled_entropy_row([z / 0.7 for z in row], top_k, top_p) for row in logits.double().tolist()]
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("top_k", "top_p"), CASES)
def test_agrees_with_vllms_sampler(top_k: int, top_p: float) -> None:
    sampler = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
    logits = rows()
    k = torch.full((len(logits),), min(top_k, logits.shape[1])) if top_k > 0 else None
    p = torch.full((len(logits),), top_p) if top_p < 1 else None
    left = sampler.apply_top_k_top_p_pytorch(logits.clone(), k, p)
    expected = torch.distributions.Categorical(logits=left.double()).probs
    expected = torch.special.entr(expected).sum(-1)
    torch.testing.assert_close(Truncation(top_k, top_p).entropy(logits).double(), expected, rtol=0, atol=1e-5)


def test_the_token_that_crosses_stays_in() -> None:
    """SIREN's nucleus leaves it out: with half the mass on one token nothing would be left here."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).double().log()
    assert Truncation(top_p=0.4).entropy(logits).item() == 0.0  # the first token alone
    assert Truncation(top_p=0.6).entropy(logits).item() == pytest.approx(reference.entropy_of([5 / 8, 3 / 8]))


def test_ties_at_the_boundary_of_top_k_all_stay() -> None:
    assert Truncation(top_k=2).entropy(torch.tensor([[2.0, 1.0, 1.0, 0.0]])).item() == pytest.approx(
        reference.full_entropy_row([2.0, 1.0, 1.0])
    )
    assert Truncation(top_k=2).entropy(torch.zeros(1, 8)).item() == pytest.approx(math.log(8))


def test_special_values() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf, 0.0], [0.0, math.nan, 1.0, 2.0]])
    found = Truncation(top_p=0.95).entropy(logits)
    assert found[0].item() == pytest.approx(reference.sampled_entropy_row([1.0, 2.0, 0.0], -1, 0.95))
    assert found[1].isnan()


def test_the_logits_are_left_as_they_are() -> None:
    logits = rows().requires_grad_()
    before = logits.detach().clone()
    assert not Truncation(5, 0.9).entropy(logits).requires_grad
    assert torch.equal(logits.detach(), before)
    assert logits._version == 0


@pytest.mark.parametrize("setting", [{"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -2}])
def test_out_of_range(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Truncation(**setting)  # type: ignore[arg-type]


@both_layouts
def test_the_engine_measures_it_alongside_the_entropy_of_the_method(padded: bool) -> None:
    logits, _ = packed()
    t = (0.5, 1.0, 2.0)
    found = outputs(logits, padded=padded, temperature=t, truncation=Truncation(9, 0.8))
    per_token = torch.tensor(t).repeat_interleave(torch.tensor([5, 3, 7]))
    expected = Truncation(9, 0.8).entropy(logits, temperature=per_token)
    torch.testing.assert_close(found["aent_entropy_sampled"], expected)
    plain = outputs(logits, padded=padded, temperature=t)
    assert set(found) - set(plain) == {"aent_entropy_sampled"}
    assert all(torch.equal(found[key], plain[key]) for key in plain)


def test_neither_in_the_pre_pass_nor_outside_training() -> None:
    logits, _ = packed()
    assert "aent_entropy_sampled" not in outputs(logits, mode="eval", truncation=Truncation(9, 0.8))
    with torch.no_grad():
        assert "aent_entropy_sampled" not in outputs(logits, truncation=Truncation(9, 0.8))


@pytest.mark.parametrize(
    ("truncation", "active"),
    [(Truncation(), False), (Truncation(top_k=5), True), (Truncation(top_p=0.9), True), (Truncation(5, 0.9), True)],
)
def test_either_limit_alone_truncates(truncation: Truncation, active: bool) -> None:
    assert truncation.active is active
