"""The state file: exact round trip, atomic, and a message with a way out for each way it can be unusable."""

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from aent_verl.core.controllers import (
    BandController,
    ConstantController,
    ControllerState,
    EntropyGuidedController,
    EntropyGuidedState,
    EpochController,
    LinearDecayController,
    StageController,
    StepToTargetController,
    StepToTargetState,
)
from aent_verl.core.diagnostics import EntropyChange
from aent_verl.methods.axes import AllTokens, Anchored, Linear, LinearDifficulty, PeakTokens, PositiveReweight
from aent_verl.methods.settings import (
    ADVANTAGES_CONTROLLERS,
    BONUS_CONTROLLERS,
    AdvantagesConfig,
    BonusConfig,
    EntropyControlConfig,
    FunctionalConfig,
)
from aent_verl.plugin import saved_state
from aent_verl.plugin.saved_state import NAME, RESTART, StateFileError, read, write
from aent_verl.runs.live_changes import Change

BAND = BandController(init=0.1, low=0.1, high=0.2, lr=0.1, warmup_steps=0, min=0.0, max=1.0)
CONTROL = EntropyControlConfig("aent", FunctionalConfig("clamped", 0.33), BonusConfig(Linear(), BAND))
CONSTANT = EntropyControlConfig("entreg", FunctionalConfig("full"), BonusConfig(Linear(), ConstantController(init=0.5)))
STATE = ControllerState(0.1 + 0.2, step=7, entropy=1 / 3, band_side=-1, at_bound=False, nonfinite=2)
ADVANTAGES = ControllerState(1.0, step=7)


def states(bonus: ControllerState) -> dict[str, ControllerState]:
    return {"bonus": bonus, "advantages": replace(ADVANTAGES, step=bonus.step)}


def load(folder: Path, control: EntropyControlConfig) -> Any:
    found = read(folder, control=control, controllers=control.controllers)
    return found.states, found.change, found.differences


def test_round_trip_is_exact(tmp_path: Path) -> None:
    write(tmp_path / "global_step_7", control=CONTROL, states=states(STATE))
    assert [file.name for file in (tmp_path / "global_step_7").iterdir()] == [NAME]
    assert load(tmp_path / "global_step_7", CONTROL) == (states(STATE), EntropyChange(), [])


def test_a_killed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, control=CONTROL, states=states(STATE))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, control=CONTROL, states=states(ControllerState(9.0)))
    assert load(tmp_path, CONTROL) == (states(STATE), EntropyChange(), [])


def refused(folder: Path) -> str:
    with pytest.raises(StateFileError) as caught:
        load(folder, CONTROL)
    assert RESTART in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_missing(tmp_path: Path) -> None:
    assert f"has no {NAME}" in refused(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"version": "1"}', '{"version": 0}', "\x00"])
def test_not_a_state_file(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    refused(tmp_path)


def test_future_version(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"version": saved_state.VERSION + 1}))
    assert "upgrade aent_verl" in refused(tmp_path)


@pytest.mark.parametrize(
    "bonus", [None, {}, {"controller": "band"}, {"controller": "band", "state": {"coefficient": 1}}], ids=str
)
def test_damaged(tmp_path: Path, bonus: object) -> None:
    (tmp_path / NAME).write_text(json.dumps({"version": saved_state.VERSION, "bonus": bonus}))
    assert "is damaged" in refused(tmp_path)


def test_other_controller(tmp_path: Path) -> None:
    write(tmp_path, control=CONSTANT, states=states(STATE))
    message = refused(tmp_path)
    assert "'constant'" in message
    assert "entropy_control.bonus.controller.name=constant" in message


def test_a_constant_coefficient_is_what_this_run_sets_and_the_change_is_told(tmp_path: Path) -> None:
    write(tmp_path, control=CONSTANT, states=states(ControllerState(0.5, step=3)))
    grpo = EntropyControlConfig("grpo", FunctionalConfig("full"), BonusConfig(Linear(), ConstantController(init=0.0)))
    found, _, changes = load(tmp_path, grpo)
    assert found["bonus"] == ControllerState(0.0, step=3)
    assert len(changes) == 2
    assert "method entreg, and this run continues with grpo" in changes[0]
    assert "coefficient 0.5, and this run continues with 0.0" in changes[1]


