"""Advantage shaping against float64 loops, what each form promises, and no gradient anywhere."""

import math

import pytest
import torch
from torch import Tensor

from aent_verl.core.advantages import (
    confidence,
    entropy_advantage,
    positive_reweight,
    progrpo,
    repo_r,
    steer_change,
    steer_weight,
)
from tests import reference

LENGTHS = (7, 1, 0, 12, 5, 10)
SHAPE = (len(LENGTHS), 12)
MASK = torch.arange(12) < torch.tensor(LENGTHS).unsqueeze(1)
RUBBISH = torch.tensor([math.nan, math.inf, -math.inf, 1e30], dtype=torch.float64).repeat(3)


def draw(seed: int) -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p, old log p, A, H; rubbish outside the response, but for A, which is 0 there."""
    log_prob, entropy = -draw(0).abs() * 2, draw(1).abs()
    old = log_prob + 0.3 * draw(2)
    log_prob[0, :2] = torch.tensor([0.0, -30.0])
    old[0, 1] = -1.0
    parts = [torch.where(MASK, x, RUBBISH) for x in (log_prob, old, entropy)]
    return parts[0].requires_grad_(), parts[1], draw(3).requires_grad_() * MASK, parts[2].requires_grad_()


def lists(*tensors: Tensor) -> list[list[float]]:
    return [x[MASK].tolist() for x in tensors]


@pytest.mark.parametrize("mu", [0.0, 0.35, 1.0])
def test_positive_reweight_is_the_definition(mu: float) -> None:
    a = draw(0)
    a[0, 0] = 0.0
    expected = [reference.positive_reweight(row, mu) for row in a.tolist()]
    shaped = positive_reweight(a.requires_grad_(), mu)
    assert shaped.tolist() == expected
    assert not shaped.requires_grad


@pytest.mark.parametrize("zeta", [0.0, 0.05, 0.7, -0.05, -0.7])
def test_repo_r_is_the_definition(zeta: float) -> None:
    a, log_p = draw(0), -3 * draw(1).abs()
    a[0, 0] = 0.0
    expected = [
        [reference.repo_r(x, y, zeta) for x, y in zip(*rows, strict=True)]
        for rows in zip(a.tolist(), log_p.tolist(), strict=True)
    ]
    shaped = repo_r(a.requires_grad_(), log_p.requires_grad_(), zeta)
    torch.testing.assert_close(shaped, torch.tensor(expected, dtype=shaped.dtype), rtol=1e-14, atol=0)
    assert not shaped.requires_grad
    # No advantage changes its sign; a large coefficient turns some into 0.
    assert (shaped * a >= 0).all()
    assert (shaped == 0).sum() == 1 or abs(zeta) > 0.5


def test_repo_r_raises_the_entropy_with_a_positive_coefficient() -> None:
    """Of two tokens with equal advantages the unlikely one gains more; of two with negative ones it loses less."""
    a, log_p = torch.tensor([[1.0, 1.0, -1.0, -1.0]]), torch.tensor([[-0.1, -4.0, -0.1, -4.0]])
    up, down = (repo_r(a, log_p, zeta)[0].tolist() for zeta in (0.1, -0.1))
    assert up[1] > up[0] > 1 > -up[2] > -up[3]
    assert down[1] < down[0] < 1 < -down[2] < -down[3]


def test_positive_reweight_of_one_is_grpo() -> None:
    assert torch.equal(positive_reweight(draw(0), 1.0), draw(0))


@pytest.mark.parametrize("mu", [-0.1, 1.1, math.nan])
def test_mu_outside_its_range_is_refused(mu: float) -> None:
    with pytest.raises(ValueError, match=r"mu=.* outside \[0, 1\]"):
        positive_reweight(draw(0), mu)


def test_steer_change_is_the_definition() -> None:
    log_prob, old, a, h = batch()
    change = steer_change(log_prob, old, a, h, MASK)
    expected = [reference.steer_change(*token) for token in zip(*lists(log_prob, old, a, h), strict=True)]
    assert change[MASK].tolist() == pytest.approx(expected, rel=1e-12)
    assert change[~MASK].tolist() == [0.0] * int((~MASK).sum())
    assert not change.requires_grad


def test_steer_change_is_zero_at_a_certain_token_and_at_zero_covariance() -> None:
    """Where p = 1, and where log p = -H: no first-order change of the entropy."""
    log_prob, h = torch.tensor([[0.0, -1.25]]), torch.tensor([[0.5, 1.25]])
    change = steer_change(log_prob, log_prob, torch.ones(1, 2), h, torch.ones(1, 2))
    assert change.abs().tolist() == [[0.0, 0.0]]
    assert steer_weight(change, largest=1.0).tolist() == [[1.0, 1.0]]


def test_steer_change_keeps_its_precision_near_certainty() -> None:
    """1 - p of log p = -1e-9 in fp32: the plain difference gives 0."""
    log_prob, ones = torch.tensor([[-1e-9]]), torch.ones(1, 1)
    change = steer_change(log_prob, log_prob, ones, 2 * ones, ones.bool())
    assert change.item() == pytest.approx(2e-9, rel=1e-6)


def test_steer_change_has_the_sign_of_the_entropy_change() -> None:
    """Its sign tells whether raising the token's own logit lowers (> 0) or raises the entropy: here it is raised."""
    z = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0], dtype=torch.float64)
    entropy = torch.distributions.Categorical(logits=z).entropy()
    for v in range(5):
        log_prob = z.log_softmax(-1)[v].reshape(1, 1)
        change = steer_change(log_prob, log_prob, torch.ones(1, 1), entropy.reshape(1, 1), torch.ones(1, 1))
        moved = z.clone()
        moved[v] += 1e-4
        difference = torch.distributions.Categorical(logits=moved).entropy() - entropy
        assert math.copysign(1, change.item()) == -math.copysign(1, difference.item())


