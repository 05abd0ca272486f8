"""Every preset's whole loss: value and gradient against its plain definition, and what makes the method what it is."""

import functools
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from aent_verl.methods.step import StepValues
from aent_verl.plugin.losses import entropy_control_loss
from aent_verl.plugin.micro_batch import ENTROPY
from tests import preset_harness as harness
from tests import reference_presets as reference
from tests.preset_harness import COMBINED, Outcome, Sequence, shipped, stock
from tests.reference import choose_random

pytestmark = pytest.mark.usefixtures("single_rank_group")

# Twice the mean of past entropies cuts through the batch's entropies; the anchor lies below the average of its peaks.
ON = StepValues(
    step=3, total_steps=10, bonus_coefficient=0.3, advantages_coefficient=0.3, initial_entropy=1.1, entropy_mean=0.6
)
OFF = replace(ON, bonus_coefficient=0.0)
# As verl cuts them: of one size, or by length and in another order.
PARTS = {
    "1": [[i] for i in range(12)],
    "3": [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]],
    "12": [list(range(12))],
    "dynamic": [[11, 4, 0, 7, 2], [9], [3, 1, 10, 8], [5, 6]],
}


@pytest.fixture(scope="module")
def batch() -> list[Sequence]:
    return harness.batch()


def values_for(name: str) -> StepValues:
    """With the coefficient that the preset's controller can give: those without a bonus hold it at 0."""
    from aent_verl.core.controllers import ConstantController

    none = shipped(name).entropy_control.bonus.controller == ConstantController(init=0.0)
    return OFF if none else ON


@functools.cache
def expected(name: str) -> tuple[float, list[Tensor]]:
    return reference.loss_and_gradients(name, harness.batch(), values_for(name))


def close(actual: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-10) -> None:
    for a, w in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, w, rtol=0, atol=tolerance)


def same(one: Outcome, other: Outcome) -> None:
    assert one.loss == other.loss
    assert all(torch.equal(a, b) for a, b in zip(one.gradients, other.gradients, strict=True))


def factors(batch: list[Sequence], one: Outcome, other: Outcome) -> tuple[Tensor, Tensor]:
    """What multiplies each token's gradient in ``other`` to give that in ``one``; and the tokens where it is not 0."""
    rows, base = harness.in_loss(batch, one.gradients), harness.in_loss(batch, other.gradients)
    moves = base.abs().amax(-1) > 0
    factor = (rows * base).sum(-1)[moves] / (base * base).sum(-1)[moves]
    torch.testing.assert_close(rows[moves], factor.unsqueeze(-1) * base[moves], rtol=0, atol=1e-14)
    assert not rows[~moves].any()
    return factor, moves


def test_every_shipped_preset_has_a_reference() -> None:
    from tests.config.test_configs import PRESETS

    assert set(PRESETS) == {name for name in reference.PRESETS if "+" not in name}
    assert set(COMBINED) == {name for name in reference.PRESETS if "+" in name}


def test_the_batch_holds_what_it_should(batch: list[Sequence]) -> None:
    ratio = torch.cat([s.log_probs[s.mask.bool()] - s.old_log_probs[s.mask.bool()] for s in batch]).exp()
    advantage = harness.of_tokens(batch, "advantages")
    for some in (ratio[advantage > 0], ratio[advantage < 0]):
        for low, high in ((0.0, 0.5), (0.8, 1.0), (1.0, 1.2), (1.2, 1.28), (1.5, 3.0), (3.0, math.inf)):
            assert ((low < some) & (some < high)).any(), (low, high)
    assert (advantage == 0).any()
    assert [not s.mask.any() for s in batch] == [i == harness.MASKED_OUT for i in range(12)]
    assert any(0 < s.mask.sum() < len(s.mask) for s in batch)
    seen = reference.responses(batch, [s.logits for s in batch])
    assert {0 <= t.full <= 2 * ON.entropy_mean for tokens in seen for t in tokens} == {True, False}
    assert any(t.nucleus == 0 for tokens in seen for t in tokens)
    eligible, dropped = reference.dropped_by_clip_cov(seen)
    assert 1 < sum(dropped) < sum(eligible) < len(eligible)
    # Clipped tokens would have been chosen.
    _, values, priorities = reference.covariances(seen)
    assert choose_random(priorities, [0.1 < value < 5 for value in values], sum(dropped)) != dropped