def test_a_coefficient_outside_new_bounds_is_brought_inside_and_told(tmp_path: Path) -> None:
    write(tmp_path, control=CONTROL, states=states(STATE))
    tight = replace(
        CONTROL, bonus=BonusConfig(Linear(), replace(BAND, max=0.2)), functional=FunctionalConfig("clamped", 0.25)
    )
    found, _, changes = load(tmp_path, tight)
    state = found["bonus"]
    assert (state.coefficient, state.at_bound) == (0.2, True)
    assert "functional clamped(clamp_p=0.33), and this run continues with clamped(clamp_p=0.25)" in changes[0]
    assert "coefficient" in changes[1]


def test_a_file_of_version_1_resumes(tmp_path: Path) -> None:
    """It knew one controller, of the bonus, and fewer fields of its state."""
    old = {"coefficient": 0.25, "step": 7, "entropy": 0.5, "band_side": 0, "at_bound": False, "nonfinite": 0}
    content = {"version": 1, "method": "aent", "functional": str(CONTROL.functional)}
    (tmp_path / NAME).write_text(json.dumps(content | {"bonus": {"controller": "band", "state": old}}))
    found, _, changes = load(tmp_path, CONTROL)
    assert found == {"bonus": ControllerState(0.25, step=7, entropy=0.5), "advantages": ADVANTAGES}
    assert changes == []


OF_EVERY_CONTROLLER = {"level": None, "entropy_smoothed": None}


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_whose_states_had_the_fields_of_all_controllers_resumes(tmp_path: Path, version: int) -> None:
    target = StepToTargetController(target=1.0, step_size=0.25, min=0.0, max=0.6)
    guided = EntropyGuidedController(init=0.0, target=0.2, step_size=0.05)
    control = replace(
        CONTROL, bonus=BonusConfig(Linear(), target), advantages=AdvantagesConfig(PositiveReweight(), guided)
    )
    content = {"version": version, "method": "aent", "functional": str(CONTROL.functional), "anchor": None}
    bonus = OF_EVERY_CONTROLLER | STATE.to_dict() | {"coefficient": 0.5, "level": 0.5}
    advantages = OF_EVERY_CONTROLLER | replace(ADVANTAGES, coefficient=0.75).to_dict() | {"entropy_smoothed": 0.3}
    content |= {"bonus": {"controller": "step_to_target", "state": bonus}}
    content |= {"advantages": {"controller": "entropy_guided", "state": advantages}}
    (tmp_path / NAME).write_text(json.dumps(content))
    found, _, changes = load(tmp_path, control)
    assert found["bonus"] == StepToTargetState(**asdict(STATE) | {"coefficient": 0.5, "level": 0.5})
    assert found["advantages"] == EntropyGuidedState(0.75, step=7, entropy_smoothed=0.3)
    assert changes == []

    content["bonus"] = {"controller": "band", "state": OF_EVERY_CONTROLLER | STATE.to_dict()}
    (tmp_path / NAME).write_text(json.dumps(content))
    assert load(tmp_path, replace(control, bonus=BonusConfig(Linear(), BAND)))[0]["bonus"] == STATE


RECORDED = json.loads(Path(__file__).with_name("recorded_controllers.json").read_text())


@pytest.mark.parametrize("name", RECORDED["controllers"])
def test_a_sequence_recorded_by_version_3_replays_and_goes_on_from_its_file(tmp_path: Path, name: str) -> None:
    """Coefficients, and the state after step 8, as the code of that version had them: equal to the last bit."""
    recorded = RECORDED["controllers"][name]
    controller = (BONUS_CONTROLLERS | ADVANTAGES_CONTROLLERS)[name](**recorded["settings"])
    entropies = [math.nan if entropy is None else entropy for entropy in RECORDED["entropies"]]

    def coefficients(state: ControllerState, first: int) -> list[float]:
        found = [state.coefficient]
        for number, entropy in enumerate(entropies[first - 1 :], start=first):
            state = controller.update(state, entropy=entropy, step=number)
            found.append(state.coefficient)
        return found

    begin = controller.observe_initial(controller.initial_state(), entropy=RECORDED["initial_entropy"])
    assert coefficients(begin, 1) == recorded["coefficients"]

    axis = "bonus" if name in BONUS_CONTROLLERS else "advantages"
    bonus = controller if axis == "bonus" else ConstantController(init=0.5)
    shaping = AdvantagesConfig(PositiveReweight(), controller if axis == "advantages" else ConstantController(init=0.5))
    control = replace(CONSTANT, bonus=BonusConfig(Linear(), bonus), advantages=shaping)
    content: dict[str, Any] = {"version": 3, "method": "entreg", "functional": "full"}
    for other in ("bonus", "advantages"):
        content[other] = {"controller": "constant", "state": ControllerState(0.5, step=8).to_dict()}
    content[axis] = {"controller": name, "state": recorded["state"]}
    (tmp_path / NAME).write_text(json.dumps(content))
    assert coefficients(load(tmp_path, control)[0][axis], 9) == recorded["coefficients"][8:]


