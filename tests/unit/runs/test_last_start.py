"""A run that resumes with other settings says which."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from aent_verl.launch import training
from aent_verl.launch.environment import LaunchError
from aent_verl.runs import last_start
from aent_verl.runs.checkpoints import TRACKER
from tests.config.composing import MICRO_BATCHES, composed
from tests.unit.launch.test_training import CONTROL, checkpoint


@pytest.fixture(scope="module")
def base() -> DictConfig:
    return composed(*MICRO_BATCHES)


@pytest.fixture
def config(base: DictConfig, tmp_path: Path) -> Callable[..., DictConfig]:
    """The composed config of a run in this test's folder, with these settings changed in it."""

    def changed(**settings: object) -> DictConfig:
        cfg = base.copy()
        for key, value in {"run.dir": str(tmp_path), **settings}.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        return cfg

    return changed


def test_what_was_written_is_read_back_without_a_difference(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    learning_rate = {"actor_rollout_ref.actor.optim.lr": 2e-6}
    cfg = config(**learning_rate)
    assert last_start.warning(cfg) is None, "nothing is known"
    last_start.write(cfg, tmp_path)
    assert "${" not in (tmp_path / last_start.CONFIG).read_text()
    assert last_start.changes(cfg) == []
    trains_alike = {"run.progress": not cfg.run.progress}
    assert last_start.changes(config(**learning_rate, **trains_alike)) == []


def test_changed_new_and_missing_settings_are_named_with_both_values(
    config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    last_start.write(config(**{"mine.gone": 1}), tmp_path)
    low = "entropy_control.bonus.controller.low"
    found = last_start.changes(config(**{low: 0.05, "mine.new": 2}))
    assert sorted(found) == [f"{low}=0.05 (was 0.15)", "mine.gone=not set (was 1)", "mine.new=2 (was not set)"]


def test_a_long_list_is_cut(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    last_start.write(config(), tmp_path)
    text = last_start.warning(config(**{f"mine.key{i}": i for i in range(9)}))
    assert text is not None
    assert text.count("(was not set)") == 6
    assert "and 3 more. For a run of its own give another name, trainer.experiment_name=..." in text


@pytest.mark.parametrize("step", [2, 4])
def test_the_launcher_warns_where_a_run_resumes_or_is_complete(
    config: Callable[..., DictConfig], tmp_path: Path, step: int
) -> None:
    settings = {"trainer.total_training_steps": 4, "trainer.val_before_train": False}
    last_start.write(config(**settings), tmp_path)
    cfg = config(**settings, **{"entropy_control.token_dump": 4})
    terminal = io.StringIO()
    assert not training.is_complete(cfg, CONTROL, terminal)
    assert terminal.getvalue() == "", "without a checkpoint the run starts from the beginning"
    (tmp_path / "checkpoints").mkdir()
    checkpoint(tmp_path / "checkpoints", step)
    assert training.is_complete(cfg, CONTROL, terminal) is (step == 4)
    assert "now entropy_control.token_dump=4 (was 0)." in terminal.getvalue()


def test_a_damaged_tracker_stops_the_launcher(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / TRACKER).write_text("")
    with pytest.raises(LaunchError, match="holds '' and not a step"):
        training.resume_folder(config())
