"""Controllers that answer the entropy: hand-computed sequences, bounds, gates, and what they do with NaN."""

import dataclasses
import math
import random
from typing import Any

import pytest

from aent_verl.core.controllers import (
    AnchoredTargetController,
    BandController,
    Controller,
    ControllerState,
    DoublingController,
    EntropyGuidedController,
    StepToTargetController,
    StepToTargetState,
)

BAND: dict[str, Any] = {"init": 0.5, "low": 1.0, "high": 2.0, "lr": 0.1, "warmup_steps": 1, "min": 0.25, "max": 0.75}
STEP: dict[str, Any] = {"init": 0.0, "target": 1.0, "step_size": 0.25, "min": 0.0, "max": 0.6}
ANCHORED: dict[str, Any] = {"init": 0.05, "tau": 0.5, "eta": 0.1, "min": 0.0, "max": 0.2}
GUIDED: dict[str, Any] = {"init": 0.0, "target": 0.2, "step_size": 0.05, "min": 0.0, "max": 1.0, "smoothing": 0.0}
EACH = {
    "band": BandController(**BAND),
    "step_to_target": StepToTargetController(**STEP),
    "anchored_target": AnchoredTargetController(**ANCHORED),
    "entropy_guided": EntropyGuidedController(**GUIDED),
}
each = pytest.mark.parametrize("controller", EACH.values(), ids=EACH.keys())


def states(controller: Controller, entropies: list[float], initial: float = 2.0) -> list[ControllerState]:
    state, out = controller.observe_initial(controller.initial_state(), entropy=initial), []
    for step, entropy in enumerate(entropies, start=1):
        state = controller.update(state, entropy=entropy, step=step)
        out.append(state)
    return out


def coefficients(controller: Controller, entropies: list[float]) -> list[float]:
    return [state.coefficient for state in states(controller, entropies)]


def moving(state: ControllerState) -> float:
    """What the rule moves: the level where there is one."""
    return state.level if isinstance(state, StepToTargetState) else state.coefficient


def test_below_the_band_the_coefficient_rises_by_lr_times_the_distance() -> None:
    # 0.5 + 0.1 * 0.5 = 0.55; then + 0.1 * 0.25
    assert coefficients(BandController(**BAND), [0.5, 0.75]) == pytest.approx([0.55, 0.575], abs=1e-15)


def test_above_the_band_it_falls_by_lr_times_the_distance() -> None:
    seen = states(BandController(**BAND), [2.5, 3.0])
    assert [state.coefficient for state in seen] == pytest.approx([0.45, 0.35], abs=1e-15)
    assert [state.band_side for state in seen] == [1, 1]


@pytest.mark.parametrize("entropy", [1.0, 1.5, 2.0])
def test_inside_the_band_ends_included_it_stays(entropy: float) -> None:
    (state,) = states(BandController(**BAND), [entropy])
    assert (state.coefficient, state.band_side) == (0.5, 0)


def test_the_last_warm_up_step_is_the_one_before_warmup_steps() -> None:
    controller = BandController(**(BAND | {"warmup_steps": 3}))
    assert coefficients(controller, [0.0, 0.0, 0.0, 0.0]) == pytest.approx([0.5, 0.5, 0.6, 0.7], abs=1e-15)


def test_no_warm_up() -> None:
    assert coefficients(BandController(**(BAND | {"warmup_steps": 0})), [0.0]) == pytest.approx([0.6], abs=1e-15)


def test_both_bounds_hold_and_are_reported() -> None:
    controller = BandController(**BAND)
    state = controller.update(controller.initial_state(), entropy=-100.0, step=1)
    assert (state.coefficient, state.at_bound, state.bound_hits, state.band_side) == (0.75, True, 1, -1)
    state = controller.update(state, entropy=100.0, step=2)
    assert (state.coefficient, state.at_bound, state.bound_hits, state.band_side) == (0.25, True, 2, 1)
    state = controller.update(state, entropy=0.9, step=3)
    assert state.coefficient == pytest.approx(0.26, abs=1e-15)
    assert (state.at_bound, state.bound_hits, state.band_side) == (False, 2, -1)