def test_both_axes_and_the_diagnostic_come_back(tmp_path: Path) -> None:
    guided = EntropyGuidedController(init=0.0, target=0.2, step_size=0.05)
    control = replace(CONTROL, advantages=AdvantagesConfig(PositiveReweight(), guided))
    saved = {"bonus": STATE, "advantages": EntropyGuidedState(0.35, step=7, entropy=0.25, entropy_smoothed=0.3)}
    change = EntropyChange().update(entropy=1.0, covariance=0.5)[0].update(entropy=0.9, covariance=0.4)[0]
    write(tmp_path, control=control, states=saved, change=change)
    assert load(tmp_path, control) == (saved, change, [])
    with pytest.raises(StateFileError, match=r"entropy_control\.advantages\.controller\.name=entropy_guided"):
        load(tmp_path, CONTROL)


def test_a_schedule_is_restored_once_the_length_of_the_run_is_known(tmp_path: Path) -> None:
    control = replace(CONTROL, advantages=AdvantagesConfig(PositiveReweight(), StageController()))
    saved = {"bonus": STATE, "advantages": ControllerState(0.5, step=7)}
    write(tmp_path, control=control, states=saved)
    assert load(tmp_path, control)[0] == saved
    known = {a: c.for_run(total_steps=15, steps_per_epoch=5) for a, c in control.controllers.items()}
    found = read(tmp_path, control=control, controllers=known)
    # Step 8 of 15 is the middle: mu = 2 * 7 / 14 - 1.
    assert found.states["advantages"].coefficient == 0.0
    assert "advantages coefficient 0.5, and this run continues with 0.0" in found.differences[0]


def test_an_epoch_schedule_needs_both_lengths(tmp_path: Path) -> None:
    control = replace(CONTROL, advantages=AdvantagesConfig(PositiveReweight(), EpochController(total_steps=20)))
    saved = {"bonus": STATE, "advantages": ControllerState(0.5, step=7)}
    write(tmp_path, control=control, states=saved)
    assert load(tmp_path, control)[0] == saved


def test_an_anchored_bonus_does_not_go_on_without_its_anchor(tmp_path: Path) -> None:
    anchored = replace(CONSTANT, bonus=BonusConfig(Anchored(), ConstantController(init=0.5)))
    write(tmp_path, control=CONSTANT, states=states(STATE))
    with pytest.raises(StateFileError, match="holds no initial entropy") as error:
        load(tmp_path, anchored)
    assert RESTART in str(error.value)
    write(tmp_path, control=anchored, states=states(replace(STATE, initial_entropy=0.25)))
    assert load(tmp_path, anchored)[0]["bonus"].initial_entropy == 0.25


SIREN = replace(
    CONSTANT,
    functional=FunctionalConfig("nucleus", top_p=0.8),
    bonus=BonusConfig(
        Anchored(), ConstantController(init=0.005), PeakTokens(quantile=0.8), loss_agg_mode="seq-mean-token-mean"
    ),
)


@pytest.mark.parametrize("version", [1, 2])
def test_an_anchor_of_another_definition_is_refused(tmp_path: Path, version: int) -> None:
    """Until version 2 it was divided by all response tokens: with SIREN's peaks a fifth of what it is now."""
    write(tmp_path, control=SIREN, states=states(replace(STATE, initial_entropy=0.25)))
    path = tmp_path / NAME
    content = json.loads(path.read_text())
    del content["anchor"]
    path.write_text(json.dumps(content | {"version": version}))
    with pytest.raises(StateFileError, match=r"initial entropy 0\.25 .*by all response tokens") as error:
        load(tmp_path, SIREN)
    assert RESTART in str(error.value)
    assert str(path) in str(error.value)
    # Without an anchor nothing of it is used.
    assert load(tmp_path, CONSTANT)[0]["bonus"].initial_entropy == 0.25


