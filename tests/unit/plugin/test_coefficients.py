"""The run's shared state: a step is applied once, and a change comes into force between two steps."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from aent_verl.core.controllers import (
    BandController,
    ConstantController,
    Controller,
    ControllerState,
    EntropyGuidedController,
    LinearDecayController,
    StepToTargetController,
)
from aent_verl.methods.axes import Linear, PositiveReweight
from aent_verl.methods.settings import AdvantagesConfig, BonusConfig, EntropyControlConfig, FunctionalConfig
from aent_verl.plugin.coefficients import HISTORY, Coefficients, Snapshot, metrics

BAND = BandController(init=0.1, low=0.5, high=1.0, lr=0.1, warmup_steps=1, min=0.0, max=1.0)
LOW = "entropy_control.bonus.controller.low"


def settings(controller: Controller = BAND, **more: Any) -> EntropyControlConfig:
    return EntropyControlConfig("aent", FunctionalConfig("clamped", 0.3), BonusConfig(Linear(), controller), **more)


def both() -> EntropyControlConfig:
    guided = AdvantagesConfig(PositiveReweight(), EntropyGuidedController(init=0.5))
    return settings(advantages=guided)


def started(control: EntropyControlConfig | None = None) -> Coefficients:
    control = control or settings()
    return Coefficients(control, control.controllers, {"run": "mine"})


def train(coefficients: Coefficients, step: int, entropy: float) -> tuple[float, float]:
    """Do one training step; return the coefficient during it and after."""
    before = coefficients.begin(step)
    after = coefficients.update({"bonus": entropy, "advantages": entropy}, step=step)
    return before.coefficient("bonus", step), after.coefficient("bonus", step + 1)


def test_one_step_is_one_update_of_each_controller() -> None:
    coefficients, band, state = started(), BAND, BAND.initial_state()
    for step, entropy in enumerate([0.2, 1.4, 0.7, float("nan"), 0.1], start=1):
        used, following = train(coefficients, step, entropy)
        assert used == state.coefficient
        state = band.update(state, entropy=entropy, step=step)
        assert following == state.coefficient
    assert coefficients.snapshot().states["bonus"] == state
    assert coefficients.snapshot().step == 5


def test_a_repeated_call_changes_nothing() -> None:
    coefficients = started()
    assert coefficients.begin(1) == coefficients.begin(1)
    once = coefficients.update({"bonus": 0.2, "advantages": 0.2}, step=1)
    assert coefficients.update({"bonus": 0.2, "advantages": 0.2}, step=1) == once
    assert coefficients.update({"bonus": 9.0, "advantages": 9.0}, step=1) == once
    assert len(coefficients.status()["history"]) == 1


def test_what_is_out_of_order_is_refused_and_changes_nothing() -> None:
    coefficients = started()
    train(coefficients, 3, 0.2)  # the first steps had no update of the actor
    before = coefficients.snapshot()
    entropies = {"bonus": 0.2, "advantages": 0.2}
    with pytest.raises(ValueError, match=r"step 4 is out of order: .* seen step 3, and no step is open"):
        coefficients.update(entropies, step=4)
    for step in (2, 3):
        with pytest.raises(ValueError, match=f"step {step} cannot begin: the controllers have seen step 3"):
            coefficients.begin(step)
    coefficients.begin(4)
    for step in (2, 3, 5):
        with pytest.raises(ValueError, match=f"step {step} is out of order: .* step 4 is open"):
            coefficients.update(entropies, step=step)
    with pytest.raises(ValueError, match=r"step 5 cannot begin: .* step 4 is open"):
        coefficients.begin(5)
    assert coefficients.snapshot() == before


def test_a_change_during_a_step_is_in_force_from_the_next_one_on() -> None:
    coefficients, state = started(), BAND.initial_state()
    train(coefficients, 1, 0.2)
    state = BAND.update(state, entropy=0.2, step=1)
    coefficients.begin(2)
    answer = coefficients.change({"low": 0.1, "lr": 0.5}, by="ann@node")
    assert answer["step"] == 3
    assert [text.split(" (by ann@node, ")[0] for text in answer["changes"]] == [
        f"{LOW}: 0.5 -> 0.1 from step 3 on",
        "entropy_control.bonus.controller.lr: 0.1 -> 0.5 from step 3 on",
    ]
    assert coefficients.snapshot().controllers["bonus"] == BAND
    after = coefficients.update({"bonus": 0.2, "advantages": 0.2}, step=2)
    state = BAND.update(state, entropy=0.2, step=2)
    assert after.states["bonus"] == state
    changed = BandController(**vars(BAND) | {"low": 0.1, "lr": 0.5})
    assert after.controllers["bonus"] == changed
    train(coefficients, 3, 0.05)
    assert coefficients.snapshot().states["bonus"] == changed.update(state, entropy=0.05, step=3)
    assert [change.step for change in coefficients.snapshot().changes] == [3, 3]


def test_a_change_between_two_steps_is_in_force_in_the_second() -> None:
    coefficients = started()
    train(coefficients, 1, 0.2)
    assert coefficients.change({"coefficient": 0.7}, by="ann")["step"] == 2
    assert train(coefficients, 2, 0.7) == (0.7, 0.7)
    coefficients.change({"max": 0.6, "init": 0.6}, by="ann")
    assert coefficients.begin(3).coefficient("bonus", 3) == 0.6


def test_changes_build_on_those_that_wait() -> None:
    coefficients = started()
    coefficients.begin(1)
    coefficients.change({"low": 0.8}, by="ann")
    with pytest.raises(ValueError, match=r"bonus.controller.high=0.7 is not allowed: must be >= low=0.8"):
        coefficients.change({"high": 0.7}, by="bob")
    (said,) = coefficients.change({"low": 0.9}, by="bob")["changes"]
    assert said.startswith(f"{LOW}: 0.8 -> 0.9 from step 2 on (by bob")
    after = coefficients.update({"bonus": 0.2, "advantages": 0.2}, step=1)
    assert [(change.old, change.new, change.by) for change in after.changes] == [(0.5, 0.8, "ann"), (0.8, 0.9, "bob")]


def test_a_change_that_waited_is_made_once() -> None:
    coefficients = started()
    coefficients.begin(1)
    coefficients.change({"low": 0.8}, by="ann")
    coefficients.update({"bonus": 0.2, "advantages": 0.2}, step=1)
    coefficients.change({"low": 0.6}, by="ann")
    train(coefficients, 2, 0.2)
    assert vars(coefficients.snapshot().controllers["bonus"])["low"] == 0.6
    assert len(coefficients.snapshot().changes) == 2


def test_a_value_in_force_already_changes_nothing() -> None:
    coefficients = started()
    train(coefficients, 1, 0.2)
    assert coefficients.change({"low": 0.5}, by="ann")["changes"] == []
    assert coefficients.snapshot().changes == ()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"low": -1}, r"entropy_control.bonus.controller.low=-1 is not allowed: must be >= 0 nats"),
        ({"low": "much"}, r"bonus.controller.low='much' is not allowed: must be a finite number"),
        ({"low": 1.5}, r"bonus.controller.high=1.0 is not allowed: must be >= low=1.5"),
        ({"low": 0.1, "high": 0.05}, r"bonus.controller.high=0.05 is not allowed"),
        ({"warmup_steps": 1.5}, r"bonus.controller.warmup_steps=1.5 is not allowed: must be an integer >= 0"),
        ({"coefficient": 2.0}, r"bonus.coefficient=2.0 is not allowed: with BandController.*max=1.0.* becomes 1.0"),
        ({"coefficient": True}, r"bonus.coefficient=True is not allowed: must be a number"),
        ({"reg": None}, r"reg=None is not allowed: give a value"),
        ({"target": 0.1}, r"target cannot be changed while method aent runs; these can: bonus.coefficient, bonus.init"),
        ({"advantages.init": 0.1}, r"advantages.init cannot be changed"),
        ({"clamp_p": 0.1}, r"clamp_p cannot be changed"),
        ({"low": 0.1, "bonus.low": 0.2}, r"bonus.low is given twice: it is entropy_control.bonus.controller.low"),
    ],
)
def test_what_the_config_would_refuse_is_refused_whole(asked: dict[str, Any], message: str) -> None:
    coefficients = started()
    train(coefficients, 1, 0.2)
    before = coefficients.snapshot()
    with pytest.raises(ValueError, match=message):
        coefficients.change({"lr": 0.3} | asked, by="ann")
    assert coefficients.snapshot() == before
    coefficients.begin(2)
    with pytest.raises(ValueError, match=message):
        coefficients.change({"lr": 0.3} | asked, by="ann")
    assert coefficients.update({"bonus": 0.7, "advantages": 0.7}, step=2).controllers == before.controllers


def test_a_setting_of_both_controllers_needs_its_axis() -> None:
    coefficients = started(both())
    train(coefficients, 1, 0.2)
    with pytest.raises(ValueError, match=r"min is ambiguous: write bonus.min or advantages.min"):
        coefficients.change({"min": 0.1}, by="ann")
    coefficients.change({"advantages.min": 0.1, "target": 0.4, "bonus.min": 0.01}, by="ann")
    now = coefficients.begin(2)
    assert vars(now.controllers["advantages"])["min"] == 0.1
    assert vars(now.controllers["advantages"])["target"] == 0.4
    assert vars(now.controllers["bonus"])["min"] == 0.01
    with pytest.raises(ValueError, match=r"advantages.controller.max=2.0 is not allowed"):
        coefficients.change({"advantages.max": 2.0}, by="ann")


@dataclass(frozen=True, kw_only=True)
class Twice(ConstantController):
    """A controller from elsewhere."""

    def coefficient_at(self, step: int) -> float:
        return 2 * self.init


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        (ConstantController(init=0.5), r"advantages.controller.init=0.75 is not allowed: must be in \[0, 0.7\]"),
        (Twice(init=0.2), r"advantages.controller.name=tests.*:Twice gave the coefficient 1.5: it must .* \[0, 0.8\]"),
    ],
)
def test_the_range_of_the_advantages_holds(
    controller: Controller, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a controller from elsewhere nobody knows which setting is out of range."""
    monkeypatch.setattr(PositiveReweight, "coefficient_range", (0.0, 0.7 if type(controller) is not Twice else 0.8))
    coefficients = started(settings(advantages=AdvantagesConfig(PositiveReweight(), controller)))
    train(coefficients, 1, 0.2)
    with pytest.raises(ValueError, match=message):
        coefficients.change({"advantages.init": 0.75}, by="ann")


