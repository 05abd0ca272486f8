"""verl's engine and loss against ours on the same batch: equality where nothing is controlled, invariance elsewhere."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from aent_verl.plugin import measurements
from tests.engine_harness import LOSS_AGG_MODES, Case, Result, batch, run, step

pytestmark = pytest.mark.slow

LAYOUTS = (True, False)
STOCK = [Case(engine="stock", remove_padding=r, loss_agg_mode=m) for r in LAYOUTS for m in LOSS_AGG_MODES]
HOT = [Case(engine="stock", temperature=0.7, remove_padding=r) for r in LAYOUTS]
ENTROPY_BONUS = [
    Case(engine="stock", remove_padding=r, loss_agg_mode=m, stock_entropy_coeff=0.3)
    for r in LAYOUTS
    for m in LOSS_AGG_MODES
]
AENT = Case(coefficient=0.3, clamp_p=0.33)
AENT_VARIANTS = [
    AENT,
    *(replace(AENT, remove_padding=r, micro_batch=n) for r in LAYOUTS for n in (1, 4)),
    *(replace(AENT, remove_padding=r, dynamic=True) for r in LAYOUTS),
]
OLD_LOG_PROBS = [
    Case(engine="stock", evaluate=True, temperature=t, remove_padding=r) for r in LAYOUTS for t in (1.0, 0.7)
]
AENT_MODES = [replace(AENT, loss_agg_mode=m) for m in LOSS_AGG_MODES[1:]]
# A bonus of one's own that reads the last hidden states.
STATES = Case(coefficient=0.3, preset=("entropy_control=entreg", "entropy_control.bonus.name=tests.lab:SmallStates"))
STATES_VARIANTS = [
    STATES,
    replace(STATES, remove_padding=False, micro_batch=4),
    replace(STATES, dynamic=True),
]
NO_COEFFICIENT = Case(send_step=False)


def ours(case: Case) -> Case:
    """The same case through our engine and loss: verl's entropy_coeff becomes our coefficient on the full entropy."""
    return replace(case, engine="ours", coefficient=case.stock_entropy_coeff, stock_entropy_coeff=0.0)


def all_cases() -> list[Case]:
    stock = [*STOCK, *HOT, *ENTROPY_BONUS, *OLD_LOG_PROBS]
    return list(
        dict.fromkeys([*stock, *map(ours, stock), *AENT_VARIANTS, *AENT_MODES, *STATES_VARIANTS, NO_COEFFICIENT])
    )


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request: pytest.FixtureRequest, tiny_model_folder: str) -> dict[Case, Result]:
    return _run_once(tiny_model_folder, request.param)


_cache: dict[int, dict[Case, Result]] = {}


def _run_once(model: str, world_size: int) -> dict[Case, Result]:
    if world_size not in _cache:
        cases = all_cases()
        _cache[world_size] = dict(zip(cases, run(model, world_size, cases), strict=True))
    return _cache[world_size]


def assert_same(one: Result, other: Result, *, tolerance: float = 1e-6) -> None:
    assert one.loss == pytest.approx(other.loss, rel=tolerance, abs=tolerance)
    scale = max(1.0, other.gradient.abs().max().item())
    assert (one.gradient - other.gradient).abs().max().item() <= tolerance * scale
    assert other.gradient.abs().max().item() > 1e-3


@pytest.mark.parametrize("case", [*STOCK, *HOT], ids=str)
def test_grpo_is_stock_verl(results: dict[Case, Result], case: Case) -> None:
    assert_same(results[ours(case)], results[case])


@pytest.mark.parametrize("case", ENTROPY_BONUS, ids=str)
def test_full_entropy_bonus_is_verls_entropy_coeff(results: dict[Case, Result], case: Case) -> None:
    """An independent implementation of the bonus, stock verl's, gives the same loss and gradient."""
    assert_same(results[ours(case)], results[case])
    without = replace(ours(case), coefficient=0.0)
    assert (results[ours(case)].gradient - results[without].gradient).abs().max() > 1e-4