@pytest.mark.parametrize("parts", ["1", pytest.param("12", marks=pytest.mark.slow), "dynamic"])
@pytest.mark.parametrize("name", reference.PRESETS)
def test_loss_and_gradient_are_the_definitions(name: str, parts: str, batch: list[Sequence]) -> None:
    outcome = harness.run(shipped(name), batch, values_for(name), PARTS[parts])
    loss, gradients = expected(name)
    close(outcome.gradients, gradients)
    # SIREN's mean over the peaks of a response: verl divides by their number plus 1e-8.
    assert outcome.loss == pytest.approx(loss, rel=0, abs=1e-8 if name.startswith("siren") else 1e-10)
    gain = sum(m["aent/bonus_loss"].values[0] for m in outcome.metrics)
    assert (gain == 0) == (values_for(name).bonus_coefficient == 0)


BONUSES = ("entreg", "aent", "tre", "skywork", "aer", "siren", "epo", "linear_decay")
PAR = ("par_stage", "par_epoch", "par_entropy")
# The preset with its method switched off, and the stock loss that this is.
SWITCHED_OFF: dict[str, tuple[dict[str, Any], StepValues, dict[str, float]]] = {
    **{preset: ({}, OFF, {}) for preset in ("grpo", *BONUSES)},
    **{preset: ({}, replace(OFF, advantages_coefficient=1.0), {}) for preset in PAR},
    "clip_cov": ({"policy_loss.clip_cov_lb": 4.99}, OFF, {"clip_ratio": 1.0, "clip_ratio_c": 1e9}),
    "kl_cov": ({"policy_loss.ppo_kl_coef": 0.0}, OFF, {"clip_ratio": 1e9, "clip_ratio_c": 1e9}),
    "repo_r": ({}, replace(OFF, advantages_coefficient=0.0), {}),
    "steer": ({"advantages.w_min": 1.0}, OFF, {"clip_ratio": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 10.0}),
    "entropy_adv": ({"advantages.scale": 0.0}, OFF, {}),
    "progrpo": ({"advantages.scale": 0.0}, OFF, {"clip_ratio": 0.2, "clip_ratio_high": 0.28}),
    "clip_higher": ({"clip_ratio_high": 0.2}, OFF, {}),
}


@pytest.mark.parametrize("preset", SWITCHED_OFF)
def test_switched_off_every_preset_is_verls_own_loss(preset: str, batch: list[Sequence]) -> None:
    overrides, step, settings = SWITCHED_OFF[preset]
    same(harness.run(harness.config(preset, **overrides), batch, step), stock(batch, **settings))


@pytest.mark.parametrize("name", [name for name in COMBINED if name.startswith(("aent", "epo"))])
def test_at_coefficient_0_a_combination_is_its_other_half(name: str, batch: list[Sequence]) -> None:
    one = harness.run(shipped(name), batch, OFF)
    other = harness.run(harness.config("entreg", **COMBINED[name]), batch, OFF)
    # The full entropy alongside the clamped one is the same number up to rounding.
    assert one.loss == pytest.approx(other.loss, rel=1e-14)
    close(one.gradients, other.gradients, 1e-15)


def test_aent_without_a_clamp_is_the_plain_entropy_bonus(batch: list[Sequence]) -> None:
    unclamped = harness.config("aent", **{"functional.clamp_p": 0.0})
    one, other = harness.run(unclamped, batch, ON), harness.run(shipped("entreg"), batch, ON)
    assert one.loss == pytest.approx(other.loss, rel=1e-14)
    close(one.gradients, other.gradients, 1e-15)


def test_epo_inside_its_window_is_the_plain_entropy_bonus(batch: list[Sequence]) -> None:
    plain = harness.run(shipped("entreg"), batch, ON)
    for mean in (None, math.log(harness.VOCABULARY) / 2):
        step = replace(ON, entropy_mean=mean)
        one = harness.run(shipped("epo"), batch, step)
        assert one.loss == pytest.approx(plain.loss, rel=1e-14)
        close(one.gradients, plain.gradients, 1e-15)


def test_epo_above_its_window_pulls_the_entropy_down(batch: list[Sequence]) -> None:
    batch = [replace(s, advantages=torch.zeros_like(s.advantages)) for s in batch]
    up = harness.run(shipped("entreg"), batch, ON)
    down = harness.run(shipped("epo"), batch, replace(ON, entropy_mean=0.0))
    beta = 1 + math.exp(-3 * 2 / 5)
    close(down.gradients, [(1 - beta) * gradient for gradient in up.gradients], 1e-15)


