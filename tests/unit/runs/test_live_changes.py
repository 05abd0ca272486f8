"""The list of what was changed in a run that trains."""

from pathlib import Path

import pytest

from aent_verl.runs import live_changes
from aent_verl.runs.live_changes import Change

CHANGE = Change(12, "entropy_control.bonus.controller.low", 0.2, 0.1, "ann@node", "2026-11-30T20:05:11+00:00")


def test_round_trip(tmp_path: Path) -> None:
    assert live_changes.read(tmp_path) == []
    live_changes.write(tmp_path, [CHANGE, CHANGE])
    assert live_changes.read(tmp_path) == [CHANGE, CHANGE]


def test_a_change_says_what_who_and_when() -> None:
    assert str(CHANGE) == (
        "entropy_control.bonus.controller.low: 0.2 -> 0.1 from step 12 on (by ann@node, 2026-11-30T20:05:11+00:00)"
    )


@pytest.mark.parametrize("text", ["", "{", "3", '[{"step": 1}]', "[1]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / live_changes.FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{live_changes.FILE} is damaged"):
        live_changes.read(tmp_path)