@pytest.mark.parametrize("case", AENT_VARIANTS, ids=str)
def test_layout_and_micro_batch_do_not_change_the_result(results: dict[Case, Result], case: Case) -> None:
    assert_same(results[case], results[AENT])


@pytest.mark.parametrize("case", OLD_LOG_PROBS, ids=str)
def test_old_log_probs_and_their_entropy_are_verls(results: dict[Case, Result], case: Case) -> None:
    mine, stock = results[ours(case)].outputs, results[case].outputs
    assert set(mine) == set(stock) == {"log_probs", "entropy"}
    for key, value in stock.items():
        torch.testing.assert_close(mine[key], value, atol=2e-6, rtol=2e-6)


def means(result: Result, case: Case) -> dict[str, float]:
    return measurements.of_step(measurements.taken(dict(result.metrics)), step(case))


@pytest.mark.parametrize("case", [*AENT_VARIANTS, *AENT_MODES], ids=str)
def test_measured_entropy_is_the_same_for_every_micro_batch_mode_and_number_of_ranks(
    results: dict[Case, Result], tiny_model_folder: str, case: Case
) -> None:
    reference = means(_run_once(tiny_model_folder, 1)[AENT], AENT)
    measured = means(results[case], case)
    for key in ("aent/entropy", "aent/entropy_full", "aent/removed_mass"):
        assert measured[key] == pytest.approx(reference[key], rel=1e-6)
    assert 0 < measured["aent/entropy"] < measured["aent/entropy_full"]
    assert 0 < measured["aent/removed_mass"] < 0.33


def test_number_of_ranks_does_not_change_the_gradient(tiny_model_folder: str) -> None:
    for case in (AENT, *AENT_MODES):
        assert_same(_run_once(tiny_model_folder, 2)[case], _run_once(tiny_model_folder, 1)[case], tolerance=2e-6)


def test_bonus_changes_the_gradient(results: dict[Case, Result]) -> None:
    without = results[Case()].gradient
    assert (results[AENT].gradient - without).abs().max() > 1e-4
    assert results[AENT].metrics["actor/" + measurements.BONUS_LOSS] == pytest.approx(
        -AENT.coefficient * means(results[AENT], AENT)["aent/entropy"], rel=1e-5
    )


@pytest.mark.parametrize("case", STATES_VARIANTS, ids=str)
def test_a_method_gets_the_last_hidden_states_with_their_gradient(
    results: dict[Case, Result], tiny_model_folder: str, case: Case
) -> None:
    """The bonus is the mean square of the state that each token was predicted from, here by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, attn_implementation="sdpa")
    rows, data = [], batch(0, 1)
    for tokens, prompt, mask in zip(
        *(data[key].unbind() for key in ("input_ids", "prompts", "response_mask")), strict=True
    ):
        states = model(tokens.unsqueeze(0), output_hidden_states=True).hidden_states[-1][0]
        rows.append(states[len(prompt) - 1 : -1][mask.bool()])
    bonus = case.coefficient * torch.cat(rows).square().mean()
    gradients = torch.autograd.grad(bonus, list(model.parameters()), allow_unused=True, materialize_grads=True)
    expected = torch.cat([gradient.flatten() for gradient in gradients])
    without = results[Case()]
    assert results[case].loss - without.loss == pytest.approx(bonus.item(), rel=1e-5)
    torch.testing.assert_close(results[case].gradient - without.gradient, expected, atol=1e-6, rtol=1e-4)
    assert expected.abs().max() > 1e-3


def test_batch_without_a_coefficient_stops(results: dict[Case, Result]) -> None:
    error = results[NO_COEFFICIENT]
    assert isinstance(error, RuntimeError)
    assert "trainer.v1.trainer_mode=aent_sync" in str(error)


def test_stock_metrics_keep_their_names_and_values(results: dict[Case, Result]) -> None:
    stock, mine = results[STOCK[0]].metrics, results[ours(STOCK[0])].metrics
    for key, value in stock.items():
        assert torch.tensor(mine[key]).allclose(torch.tensor(value), rtol=1e-5), key
    assert "actor/entropy_loss" not in mine