@pytest.mark.parametrize("preset", PAR)
def test_par_scales_the_tokens_of_positive_advantage(preset: str, batch: list[Sequence]) -> None:
    plain = harness.run(shipped("grpo"), batch, OFF)
    same(harness.run(shipped(preset), batch, replace(OFF, advantages_coefficient=1.0)), plain)
    positive = harness.of_tokens(batch, "advantages") > 0
    for mu in (0.0, 0.75):
        factor, moves = factors(
            batch, harness.run(shipped(preset), batch, replace(OFF, advantages_coefficient=mu)), plain
        )
        assert factor.tolist() == pytest.approx([mu if p else 1.0 for p in positive[moves]], abs=1e-13)


def test_skyworks_coefficient_stays_in_its_bounds_and_is_0_above_the_target() -> None:
    controller, chance = shipped("skywork").entropy_control.controllers["bonus"], random.Random(1)
    state, seen = controller.initial_state(), []
    for step in range(1, 600):
        entropy = chance.uniform(0.0, 0.2) if (step // 150) % 2 == 0 else chance.uniform(0.0, 0.6)
        state = controller.update(state, entropy=entropy, step=step)
        assert state.coefficient == 0 if entropy >= 0.2 else 0 <= state.coefficient <= 0.005
        seen.append(state.coefficient)
    assert max(seen) == 0.005


def test_aers_bonus_leaves_solved_groups_alone_and_its_coefficient_seeks_the_target(batch: list[Sequence]) -> None:
    plain = harness.run(shipped("grpo"), batch, OFF).gradients
    aer, full = (harness.run(shipped(name), batch, ON).gradients for name in ("aer", "entreg"))
    for s, none, weighed, whole in zip(batch, plain, aer, full, strict=True):
        torch.testing.assert_close(weighed - none, (1 - s.accuracy) * (whole - none), rtol=0, atol=1e-15)
    controller = shipped("aer").entropy_control.controllers["bonus"]
    state = controller.observe_initial(controller.initial_state(), entropy=2.0)
    state = controller.update(state, entropy=0.5, step=1)
    assert state.coefficient == pytest.approx(0.001 * (0.4 * 2.0 - 0.5))
    assert controller.update(state, entropy=0.8, step=2).coefficient == state.coefficient
    assert 0 <= controller.update(state, entropy=0.9, step=2).coefficient < state.coefficient


def aggregate(batch: list[Sequence]) -> float:
    found = harness.run(shipped("siren"), batch, ON).metrics[0]
    return found["aent/stats/bonus_aggregate"].values[0]


def test_siren_has_no_term_without_peaks(batch: list[Sequence]) -> None:
    flat = [replace(s, logits=s.logits[:1].expand_as(s.logits)) for s in batch]
    same(harness.run(shipped("siren"), flat, ON), harness.run(shipped("grpo"), flat, OFF))


@pytest.mark.parametrize(("anchor", "sign"), [(0.01, -1), (2.0, 1)])
def test_siren_pulls_the_entropy_to_its_anchor_from_both_sides(anchor: float, sign: int, batch: list[Sequence]) -> None:
    batch = [replace(s, advantages=torch.zeros_like(s.advantages)) for s in batch]
    gradients = harness.run(shipped("siren"), batch, replace(ON, initial_entropy=anchor)).gradients
    moved = [replace(s, logits=s.logits - 1e-3 * g) for s, g in zip(batch, gradients, strict=True)]
    assert sign * (aggregate(moved) - aggregate(batch)) > 0


def test_steers_weights_lie_between_w_min_and_1(batch: list[Sequence]) -> None:
    """A uniform distribution has ln p + H = 0, and so has an advantage of 0: no change of the entropy."""
    uniform = [replace(s, logits=torch.zeros_like(s.logits)) if s.sample == 1 else s for s in batch]
    # No clip: the token of largest change may be one that it stops.
    no_clip = {"clip_ratio_low": 1e9, "clip_ratio_high": 1e9, "clip_ratio_c": 1e9}
    steered, plain = (harness.run(harness.config(name, **no_clip), uniform, OFF) for name in ("steer", "grpo"))
    factor, moves = factors(uniform, steered, plain)
    largest = steered.metrics[0]["aent/stats/largest_change"].values[0]
    floored = harness.run(harness.config("steer", **no_clip, **{"advantages.floor": 2 * largest}), uniform, OFF)
    assert factors(uniform, floored, plain)[0].min() == pytest.approx(0.8**0.5, abs=1e-12)
    assert factor.min() == pytest.approx(0.8, abs=1e-12)
    assert factor.max() <= 1 + 1e-12
    of = torch.cat([torch.full((int(s.mask.sum()),), s.sample) for s in uniform])[moves]
    assert (of == 1).any()
    torch.testing.assert_close(factor[of == 1], torch.ones_like(factor[of == 1]), rtol=0, atol=1e-12)
    assert (factor[of != 1] < 1 - 1e-4).any()


def test_entropy_advantage_never_turns_a_gradient_around(batch: list[Sequence]) -> None:
    factor, moves = factors(
        batch, harness.run(shipped("entropy_adv"), batch, OFF), harness.run(shipped("grpo"), batch, OFF)
    )
    positive = (harness.of_tokens(batch, "advantages") > 0)[moves]
    assert ((factor[positive] > 1) & (factor[positive] <= 2 + 1e-12)).all()
    assert ((factor[~positive] >= -1e-12) & (factor[~positive] < 1)).all()


def test_progrpo_leaves_groups_of_one_outcome_alone(batch: list[Sequence]) -> None:
    one, other = (harness.run(shipped(name), batch, OFF).gradients for name in ("progrpo", "clip_higher"))
    for s, a, b in zip(batch, one, other, strict=True):
        assert torch.equal(a, b) == (s.accuracy in (0.0, 1.0) or s.sample == harness.MASKED_OUT), s.sample


def test_clip_higher_is_grpo_where_no_ratio_lies_between_the_two_clips(batch: list[Sequence]) -> None:
    outside = harness.with_ratios(batch, (0.5, 0.79, 0.9, 1.01, 1.19, 1.3, 4.0))
    one, other = (harness.run(shipped(name), outside, OFF) for name in ("clip_higher", "grpo"))
    close(one.gradients, other.gradients, 0.0)
    below = harness.with_ratios(batch, (0.5, 0.79, 0.9, 1.01, 1.19))
    same(*(harness.run(shipped(name), below, OFF) for name in ("clip_higher", "grpo")))
    between = harness.with_ratios(batch, (1.25,))
    higher, plain = (harness.run(shipped(name), between, OFF) for name in ("clip_higher", "grpo"))
    assert (
        harness.in_loss(between, higher.gradients).count_nonzero()
        > harness.in_loss(between, plain.gradients).count_nonzero()
    )


def test_linear_decay_goes_from_its_start_to_nothing() -> None:
    controller = shipped("linear_decay").entropy_control.controllers["bonus"]
    controller = controller.for_run(total_steps=11, steps_per_epoch=3)
    line = [controller.coefficient_at(step) for step in range(1, 13)]
    assert line == pytest.approx([0.02 * (10 - k) / 10 for k in range(11)] + [0.0])


def test_clip_cov_takes_exactly_its_count_of_eligible_tokens_out(batch: list[Sequence]) -> None:
    batch = [replace(s, advantages=torch.where(s.advantages == 0, 0.5, s.advantages)) for s in batch]
    all_in = harness.config("clip_cov", **{"policy_loss.clip_cov_lb": 4.99})
    kept, full = (harness.in_loss(batch, harness.run(c, batch, OFF).gradients) for c in (shipped("clip_cov"), all_in))
    out = ~kept.any(-1) & full.any(-1)
    eligible, _ = reference.dropped_by_clip_cov(reference.responses(batch, [s.logits for s in batch]))
    assert int(out.sum()) == max(1, int(0.05 * len(kept)))
    assert not (out & ~torch.tensor(eligible)).any()
    assert torch.equal(kept[~out], full[~out])


def test_kl_cov_differs_from_no_clip_on_exactly_its_count_of_tokens(batch: list[Sequence]) -> None:
    one = harness.in_loss(batch, harness.run(shipped("kl_cov"), batch, OFF).gradients)
    other = harness.in_loss(batch, stock(batch, clip_ratio=1e9, clip_ratio_c=1e9).gradients)
    assert int((one != other).any(-1).sum()) == max(1, int(0.1 * len(one)))


@pytest.mark.parametrize("preset", ["clip_cov", "kl_cov"])
def test_the_smallest_choice_is_one_token_and_another_step_chooses_others(preset: str, batch: list[Sequence]) -> None:
    few = harness.config(preset, **{f"policy_loss.{preset}_ratio": 1e-6})
    found = harness.run(few, batch, OFF).metrics[0]
    assert found["aent/stats/chosen_tokens"].values[0] == 1
    now, later = (harness.run(shipped(preset), batch, replace(OFF, step=step)) for step in (3, 4))
    # KL-Cov chooses by size; chance only breaks ties there.
    assert (now.loss == later.loss) == (preset == "kl_cov")


def test_only_methods_of_the_whole_mini_batch_cost_a_pass_ahead() -> None:
    from aent_verl.plugin.minibatch_stats import StatsPass

    of_whole, choosing = {"siren", "steer"}, {"clip_cov", "kl_cov"}
    for name in reference.PRESETS:
        stats_pass, parts = StatsPass(shipped(name)), set(name.split("+"))
        assert (stats_pass.needed, stats_pass.needs_samples) == (
            bool(parts & (of_whole | choosing)),
            bool(parts & choosing),
        )


@pytest.mark.parametrize("preset", [name for name in reference.PRESETS if "+" not in name])
def test_what_stands_outside_the_response_mask_does_not_matter(preset: str, batch: list[Sequence]) -> None:
    broken = []
    for s in batch:
        logits = s.logits.clone()
        logits[s.prompt - 1 : -1][s.mask == 0] = torch.nan
        broken.append(replace(s, logits=logits))
    step = values_for(preset)
    one, other = (harness.run(shipped(preset), each, step) for each in (broken, batch))
    assert one.loss == other.loss
    assert torch.equal(harness.in_loss(batch, one.gradients), harness.in_loss(batch, other.gradients))
    assert all(gradient.isfinite().all() for gradient in one.gradients)


def test_clip_cov_falls_back_to_the_clip_range_of_both_sides(batch: list[Sequence]) -> None:
    one = harness.config("clip_cov", clip_ratio=0.3, clip_ratio_low=None, clip_ratio_high=None)
    other = harness.config("clip_cov", clip_ratio=9.0, clip_ratio_low=0.3, clip_ratio_high=0.3)
    same(harness.run(one, batch, OFF), harness.run(other, batch, OFF))


def test_clip_cov_with_nothing_to_drop_is_ppo_at_its_two_clip_ranges(batch: list[Sequence]) -> None:
    settings = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
    config = harness.config("clip_cov", **settings, **{"policy_loss.clip_cov_lb": 4.99})
    same(harness.run(config, batch, OFF), stock(batch, **settings, clip_ratio_c=1e9))


@pytest.mark.parametrize("preset", ["clip_cov", "kl_cov", "steer", "siren"])
def test_the_order_of_sequences_does_not_matter(preset: str, batch: list[Sequence]) -> None:
    order = random.Random(2).sample(range(12), 12)
    step = values_for(preset)
    one = harness.run(shipped(preset), batch, step)
    other = harness.run(shipped(preset), [batch[i] for i in order], step, PARTS["3"])
    assert other.loss == pytest.approx(one.loss, rel=0, abs=1e-12)
    close(other.gradients, [one.gradients[i] for i in order], 1e-14)


@pytest.mark.parametrize("preset", ["par_stage", "steer", "entropy_adv", "progrpo"])
def test_shaping_leaves_the_batch_as_it_is(preset: str, batch: list[Sequence]) -> None:
    data = harness.to_verl(batch, values_for(preset))
    harness.run_stats_pass(shipped(preset), batch, data)
    output = harness.model_output(shipped(preset), data, torch.cat([s.logits for s in batch]))
    once, again = (entropy_control_loss(shipped(preset), output, data)[0] for _ in range(2))
    assert once == again


def test_at_coefficient_0_no_entropy_reaches_the_loss(batch: list[Sequence]) -> None:
    data = harness.to_verl(batch, OFF)
    output = harness.model_output(shipped("aent"), data, torch.cat([s.logits for s in batch]))
    loss, _ = entropy_control_loss(shipped("aent"), output, data)
    # "entropy" is the name under which verl would take it.
    broken = dict.fromkeys((ENTROPY, "entropy"), output[ENTROPY] * math.nan)
    assert entropy_control_loss(shipped("aent"), output | broken, data)[0] == loss
