"""A composed config that passes every check, and problems."""

import copy
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from tests.unit.preflight.rows import row, write

SCORE = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth), "pred": solution_str}
"""
ROWS = [row(f"{a} + {b}", str(a + b), source=f"sums of {a}") for a in range(2) for b in range(3)]


@pytest.fixture(scope="session")
def composed_evaluation() -> DictConfig:
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        # The experiment's own data and model are built by its task.
        nothing = [f"{key}=null" for key in ("run.task", "data.train_files", "data.val_files")]
        return compose("aent_evaluate", ["experiment=cpu_arithmetic", *nothing, "actor_rollout_ref.model.path=null"])


@pytest.fixture
def cfg(
    composed_evaluation: DictConfig, tiny_model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> DictConfig:
    """Two data sources of three problems each for a tiny model; a test spoils one thing."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cfg = copy.deepcopy(composed_evaluation)
    (tmp_path / "score.py").write_text(SCORE)
    cfg.data.val_files = write(tmp_path / "test.parquet", ROWS)
    cfg.actor_rollout_ref.model.path = tiny_model_folder
    cfg.reward.custom_reward_function.path = str(tmp_path / "score.py")
    cfg.evaluation.output = str(tmp_path / "run" / "evaluation")
    cfg.evaluation.scorers = 1
    return cfg