@pytest.mark.parametrize("what", ["log_prob", "old_log_prob", "advantages", "entropy"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_steer_change_that_is_not_finite_counts_as_0(what: str, value: float) -> None:
    given = dict(zip(("log_prob", "old_log_prob", "advantages", "entropy"), (x.clone() for x in batch()), strict=True))
    whole = steer_change(**given, mask=MASK)
    given[what][0, 0] = value
    change = steer_change(**given, mask=MASK)
    # An infinite log ratio is clamped, and gives a change like any other.
    if not (what == "old_log_prob" and math.isinf(value)):
        assert change[0, 0] == 0
    assert change.isfinite().all()
    assert torch.equal(change.flatten()[1:], whole.flatten()[1:])
    weight = steer_weight(change, largest=change.abs().max())
    assert weight.isfinite().all()
    assert weight[MASK].min() == pytest.approx(0.8)


def test_steer_weight_is_the_definition() -> None:
    change = draw(4)
    for scaled in (change, change * 0.001):
        largest = scaled.abs().max()
        weight = steer_weight(scaled.clone().requires_grad_(), largest=largest, w_min=0.8, floor=0.02)
        expected = reference.steer_weight(scaled.flatten().tolist(), 0.8, 0.02)
        assert weight.flatten().tolist() == pytest.approx(expected, abs=1e-14)
        assert not weight.requires_grad
        assert not steer_weight(scaled, largest=largest.clone().requires_grad_()).requires_grad
        assert torch.equal(weight, steer_weight(scaled, largest=largest.item()))


def test_steer_weight_spans_from_its_minimum_to_one() -> None:
    change = torch.tensor([0.0, 0.25, -0.5, 3.0, -3.0], dtype=torch.float64)
    weight = steer_weight(change, largest=0.5, w_min=0.6)
    assert weight.tolist() == pytest.approx([1.0, math.sqrt(0.6), 0.6, 0.6, 0.6])
    assert weight.min() == 0.6
    assert steer_weight(change * 0.002, largest=0.001, w_min=0.6)[2] > 0.95
    assert steer_weight(change, largest=0.5, w_min=1.0).tolist() == [1.0] * 5


def test_steer_weight_does_not_depend_on_the_micro_batch() -> None:
    change = draw(4)
    parts = [steer_weight(part, largest=change.abs().max()) for part in change.split(2)]
    assert torch.equal(torch.cat(parts), steer_weight(change, largest=change.abs().max()))


@pytest.mark.parametrize("w_min", [0.0, -0.1, 1.1, math.nan])
def test_w_min_outside_its_range_is_refused(w_min: float) -> None:
    with pytest.raises(ValueError, match=r"w_min=.* outside \(0, 1\]"):
        steer_weight(draw(0), largest=1.0, w_min=w_min)


@pytest.mark.parametrize("floor", [0.0, -1.0, math.nan])
def test_floor_outside_its_range_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match=r"floor=.* must be above 0"):
        steer_weight(draw(0), largest=1.0, floor=floor)


@pytest.mark.parametrize("kappa", [0.5, 1.0, 2.0])
def test_entropy_advantage_is_the_definition(kappa: float) -> None:
    _, _, a, h = batch()
    shaped = entropy_advantage(a, h, MASK, scale=0.4, kappa=kappa)
    expected = reference.entropy_advantage(*lists(a, h), 0.4, kappa)
    assert shaped[MASK].tolist() == pytest.approx(expected, abs=1e-15)
    assert torch.equal(shaped[~MASK], a[~MASK])
    assert not shaped.requires_grad
    assert torch.equal(shaped, entropy_advantage(a, h, MASK, kappa=kappa))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kappa", [1.0, 1.0001, 1.3, 3.0, 7.0])
def test_entropy_advantage_never_changes_a_sign_for_kappa_of_at_least_one(kappa: float, dtype: torch.dtype) -> None:
    a = torch.randn(100, 200, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 0.1
    h = torch.rand(100, 200, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 3
    shaped = entropy_advantage(a, h, torch.ones(100, 200), kappa=kappa)
    assert (shaped * a >= 0).all()
    assert (shaped >= a).all()
    if kappa > 1:
        assert (shaped * a > 0).all()


def test_entropy_advantage_leaves_zero_advantages_and_certain_tokens_alone() -> None:
    a, h = torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[5.0, 0.0, 0.0]])
    assert torch.equal(entropy_advantage(a, h, torch.ones(1, 3)), a)


@pytest.mark.parametrize(("name", "value"), [("scale", -0.1), ("scale", math.nan), ("kappa", 0.0), ("kappa", math.nan)])
def test_entropy_advantage_refuses_what_is_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        entropy_advantage(draw(0), draw(1), MASK, **{name: value})


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1.0])
def test_confidence_is_the_definition(share: float) -> None:
    log_prob, *_ = batch()
    values = confidence(log_prob, MASK, share=share)
    expected = [reference.confidence(row[mask].tolist(), share) for row, mask in zip(log_prob, MASK, strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-12)
    assert values[LENGTHS.index(0)] == 1.0
    assert not values.requires_grad


def test_confidence_reads_two_of_ten_by_default() -> None:
    log_prob = torch.log(torch.tensor([[0.9] * 7 + [0.1, 0.8, 0.4]]))
    assert confidence(log_prob, torch.ones(1, 10)).item() == pytest.approx(0.2)


def test_confidence_does_not_depend_on_order_or_padding() -> None:
    log_prob, *_ = batch()
    assert torch.equal(confidence(log_prob.flip(-1), MASK.flip(-1)), confidence(log_prob, MASK))


def test_confidence_shows_nan_and_takes_impossible_tokens() -> None:
    log_prob = torch.tensor([[math.nan, -1.0, -1.0], [-math.inf, -1.0, -1.0], [-1.0, -1.0, math.nan]])
    mask = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    assert confidence(log_prob, mask).tolist() == pytest.approx([math.nan, 0.0, math.exp(-1)], nan_ok=True)


def test_confidence_counts_as_python_does() -> None:
    """.29 * 100 is 28.999999999999996 in fp64 and 29 in fp32."""
    log_prob = -torch.rand(1, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value = confidence(log_prob, torch.ones(1, 100), share=0.29).item()
    assert value == pytest.approx(reference.confidence(log_prob[0].tolist(), 0.29), rel=1e-12)


def test_confidence_of_no_positions() -> None:
    assert confidence(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("share", [0.0, 1.1, math.nan])
def test_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"share=.* outside \(0, 1\]"):
        confidence(draw(0), MASK, share=share)


def test_progrpo_is_the_definition() -> None:
    a = draw(0).requires_grad_()
    answers = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    prompts = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    mixed = torch.tensor([True, True, False, True, False, True])
    shaped = progrpo(a, response_confidence=answers, prompt_confidence=prompts, mixed=mixed, scale=0.7)
    expected = reference.progrpo(a.tolist(), answers.tolist(), prompts.tolist(), mixed.tolist(), 0.7)
    torch.testing.assert_close(shaped, torch.tensor(expected, dtype=torch.float64), atol=1e-15, rtol=0)
    assert torch.equal(shaped[~mixed], a[~mixed])
    assert not shaped.requires_grad


def test_progrpo_favours_the_less_confident_of_two_right_answers() -> None:
    a, prompts = torch.ones(2, 3), torch.full((2,), 0.5)
    answers, mixed = torch.tensor([0.9, 0.1]), torch.tensor([True, True])
    shaped = progrpo(a, response_confidence=answers, prompt_confidence=prompts, mixed=mixed, scale=1.0)
    assert (shaped[0] < a[0]).all()
    assert (shaped[1] > a[1]).all()


def test_progrpo_ignores_confidences_of_groups_that_are_not_mixed() -> None:
    nan, mixed = torch.full((1,), math.nan), torch.tensor([False])
    assert progrpo(
        torch.ones(1, 2), response_confidence=nan, prompt_confidence=nan, mixed=mixed, scale=1.0
    ).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("broken", ["response_confidence", "prompt_confidence"])
def test_progrpo_leaves_advantages_alone_where_a_confidence_is_nan(broken: str) -> None:
    confidences = {"response_confidence": torch.tensor([0.2, 0.2]), "prompt_confidence": torch.tensor([0.7, 0.7])}
    confidences[broken][0] = math.nan
    shaped = progrpo(torch.ones(2, 1), mixed=torch.tensor([True, True]), scale=1.0, **confidences)
    assert shaped.tolist() == [[1.0], [1.5]]


def test_low_precision_input_is_computed_in_fp32() -> None:
    low = torch.linspace(0.01, 0.4, 12).reshape(3, 4).bfloat16()
    mask = torch.ones(3, 4, dtype=torch.bool)

    def results(x: Tensor) -> list[Tensor]:
        c = {"response_confidence": x[:, 0].float(), "prompt_confidence": x[:, 1].float(), "mixed": mask[:, 0]}
        return [
            positive_reweight(x, 0.3),
            steer_change(-x, -x.flip(0), x, x.flip(1), mask),
            entropy_advantage(x, x, mask, scale=0.3, kappa=3.0),
            confidence(-x, mask),
            progrpo(x, scale=0.3, **c),
        ]

    for ours, exact in zip(results(low), results(low.float()), strict=True):
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours, exact, atol=0, rtol=1e-6)
