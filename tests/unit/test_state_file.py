"""The state file: exact round trip, atomic, and a message with a way out for each way it can be unusable."""

import json
import os
from pathlib import Path

import pytest

from aent_verl.core.controllers import ControllerState
from aent_verl.integration import state_file
from aent_verl.integration.state_file import NAME, RESTART, StateFileError, read, write

STATE = ControllerState(0.1 + 0.2, step=7, entropy=1 / 3, band_side=-1, at_bound=True, nonfinite=2)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = write(tmp_path / "global_step_7", controller="band", state=STATE)
    assert path == tmp_path / "global_step_7" / NAME
    assert read(path.parent, controller="band") == STATE


def test_a_killed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, controller="band", state=STATE)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, controller="band", state=ControllerState(9.0))
    assert read(tmp_path, controller="band") == STATE


def refused(folder: Path, controller: str = "band") -> str:
    with pytest.raises(StateFileError) as caught:
        read(folder, controller=controller)
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
    write(tmp_path, controller="constant", state=STATE)
    message = refused(tmp_path)
    assert "'constant'" in message
    assert "entropy_control.bonus.controller.name=constant" in message