def test_a_schedule_is_changed_by_its_settings_alone() -> None:
    coefficients = started(settings(ConstantController(init=0.1)))
    train(coefficients, 1, 0.2)
    with pytest.raises(ValueError, match=r"bonus.coefficient=0.3 is not allowed: with ConstantController\(init=0.1\)"):
        coefficients.change({"coefficient": 0.3}, by="ann")
    coefficients.change({"init": 0.3}, by="ann")
    assert train(coefficients, 2, 0.2) == (0.3, 0.3)


def test_a_change_without_effect_says_so() -> None:
    coefficients = started()
    train(coefficients, 1, 0.2)
    (said,) = coefficients.change({"lr": 0.0}, by="ann")["warnings"]
    assert "entropy_control.bonus.controller.lr=0.0 has no effect: the coefficient never moves" in said


def test_a_coefficient_that_its_gate_has_closed_meanwhile_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Skywork's coefficient is its level, or 0: what is allowed during a step may not be after it."""
    gated = StepToTargetController(init=0.2, target=0.5, step_size=0.1, min=0.0, max=1.0)
    coefficients = started(settings(gated))
    train(coefficients, 1, 0.2)
    level = coefficients.begin(2).coefficient("bonus", 2)
    assert level == pytest.approx(0.3)
    coefficients.change({"coefficient": level, "step_size": 0.2}, by="ann")
    after = coefficients.update({"bonus": 0.9, "advantages": 0.9}, step=2)
    assert after.controllers["bonus"] == gated
    assert "a change that was asked for during step 2 is dropped: entropy_control.bonus.coefficient" in caplog.text


