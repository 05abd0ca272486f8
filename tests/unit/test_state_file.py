"""The state file: exact round trip, atomic, and a message with a way out for each way it can be unusable."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from aent_verl.core.controllers import BandController, ConstantController, ControllerState
from aent_verl.integration import state_file
from aent_verl.integration.config import EntropyControlConfig, FunctionalConfig
from aent_verl.integration.state_file import NAME, RESTART, StateFileError, read, write

BAND = BandController(init=0.1, low=0.1, high=0.2, lr=0.1, warmup_steps=0, min=0.0, max=1.0)
CONTROL = EntropyControlConfig("aent", FunctionalConfig("clamped", 0.33), "linear", BAND)
CONSTANT = EntropyControlConfig("entreg", FunctionalConfig("full"), "linear", ConstantController(init=0.5))
STATE = ControllerState(0.1 + 0.2, step=7, entropy=1 / 3, band_side=-1, at_bound=False, nonfinite=2)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = write(tmp_path / "global_step_7", control=CONTROL, state=STATE)
    assert path == tmp_path / "global_step_7" / NAME
    assert read(path.parent, control=CONTROL) == (STATE, [])


def test_a_killed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, control=CONTROL, state=STATE)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, control=CONTROL, state=ControllerState(9.0))
    assert read(tmp_path, control=CONTROL) == (STATE, [])


def refused(folder: Path) -> str:
    with pytest.raises(StateFileError) as caught:
        read(folder, control=CONTROL)
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
    (tmp_path / NAME).write_text(json.dumps({"version": state_file.VERSION + 1}))
    assert "upgrade aent_verl" in refused(tmp_path)


@pytest.mark.parametrize(
    "bonus", [None, {}, {"controller": "band"}, {"controller": "band", "state": {"coefficient": 1}}], ids=str
)
def test_damaged(tmp_path: Path, bonus: object) -> None:
    (tmp_path / NAME).write_text(json.dumps({"version": state_file.VERSION, "bonus": bonus}))
    assert "is damaged" in refused(tmp_path)


def test_other_controller(tmp_path: Path) -> None:
    write(tmp_path, control=CONSTANT, state=STATE)
    message = refused(tmp_path)
    assert "'constant'" in message
    assert "entropy_control.bonus.controller.name=constant" in message


def test_a_constant_coefficient_is_what_this_run_sets_and_the_change_is_told(tmp_path: Path) -> None:
    write(tmp_path, control=CONSTANT, state=ControllerState(0.5, step=3))
    grpo = EntropyControlConfig("grpo", FunctionalConfig("full"), "linear", ConstantController(init=0.0))
    state, changes = read(tmp_path, control=grpo)
    assert state == ControllerState(0.0, step=3)
    assert len(changes) == 2
    assert "method entreg, and this run goes on with grpo" in changes[0]
    assert "coefficient 0.5, and this run goes on with 0.0" in changes[1]


def test_a_coefficient_outside_new_bounds_is_brought_inside_and_told(tmp_path: Path) -> None:
    write(tmp_path, control=CONTROL, state=STATE)
    tight = replace(CONTROL, controller=replace(BAND, max=0.2), functional=FunctionalConfig("clamped", 0.25))
    state, changes = read(tmp_path, control=tight)
    assert (state.coefficient, state.at_bound) == (0.2, True)
    assert "functional clamped(clamp_p=0.33), and this run goes on with clamped(clamp_p=0.25)" in changes[0]
    assert "coefficient" in changes[1]
