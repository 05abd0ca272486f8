"""Controllers that follow the step alone: hand-computed runs, one-step runs, and lengths that the run fills in."""

import dataclasses
import itertools
import math
from typing import Any

import pytest

from aent_verl.core.controllers import (
    Controller,
    ControllerState,
    EpochController,
    LinearDecayController,
    StageController,
)

THIRD = 1 / 3


def coefficients(controller: Controller, steps: int, entropy: float = 1.0) -> list[float]:
    """Those in force at training steps 1 to ``steps``."""
    state = controller.initial_state()
    out = [state.coefficient]
    for step in range(1, steps):
        state = controller.update(state, entropy=entropy, step=step)
        out.append(state.coefficient)
    return out


@pytest.mark.parametrize(
    ("init", "final", "total", "expected"),
    [
        (1.0, 0.0, 5, [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]),
        (0.1, 0.3, 3, [0.1, 0.2, 0.3, 0.3]),
        (0.4, 0.1, 2, [0.4, 0.1, 0.1]),
        (0.4, 0.1, 1, [0.4, 0.1]),
        (0.2, 0.2, 3, [0.2, 0.2, 0.2, 0.2]),
    ],
)
def test_linear_decay_is_a_straight_line(init: float, final: float, total: int, expected: list[float]) -> None:
    controller = LinearDecayController(init=init, final=final, total_steps=total)
    assert coefficients(controller, len(expected)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("total", [2, 3, 7, 1000])
def test_linear_decay_ends_exactly_on_final(total: int) -> None:
    values = coefficients(LinearDecayController(init=0.7, final=0.1, total_steps=total), total + 2)
    assert values[0] == 0.7
    assert values[total - 1 :] == [0.1, 0.1, 0.1]
    assert all(before > after for before, after in itertools.pairwise(values[:total]))


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        # f = 0, 1/4, 1/2, 3/4, 1
        (5, [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]),
        # f = 0, 1/3, 2/3, 1
        (4, [0.0, 0.0, THIRD, 1.0, 1.0]),
        (3, [0.0, 0.0, 1.0, 1.0]),
        (2, [0.0, 1.0, 1.0]),
        (1, [1.0, 1.0]),
    ],
)
def test_stage_is_zero_for_half_the_run_then_linear(total: int, expected: list[float]) -> None:
    assert coefficients(StageController(total_steps=total), len(expected)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("total", "per_epoch", "expected"),
    [
        (6, 2, [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0]),
        # The last epoch is cut short; beyond the run the weight stays.
        (5, 2, [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]),
        (4, 1, [0.0, THIRD, 2 * THIRD, 1.0, 1.0]),
        (6, 5, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]),
        (5, 5, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (3, 5, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_epoch_goes_from_none_in_the_first_epoch_to_all_in_the_last(
    total: int, per_epoch: int, expected: list[float]
) -> None:
    controller = EpochController(total_steps=total, steps_per_epoch=per_epoch)
    assert coefficients(controller, len(expected)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("total", [1, 2, 9, 10, 101])
def test_the_weights_of_positive_advantages_rise_from_0_to_1(total: int) -> None:
    for controller in (StageController(total_steps=total), EpochController(total_steps=total, steps_per_epoch=3)):
        values = coefficients(controller, total + 5)
        assert values == sorted(values)
        assert set(values[total - 1 :]) == {1.0}
        assert all(0 <= value <= 1 for value in values)


SCHEDULES: dict[str, Controller] = {
    "linear_decay": LinearDecayController(init=1.0, final=0.0, total_steps=5),
    "stage": StageController(total_steps=5),
    "epoch": EpochController(total_steps=5, steps_per_epoch=2),
}
each = pytest.mark.parametrize("controller", SCHEDULES.values(), ids=SCHEDULES.keys())


@each
@pytest.mark.parametrize("entropy", [math.nan, math.inf, -5.0])
def test_the_entropy_does_not_matter(controller: Controller, entropy: float) -> None:
    assert coefficients(controller, 8, entropy=entropy) == coefficients(controller, 8)


@each
def test_a_schedule_stands_on_no_bound(controller: Controller) -> None:
    state = controller.update(controller.initial_state(), entropy=1.0, step=9)
    assert (state.at_bound, state.bound_hits, state.band_side, state.step, state.entropy) == (False, 0, 0, 9, 1.0)


def test_restore_takes_the_step_from_the_state_and_the_rest_from_the_settings() -> None:
    state = ControllerState(0.123, step=3, entropy=1.0, nonfinite=1)
    line = LinearDecayController(init=1.0, final=0.0, total_steps=7)
    assert line.restore(state) == dataclasses.replace(state, coefficient=0.5)
    # f = 3/4 at the fourth of five steps.
    assert StageController(total_steps=5).restore(state).coefficient == 0.5
    assert EpochController(total_steps=9, steps_per_epoch=3).restore(state).coefficient == 0.5


def test_the_run_fills_in_the_lengths_that_the_settings_leave_open() -> None:
    line = LinearDecayController(init=1.0, final=0.0)
    assert line.for_run(total_steps=5, steps_per_epoch=2) == dataclasses.replace(line, total_steps=5)
    assert StageController().for_run(total_steps=5, steps_per_epoch=2) == StageController(total_steps=5)
    run = {"total_steps": 5, "steps_per_epoch": 2}
    assert EpochController().for_run(**run) == EpochController(**run)
    assert EpochController(total_steps=9).for_run(**run) == EpochController(total_steps=9, steps_per_epoch=2)
    assert EpochController(steps_per_epoch=4).for_run(**run) == EpochController(total_steps=5, steps_per_epoch=4)


@pytest.mark.parametrize(
    ("controller", "key"),
    [
        (LinearDecayController(init=1.0, final=0.0), "total_steps"),
        (StageController(), "total_steps"),
        (EpochController(steps_per_epoch=2), "total_steps"),
        (EpochController(total_steps=4), "steps_per_epoch"),
    ],
    ids=str,
)
def test_without_the_length_of_the_run_a_schedule_says_what_sets_it(controller: Controller, key: str) -> None:
    message = rf"^{key}=None is not allowed: must be an integer >= 1; for_run sets it"
    with pytest.raises(ValueError, match=message):
        controller.initial_state()
    with pytest.raises(ValueError, match=message):
        controller.update(ControllerState(0.0), entropy=1.0, step=1)
    with pytest.raises(ValueError, match=message):
        controller.restore(ControllerState(0.0))


@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, "3", math.nan])
@pytest.mark.parametrize(
    ("name", "key"),
    [("linear_decay", "total_steps"), ("stage", "total_steps"), ("epoch", "total_steps"), ("epoch", "steps_per_epoch")],
)
def test_invalid_lengths_name_key_value_and_range(name: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key}={value!r} is not allowed: must be an integer >= 1"):
        dataclasses.replace(SCHEDULES[name], **{key: value})
    lengths: dict[str, Any] = {"total_steps": 5, "steps_per_epoch": 2} | {key: value}
    open_length: Controller = dataclasses.replace(SCHEDULES[name], **{key: None})
    with pytest.raises(ValueError, match=f"^{key}="):
        open_length.for_run(**lengths)


@pytest.mark.parametrize("key", ["init", "final"])
@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1", True])
def test_invalid_ends_of_the_line(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{key}={value!r} is not allowed: must be a finite number"):
        dataclasses.replace(SCHEDULES["linear_decay"], **{key: value})