def test_reg_pulls_towards_init() -> None:
    controller = BandController(**(BAND | {"reg": 2.0}))
    # Inside the band: 0.7 - 0.1 * 2 * (0.7 - 0.5) = 0.66. Below: 0.66 - 0.1 * (-0.5 + 2 * 0.16) = 0.678.
    state = ControllerState(coefficient=0.7)
    state = controller.update(state, entropy=1.5, step=1)
    assert state.coefficient == pytest.approx(0.66, abs=1e-15)
    assert controller.update(state, entropy=0.5, step=2).coefficient == pytest.approx(0.678, abs=1e-15)


def test_a_coefficient_at_zero_moves_again() -> None:
    controller = BandController(**(BAND | {"min": 0.0}))
    state = ControllerState(coefficient=0.0)
    assert controller.update(state, entropy=0.0, step=1).coefficient == pytest.approx(0.1)


def test_step_to_target_moves_its_level_and_pays_it_only_while_the_entropy_is_low() -> None:
    seen = states(StepToTargetController(**STEP), [0.5, 0.5, 1.5, 0.5, 0.5, 0.5, 2.0])
    assert [state.level for state in seen] == pytest.approx([0.25, 0.5, 0.25, 0.5, 0.6, 0.6, 0.35], abs=1e-15)
    assert [state.coefficient for state in seen] == pytest.approx([0.25, 0.5, 0.0, 0.5, 0.6, 0.6, 0.0], abs=1e-15)
    assert [state.band_side for state in seen] == [-1, -1, 1, -1, -1, -1, 1]
    assert [state.at_bound for state in seen] == [False, False, False, False, True, True, False]
    assert [state.bound_hits for state in seen] == [0, 0, 0, 0, 1, 2, 2]


def test_an_entropy_on_the_target_is_not_low() -> None:
    (step,) = states(StepToTargetController(**(STEP | {"init": 0.5})), [1.0])
    assert (step.level, step.coefficient, step.band_side) == (0.25, 0.0, 1)
    (guided,) = states(EntropyGuidedController(**GUIDED), [0.2])
    assert (guided.coefficient, guided.band_side) == (0.05, 1)


def test_before_any_entropy_step_to_target_pays_nothing() -> None:
    controller = StepToTargetController(**(STEP | {"init": 0.5}))
    state = controller.initial_state()
    assert (state.coefficient, state.level, state.at_bound) == (0.0, 0.5, False)
    assert controller.restore(state) == state
    lost = controller.update(state, entropy=math.nan, step=1)
    assert (lost.coefficient, lost.level) == (0.0, 0.5)


def test_at_bound_of_step_to_target_speaks_of_the_level() -> None:
    controller = StepToTargetController(**(STEP | {"init": 0.6}))
    state = controller.update(controller.initial_state(), entropy=3.0, step=1)
    assert (state.coefficient, state.at_bound, state.bound_hits) == (0.0, False, 0)
    on_the_bound = controller.update(dataclasses.replace(state, level=0.25), entropy=3.0, step=2)
    assert (on_the_bound.level, on_the_bound.at_bound, on_the_bound.bound_hits) == (0.0, True, 1)


@pytest.mark.parametrize("seed", range(5))
def test_step_to_target_stays_in_its_bounds_and_pays_its_level_or_nothing(seed: int) -> None:
    generator = random.Random(seed)
    low, high = sorted((generator.random(), generator.random()))
    controller = StepToTargetController(init=low, target=1.0, step_size=generator.random() / 3, min=low, max=high)
    seen = states(controller, [2 * generator.random() for _ in range(200)])
    for state in seen:
        assert low <= state.level <= high
        assert state.coefficient in (0.0, state.level)
    assert {state.coefficient == 0.0 for state in seen} == {True, False}


def test_anchored_target_follows_its_share_of_the_initial_entropy() -> None:
    # H_0 = 2, so H* = 1: 0.05 + 0.1 * 0.5; - 0.1 * 0.25; on the target; + 0.1 * 1; up to the bound; down to the other.
    seen = states(AnchoredTargetController(**ANCHORED), [0.5, 1.25, 1.0, 0.0, 0.0, 9.0])
    assert [state.coefficient for state in seen] == pytest.approx([0.1, 0.075, 0.075, 0.175, 0.2, 0.0], abs=1e-15)
    assert [state.band_side for state in seen] == [-1, 1, 0, -1, -1, 1]
    assert [state.bound_hits for state in seen] == [0, 0, 0, 0, 1, 2]


