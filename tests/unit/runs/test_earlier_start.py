"""A run that goes on with other settings says which."""

import io
from pathlib import Path

import pytest
from omegaconf import DictConfig

from aent_verl.launch import training
from aent_verl.runs import last_start
from tests.config.composing import MICRO_BATCHES, composed
from tests.unit.launch.test_training import CONTROL, checkpoint


def config(folder: Path, *overrides: str) -> DictConfig:
    return composed(*MICRO_BATCHES, f"run.dir={folder}", *overrides)


def test_what_was_written_is_read_back_without_a_difference(tmp_path: Path) -> None:
    cfg = config(tmp_path, "entropy_control=aent", "actor_rollout_ref.actor.optim.lr=1e-6")
    assert last_start.warning(cfg) is None, "nothing is known"
    last_start.write(cfg, tmp_path)
    assert "${" not in (tmp_path / last_start.CONFIG).read_text()
    assert last_start.changes(cfg) == []
    assert last_start.changes(config(tmp_path, *cfg_overrides(), "run.progress=false")) == [], "it trains alike"


def cfg_overrides() -> list[str]:
    return ["entropy_control=aent", "actor_rollout_ref.actor.optim.lr=1e-6"]


def test_changed_new_and_missing_settings_are_named_with_both_values(tmp_path: Path) -> None:
    last_start.write(config(tmp_path, "+mine.gone=1"), tmp_path)
    low = "entropy_control.bonus.controller.low"
    found = last_start.changes(config(tmp_path, f"{low}=0.05", "+mine.new=2"))
    assert sorted(found) == [f"{low}=0.05 (was 0.15)", "mine.gone=not set (was 1)", "mine.new=2 (was not set)"]


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    last_start.write(config(tmp_path), tmp_path)
    text = last_start.warning(config(tmp_path, *(f"+mine.key{i}={i}" for i in range(9))))
    assert text is not None
    assert text.count("(was not set)") == 6
    assert "and 3 more. For a run of its own give another name, trainer.experiment_name=..." in text


@pytest.mark.parametrize("step", [2, 4])
def test_the_launcher_says_it_where_a_run_goes_on_or_is_complete(tmp_path: Path, step: int) -> None:
    folder = tmp_path / "run"
    settings = ["trainer.total_training_steps=4", "trainer.val_before_train=false"]
    last_start.write(config(folder, *settings), folder)
    cfg = config(folder, *settings, "entropy_control.token_dump=4")
    terminal = io.StringIO()
    assert not training.is_complete(cfg, CONTROL, terminal)
    assert terminal.getvalue() == "", "without a checkpoint the run starts afresh"
    (folder / "checkpoints").mkdir()
    checkpoint(folder / "checkpoints", step)
    assert training.is_complete(cfg, CONTROL, terminal) is (step == 4)
    assert "now entropy_control.token_dump=4 (was 0)." in terminal.getvalue()