def test_a_run_can_forbid_changes_or_not_have_begun() -> None:
    coefficients = started(settings(live_changes=False))
    train(coefficients, 1, 0.2)
    with pytest.raises(ValueError, match=r"entropy_control\.live_changes=false"):
        coefficients.change({"low": 0.1}, by="ann")
    with pytest.raises(ValueError, match="has not begun its first step"):
        started().change({"low": 0.1}, by="ann")


def test_the_status_is_json() -> None:
    coefficients = started(both())
    assert coefficients.status()["begun"] is False
    for step in range(1, HISTORY + 3):
        train(coefficients, step, 0.2)
    coefficients.change({"low": 0.1}, by="ann")
    found = json.loads(json.dumps(coefficients.status(), allow_nan=False))
    assert (found["run"], found["step"], found["begun"]) == ("mine", HISTORY + 2, True)
    assert found["axes"]["bonus"]["settings"]["low"] == 0.1
    assert found["axes"]["bonus"]["controller"] == "band"
    assert found["axes"]["advantages"]["controller"] == "entropy_guided"
    assert len(found["history"]) == HISTORY
    assert found["history"][-1]["bonus"] == {"coefficient": 1.0, "entropy": 0.2}
    assert found["changes"][0]["key"] == LOW
    assert 0 <= found["seconds_since_step"] < 60
    assert list(started().status()["axes"]) == ["bonus"]


def test_a_restored_run_goes_on_after_its_step() -> None:
    coefficients = started()
    coefficients.restore(Snapshot(7, settings().controllers, {"bonus": ControllerState(0.3, step=7)}))
    with pytest.raises(ValueError, match="step 7 cannot begin"):
        coefficients.begin(7)
    assert coefficients.begin(8).coefficient("bonus", 8) == 0.3


def test_the_metrics_of_a_step() -> None:
    decay = LinearDecayController(init=1.0, final=0.0, total_steps=11)
    coefficients = started(settings(decay))
    before = coefficients.begin(6)
    after = coefficients.update({"bonus": 0.2, "advantages": 0.3}, step=6)
    found = metrics(before, after, 6)
    assert (found["aent/coefficient"], found["aent/coefficient_next"]) == (0.5, 0.4)
    assert (found["aent/entropy_mean"], found["aent/live_changes"]) == (None, 0)
    coefficients.change({"final": 0.2}, by="ann")
    before = coefficients.begin(7)
    assert metrics(before, coefficients.update({"bonus": 0.2, "advantages": 0.3}, step=7), 7)["aent/live_changes"] == 1