@pytest.mark.parametrize(
    ("key", "now"),
    [
        ("token_mask", replace(SIREN, bonus=replace(SIREN.bonus, token_mask=PeakTokens(quantile=0.9)))),
        ("token_mask", replace(SIREN, bonus=replace(SIREN.bonus, token_mask=AllTokens()))),
        ("sample_weight", replace(SIREN, bonus=replace(SIREN.bonus, sample_weight=LinearDifficulty()))),
        ("loss_agg_mode", replace(SIREN, bonus=replace(SIREN.bonus, loss_agg_mode="token-mean"))),
        ("functional", replace(SIREN, functional=FunctionalConfig("nucleus", top_p=0.9))),
    ],
)
def test_an_anchor_measured_with_other_settings_is_refused(tmp_path: Path, key: str, now: EntropyControlConfig) -> None:
    saved = states(replace(STATE, coefficient=0.005, initial_entropy=0.25))
    write(tmp_path, control=SIREN, states=saved)
    assert load(tmp_path, SIREN) == (saved, EntropyChange(), [])
    with pytest.raises(StateFileError, match=f"measured with {key}=") as error:
        load(tmp_path, now)
    assert RESTART in str(error.value)


LOW, COEFFICIENT = "entropy_control.bonus.controller.low", "entropy_control.bonus.coefficient"
CHANGES = (Change(5, LOW, 0.1, 0.15, "ann@node", "now"), Change(6, LOW, 0.15, 0.05, "ann@node", "now"))


def test_what_was_changed_while_the_run_trained_is_kept_and_said(tmp_path: Path) -> None:
    moved = Change(7, COEFFICIENT, 0.2, 0.3, "bob@node", "now")
    write(tmp_path, control=CONTROL, states=states(STATE), changes=[*CHANGES, moved])
    found = read(tmp_path, control=CONTROL, controllers=CONTROL.controllers)
    assert found.controllers["bonus"] == replace(BAND, low=0.05)
    assert found.changes == (*CHANGES, moved)
    assert found.states["bonus"] == STATE
    assert found.differences == [f"{LOW}=0.05 is kept, which ann@node set for step 6 and later ones"]


def test_a_setting_that_was_edited_since_replaces_the_change(tmp_path: Path) -> None:
    high = Change(6, "entropy_control.bonus.controller.high", 0.2, 0.4, "ann@node", "now")
    write(tmp_path, control=CONTROL, states=states(STATE), changes=[*CHANGES, high])
    edited = EntropyControlConfig("aent", CONTROL.functional, BonusConfig(Linear(), replace(BAND, low=0.12)))
    found = read(tmp_path, control=edited, controllers=edited.controllers)
    assert found.controllers["bonus"] == replace(BAND, low=0.12, high=0.4)
    assert found.changes == (high,)
    assert found.differences == [
        f"{LOW}=0.12, edited since, replaces 0.05, which ann@node set at step 6",
        "entropy_control.bonus.controller.high=0.4 is kept, which ann@node set for step 6 and later ones",
    ]


def test_the_state_is_fitted_to_the_changed_bounds(tmp_path: Path) -> None:
    wider = Change(5, "entropy_control.bonus.controller.max", 1.0, 2.0, "ann@node", "now")
    write(tmp_path, control=CONTROL, states=states(replace(STATE, coefficient=1.7)), changes=[wider])
    assert load(tmp_path, CONTROL)[0]["bonus"].coefficient == 1.7


def test_a_length_that_the_run_fills_in_is_not_edited(tmp_path: Path) -> None:
    """Before the start its settings do not have the length yet."""
    decay = LinearDecayController(init=1.0, final=0.0)
    control = EntropyControlConfig("mine", FunctionalConfig("full"), BonusConfig(Linear(), decay))
    longer = Change(5, "entropy_control.bonus.controller.total_steps", 100, 200, "ann@node", "now")
    write(tmp_path, control=control, states=states(replace(STATE, coefficient=0.5)), changes=[longer])
    for controller in (decay, replace(decay, total_steps=100)):
        found = read(
            tmp_path, control=control, controllers={"bonus": controller, "advantages": ConstantController(init=1.0)}
        )
        assert found.controllers["bonus"] == replace(decay, total_steps=200)


@pytest.mark.parametrize(
    "change", [{"key": LOW}, 3, {**CHANGES[0].to_dict(), "key": "lr.x"}, {**CHANGES[0].to_dict(), "new": -1}]
)
def test_changes_that_are_damaged(tmp_path: Path, change: Any) -> None:
    write(tmp_path, control=CONTROL, states=states(STATE))
    content = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps(content | {"live_changes": [change]}))
    with pytest.raises(StateFileError, match="damaged or does not fit this run"):
        load(tmp_path, CONTROL)
