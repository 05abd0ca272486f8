"""A config that passes every check, and what tests need to spoil it."""

import shutil
from contextlib import nullcontext

import pytest

from aent_verl.platforms import cpu
from aent_verl.preflight import machines
from tests.unit.preflight.finding import config
from tests.unit.preflight.rows import ROWS, write

RIGHT = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return float(solution_str.strip() == ground_truth)
"""


@pytest.fixture
def composed():
    return config("experiment=cpu_arithmetic", "run.task=null")


@pytest.fixture
def settings(composed, tiny_model_folder, tmp_path, monkeypatch):
    """A config that passes every check; a test spoils one thing."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(cpu, "joined_cluster", lambda *_: nullcontext(False))
    monkeypatch.setattr(machines, "available_gib", lambda: 64.0)
    cfg = composed
    (tmp_path / "score.py").write_text(RIGHT)
    cfg.data.train_files = write(tmp_path / "train.parquet", ROWS)
    cfg.data.val_files = write(tmp_path / "val.parquet", ROWS[:4])
    cfg.data.train_batch_size = 16
    cfg.actor_rollout_ref.model.path = tiny_model_folder
    cfg.reward.custom_reward_function.path = str(tmp_path / "score.py")
    return cfg


@pytest.fixture
def model_copy(settings, tiny_model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    settings.actor_rollout_ref.model.path = str(folder)
    return folder