def test_anchored_target_refuses_to_go_on_without_the_initial_entropy() -> None:
    controller = AnchoredTargetController(**ANCHORED)
    for entropy in (1.0, math.nan):
        with pytest.raises(ValueError, match="observe_initial must come first"):
            controller.update(controller.initial_state(), entropy=entropy, step=1)
    with pytest.raises(ValueError, match="observe_initial must come first"):
        controller.restore(ControllerState(0.1, step=4, entropy=1.0))


def test_entropy_guided_steps_down_while_low_and_up_otherwise() -> None:
    seen = states(EntropyGuidedController(**GUIDED), [0.3, 0.3, 0.1, 0.1, 0.1, 0.25])
    assert [state.coefficient for state in seen] == pytest.approx([0.05, 0.1, 0.05, 0.0, 0.0, 0.05], abs=1e-15)
    assert [state.band_side for state in seen] == [1, 1, -1, -1, -1, 1]
    assert [state.bound_hits for state in seen] == [0, 0, 0, 1, 2, 2]


DOUBLING: dict[str, Any] = {"init": 0.1, "target": 1.0, "min": 0.04, "max": 0.5}


def test_doubling_doubles_halves_and_changes_sign() -> None:
    low, high = 0.5, 1.5
    seen = states(
        DoublingController(**DOUBLING), [low, low, low, high, high, high, high, math.nan, high, low, low, low]
    )
    # .2 .4 .5; .25 .125 .0625, then half of it is below min: -.04; lost; -.08; -.04, +.04, +.08
    expected = [0.2, 0.4, 0.5, 0.25, 0.125, 0.0625, -0.04, -0.04, -0.08, -0.04, 0.04, 0.08]
    assert [state.coefficient for state in seen] == pytest.approx(expected, abs=1e-15)
    assert [state.band_side for state in seen] == [-1, -1, -1, 1, 1, 1, 1, 1, 1, -1, -1, -1]
    assert [state.at_bound for state in seen] == [False, False, True] + [False] * 9
    assert seen[-1].bound_hits == 1
    assert states(DoublingController(**DOUBLING), [1.0])[0].coefficient == 0.05


