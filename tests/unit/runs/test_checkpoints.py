"""Where verl keeps a run's checkpoints."""

import re
from pathlib import Path

import pytest

from aent_verl.runs.checkpoints import TRACKER, latest_step, step_folder, step_folders, step_of


def test_a_folder_and_its_step(tmp_path: Path) -> None:
    folder = step_folder(tmp_path, 12)
    assert folder == tmp_path / "global_step_12"
    assert step_of(folder) == 12
    assert step_of("global_step_3/global_step_40/actor") == 40
    assert step_of(tmp_path / "global_step_") is None


def test_all_of_a_folder_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    assert step_folders(tmp_path / "missing") == []
    for step in (10, 9, 100):
        step_folder(tmp_path, step).mkdir()
    assert [folder.name for folder in step_folders(tmp_path)] == ["global_step_9", "global_step_10", "global_step_100"]


def test_the_latest_is_the_one_that_verls_tracker_names(tmp_path: Path) -> None:
    assert latest_step(tmp_path) == 0
    step_folder(tmp_path, 9).mkdir()
    (tmp_path / TRACKER).write_text("7\n")
    assert latest_step(tmp_path) == 7


@pytest.mark.parametrize("text", ["", "7.5", "-1"])
def test_a_damaged_tracker_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / TRACKER).write_text(text)
    with pytest.raises(ValueError, match=rf"iteration\.txt holds '{re.escape(text)}' and not a step"):
        latest_step(tmp_path)
