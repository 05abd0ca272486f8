"""Controllers against hand-computed sequences, their bounds, and the JSON round trip of their state."""

import dataclasses
import json
import math

import pytest

from aent_verl.core.controllers import BandController, ConstantController, ControllerState

BAND = {"init": 0.5, "low": 1.0, "high": 2.0, "lr": 0.1, "warmup_steps": 1, "min": 0.25, "max": 0.75}


def coefficients(controller: BandController, entropies: list[float]) -> list[float]:
    state, out = controller.initial_state(), []
    for step, entropy in enumerate(entropies, start=1):
        state = controller.update(state, entropy=entropy, step=step)
        out.append(state.coefficient)
    return out


def test_below_the_band_the_coefficient_rises_by_lr_times_the_distance() -> None:
    # 0.5 + 0.1 * 0.5 = 0.55; then + 0.1 * 0.25
    assert coefficients(BandController(**BAND), [0.5, 0.75]) == pytest.approx([0.55, 0.575], abs=1e-15)


def test_above_the_band_it_falls_by_lr_times_the_distance() -> None:
    assert coefficients(BandController(**BAND), [2.5, 3.0]) == pytest.approx([0.45, 0.35], abs=1e-15)


@pytest.mark.parametrize("entropy", [1.0, 1.5, 2.0])
def test_inside_the_band_ends_included_it_stays(entropy: float) -> None:
    assert coefficients(BandController(**BAND), [entropy]) == [0.5]


def test_the_last_warm_up_step_is_the_one_before_warmup_steps() -> None:
    controller = BandController(**(BAND | {"warmup_steps": 3}))
    assert coefficients(controller, [0.0, 0.0, 0.0, 0.0]) == pytest.approx([0.5, 0.5, 0.6, 0.7], abs=1e-15)


def test_no_warm_up() -> None:
    assert coefficients(BandController(**(BAND | {"warmup_steps": 0})), [0.0]) == pytest.approx([0.6], abs=1e-15)


def test_both_bounds_hold_and_are_reported() -> None:
    controller = BandController(**BAND)
    state = controller.update(controller.initial_state(), entropy=-100.0, step=1)
    assert (state.coefficient, state.at_bound, state.band_side) == (0.75, True, -1)
    state = controller.update(state, entropy=100.0, step=2)
    assert (state.coefficient, state.at_bound, state.band_side) == (0.25, True, 1)
    state = controller.update(state, entropy=0.9, step=3)
    assert state.coefficient == pytest.approx(0.26, abs=1e-15)
    assert (state.at_bound, state.band_side) == (False, -1)


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


@pytest.mark.parametrize("kind", [BandController(**BAND), ConstantController(init=0.3)], ids=["band", "constant"])
@pytest.mark.parametrize("entropy", [math.nan, math.inf, -math.inf])
def test_an_entropy_that_is_not_finite_is_counted_and_changes_nothing(kind: BandController, entropy: float) -> None:
    state = kind.update(kind.initial_state(), entropy=0.7, step=1)
    after = kind.update(state, entropy=entropy, step=2)
    assert after == dataclasses.replace(state, step=2, nonfinite=1)


def test_update_is_pure() -> None:
    controller = BandController(**BAND)
    state = controller.initial_state()
    controller.update(state, entropy=0.0, step=1)
    assert state == controller.initial_state()
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.coefficient = 1.0  # type: ignore[misc]


def test_constant_never_moves_but_records() -> None:
    controller = ConstantController(init=0.3)
    state = controller.update(controller.initial_state(), entropy=9.0, step=4)
    assert state == ControllerState(coefficient=0.3, step=4, entropy=9.0)


def test_observe_initial_changes_neither() -> None:
    for controller in (BandController(**BAND), ConstantController(init=0.3)):
        state = controller.initial_state()
        assert controller.observe_initial(state, entropy=1.0) == state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": 2.5}, r"high=2\.0 .* >= low=2\.5"),
        ({"low": -0.1}, r"low=-0\.1 .* >= 0 nats"),
        ({"min": 0.8}, r"max=0\.75 .* >= min=0\.8"),
        ({"init": 0.8}, r"init=0\.8 .* in \[min, max\] = \[0\.25, 0\.75\]"),
        ({"init": 0.2}, r"init=0\.2 .* in \[min, max\]"),
        ({"lr": -1e-3}, r"lr=-0\.001 .* >= 0"),
        ({"reg": -1}, r"reg=-1 .* >= 0"),
        ({"warmup_steps": -1}, r"warmup_steps=-1 .* integer >= 0"),
        ({"warmup_steps": 1.5}, r"warmup_steps=1\.5 .* integer >= 0"),
        ({"warmup_steps": True}, r"warmup_steps=True .* integer >= 0"),
        ({"lr": math.nan}, r"lr=nan .* finite number"),
        ({"max": math.inf}, r"max=inf .* finite number"),
        ({"init": "a"}, r"init='a' .* finite number"),
        ({"init": None}, r"init=None .* finite number"),
    ],
    ids=str,
)
def test_illegal_band_settings_name_key_value_and_range(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BandController(**(BAND | change))  # type: ignore[arg-type]


def test_illegal_constant() -> None:
    with pytest.raises(ValueError, match=r"init=nan .* finite number"):
        ConstantController(init=math.nan)


def test_state_survives_json_exactly() -> None:
    state = ControllerState(0.1 + 0.2, step=7, entropy=1 / 3, band_side=-1, at_bound=True, nonfinite=2)
    assert ControllerState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@pytest.mark.parametrize(
    "change",
    [
        {"coefficient": math.nan},
        {"coefficient": None},
        {"coefficient": True},
        {"entropy": "1"},
        {"step": 1.0},
        {"at_bound": 1},
        {"nonfinite": None},
        {"extra": 1},
    ],
    ids=str,
)
def test_damaged_state_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="controller state"):
        ControllerState.from_dict(ControllerState(0.1).to_dict() | change)


def test_state_with_a_missing_field_is_refused() -> None:
    data = ControllerState(0.1).to_dict()
    del data["nonfinite"]
    with pytest.raises(ValueError, match="nonfinite"):
        ControllerState.from_dict(data)


def test_restore_brings_the_coefficient_under_the_present_settings() -> None:
    state = ControllerState(0.9, step=4, entropy=1.0, nonfinite=1)
    band = BandController(**BAND)
    assert band.restore(state) == dataclasses.replace(state, coefficient=0.75, at_bound=True)
    inside = ControllerState(0.3, step=4)
    assert band.restore(inside) == inside
    assert ConstantController(init=0.2).restore(state) == dataclasses.replace(state, coefficient=0.2)