def test_a_restored_doubling_coefficient_keeps_its_sign() -> None:
    controller = DoublingController(**DOUBLING)
    for saved, expected in ((-0.9, -0.5), (-0.01, -0.04), (0.3, 0.3)):
        state = ControllerState(saved, step=4, entropy=1.2, band_side=1)
        assert controller.restore(state) == dataclasses.replace(
            state, coefficient=expected, at_bound=abs(expected) == 0.5
        )
    assert DoublingController(**(DOUBLING | {"init": -0.1})).initial_state().coefficient == -0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init": 0.01}, r"init=0\.01 .* in \[0\.04, 0\.5\], or the same below 0"),
        ({"init": -0.6}, r"init=-0\.6 .* in \[0\.04, 0\.5\]"),
        ({"min": 0.0}, r"min=0\.0 .* > 0"),
        ({"max": 0.03}, r"max=0\.03 .* >= min=0\.04"),
        ({"target": -1.0}, r"target=-1\.0 .* >= 0 nats"),
        *(({key: math.nan}, f"{key}=nan .* finite number") for key in DOUBLING),
    ],
    ids=str,
)
def test_invalid_settings_of_doubling(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        DoublingController(**(DOUBLING | change))


def test_entropy_guided_with_smoothing_compares_the_moving_average() -> None:
    controller = EntropyGuidedController(**(GUIDED | {"init": 0.5, "smoothing": 0.75}))
    seen = states(controller, [0.1, 0.4, math.nan, 0.8, 0.1])
    # 0.1; 0.75 * 0.1 + 0.25 * 0.4 = 0.175; lost; 0.13125 + 0.2 = 0.33125; 0.2484375 + 0.025 = 0.2734375
    averages = [0.1, 0.175, 0.175, 0.33125, 0.2734375]
    assert [state.entropy_smoothed for state in seen] == pytest.approx(averages, abs=1e-15)
    assert [state.coefficient for state in seen] == pytest.approx([0.45, 0.4, 0.4, 0.45, 0.5], abs=1e-15)
    assert [state.band_side for state in seen] == [-1, -1, -1, 1, 1]
    assert [state.entropy for state in seen] == [0.1, 0.4, 0.4, 0.8, 0.1]


def test_the_paper_s_values_are_the_defaults() -> None:
    assert EntropyGuidedController() == EntropyGuidedController(**GUIDED)
    given = {"target": 0.2, "step_size": 1e-4, "min": 0.0, "max": 0.005}
    assert StepToTargetController(**given).init == 0.0
    anchored = AnchoredTargetController(tau=0.4, eta=0.1, max=0.2)
    assert (anchored.init, anchored.min) == (0.0, 0.0)


@each
@pytest.mark.parametrize("entropy", [math.nan, math.inf, -math.inf])
def test_an_entropy_that_is_not_finite_is_counted_and_changes_nothing(controller: Controller, entropy: float) -> None:
    *_, state = states(controller, [0.1, 0.7, 0.1])
    after = controller.update(state, entropy=entropy, step=4)
    assert after == dataclasses.replace(state, step=4, nonfinite=1)


@each
def test_it_rises_or_falls_to_its_bound_stays_there_and_comes_back(controller: Any) -> None:
    """A low entropy raises a bonus and lowers the weight of positive advantages; a high one does the reverse."""
    seen = states(controller, [0.0] * 60 + [4.0] * 60)
    up = not isinstance(controller, EntropyGuidedController)
    low, high = [moving(state) for state in seen[:60]], [moving(state) for state in seen[60:]]
    assert low == sorted(low, reverse=not up)
    assert high == sorted(high, reverse=up)
    assert low[-1] == (controller.max if up else controller.min)
    assert high[-1] == (controller.min if up else controller.max)
    assert seen[-1].bound_hits == sum(state.at_bound for state in seen)
    assert all(state.at_bound == (moving(state) in (controller.min, controller.max)) for state in seen)


@each
def test_the_initial_state_says_whether_it_stands_on_a_bound(controller: Any) -> None:
    assert controller.initial_state().bound_hits == 0
    for init, expected in ((controller.min, True), (controller.max, True), (0.55 * controller.max, False)):
        assert dataclasses.replace(controller, init=init).initial_state().at_bound is expected


@pytest.mark.parametrize("name", ["band", "anchored_target", "entropy_guided"])
def test_restore_brings_the_coefficient_under_the_present_settings(name: str) -> None:
    controller: Any = EACH[name]
    state = ControllerState(2.0, step=4, entropy=1.0, nonfinite=1, bound_hits=3, initial_entropy=1.5)
    above = controller.restore(state)
    assert above == dataclasses.replace(state, coefficient=controller.max, at_bound=True)
    below = controller.restore(dataclasses.replace(state, coefficient=-1.0))
    assert below == dataclasses.replace(state, coefficient=controller.min, at_bound=True)
    inside = dataclasses.replace(state, coefficient=0.6 * controller.max, at_bound=True)
    assert controller.restore(inside) == dataclasses.replace(inside, at_bound=False)


def test_restore_of_step_to_target_clips_the_level_and_asks_the_gate_again() -> None:
    state = StepToTargetState(0.0, step=4, entropy=1.2, band_side=1, level=0.9)
    controller = StepToTargetController(**STEP)
    assert controller.restore(state) == dataclasses.replace(state, level=0.6, at_bound=True)
    higher_target = dataclasses.replace(controller, target=1.5, max=2.0)
    assert higher_target.restore(state) == dataclasses.replace(state, coefficient=0.9)
    on_target = dataclasses.replace(controller, target=1.2, max=2.0)
    assert on_target.restore(state) == state


def test_step_to_target_refuses_a_state_without_level() -> None:
    controller, state = StepToTargetController(**STEP), ControllerState(0.1)
    with pytest.raises(ValueError, match="the controller state has no level: it is not one of a step_to_target"):
        controller.restore(state)
    with pytest.raises(ValueError, match="the controller state has no level: it is not one of a step_to_target"):
        controller.update(state, entropy=0.5, step=1)


BOUNDED: list[tuple[dict[str, Any], str]] = [
    ({"init": -0.1}, r"init=-0\.1 .* in \[min, max\] = "),
    ({"init": 1.1}, r"init=1\.1 .* in \[min, max\] = "),
    ({"max": 0.1, "min": 0.2}, r"max=0\.1 .* >= min=0\.2"),
    ({"init": "a"}, r"init='a' .* finite number"),
    ({"init": None}, r"init=None .* finite number"),
    ({"min": -math.inf}, r"min=-inf .* finite number"),
    ({"max": math.inf}, r"max=inf .* finite number"),
    ({"max": True}, r"max=True .* finite number"),
]
INVALID: dict[str, list[tuple[dict[str, Any], str]]] = {
    "band": [
        ({"low": 2.5}, r"high=2\.0 .* >= low=2\.5"),
        ({"low": -0.1}, r"low=-0\.1 .* >= 0 nats"),
        ({"lr": -1e-3}, r"lr=-0\.001 .* >= 0"),
        ({"reg": -1}, r"reg=-1 .* >= 0"),
        ({"warmup_steps": -1}, r"warmup_steps=-1 .* integer >= 0"),
        ({"warmup_steps": 1.5}, r"warmup_steps=1\.5 .* integer >= 0"),
        ({"warmup_steps": True}, r"warmup_steps=True .* integer >= 0"),
        ({"warmup_steps": None}, r"warmup_steps=None .* integer >= 0"),
    ],
    "step_to_target": [
        ({"min": -0.1}, r"min=-0\.1 .* >= 0"),
        ({"target": -0.1}, r"target=-0\.1 .* >= 0 nats"),
        ({"step_size": -0.1}, r"step_size=-0\.1 .* >= 0"),
    ],
    "anchored_target": [
        ({"tau": 0}, r"tau=0 .* > 0"),
        ({"tau": -0.4}, r"tau=-0\.4 .* > 0"),
        ({"eta": -0.1}, r"eta=-0\.1 .* >= 0"),
    ],
    "entropy_guided": [
        ({"min": -0.1}, r"min=-0\.1 .* >= 0"),
        ({"max": 1.5}, r"max=1\.5 .* <= 1"),
        ({"target": -0.1}, r"target=-0\.1 .* >= 0 nats"),
        ({"step_size": -0.1}, r"step_size=-0\.1 .* >= 0"),
        ({"smoothing": -0.1}, r"smoothing=-0\.1 .* in \[0, 1\)"),
        ({"smoothing": 1.0}, r"smoothing=1\.0 .* in \[0, 1\)"),
    ],
}
NUMBERS = {
    "band": ("low", "high", "lr", "reg"),
    "step_to_target": ("target", "step_size"),
    "anchored_target": ("tau", "eta"),
    "entropy_guided": ("target", "step_size", "smoothing"),
}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [(name, *case) for name, cases in INVALID.items() for case in BOUNDED + cases]
    + [(name, {key: math.nan}, f"{key}=nan .* finite number") for name, keys in NUMBERS.items() for key in keys]
    + [(name, {key: "1"}, f"{key}='1' .* finite number") for name, keys in NUMBERS.items() for key in keys],
    ids=str,
)
def test_invalid_settings_name_key_value_and_range(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        dataclasses.replace(EACH[name], **change)


@each
def test_the_ends_of_the_ranges_are_legal(controller: Any) -> None:
    zero = {"lr", "reg", "low", "warmup_steps", "target", "step_size", "eta", "smoothing"}
    for key in zero & {field.name for field in dataclasses.fields(controller)}:
        dataclasses.replace(controller, **{key: 0})
    dataclasses.replace(controller, init=0.3, min=0.3, max=0.3)
    if isinstance(controller, BandController):
        dataclasses.replace(controller, high=controller.low)
