"""separate_async with entropy control: rollouts of their own, two updates of the actor between two weights."""

import math
import sys
from pathlib import Path

import pytest

from aent_verl.core.controllers import BandController
from aent_verl.runs import metrics, token_records
from tests.e2e.stack import finish, start

pytestmark = pytest.mark.slow

SECONDS = 420
STEPS, PROMPTS, RESPONSES, UPDATES = 3, 16, 4, 2
BAND = {"init": 0.02, "low": 2.5, "high": 3.0, "lr": 0.05, "warmup_steps": 1, "min": 0.0, "max": 0.2}


@pytest.fixture(scope="module")
def folder(task: Path, short_ray_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("separate") / "run"
    arguments = [
        *(sys.executable, "-m", "aent_verl.commands.main", "train", "experiment=cpu_arithmetic", "run.task=null"),
        *(f"data.train_files={task}/train.parquet", f"data.val_files={task}/validation.parquet"),
        *(f"actor_rollout_ref.model.path={task}/model", f"run.dir={folder}", "entropy_control=aent"),
        *(f"entropy_control.bonus.controller.{key}={value}" for key, value in BAND.items()),
        *("trainer.v1.trainer_mode=separate_async", f"trainer.v1.separate_async.parameter_sync_step={UPDATES}"),
        *(f"data.train_batch_size={PROMPTS}", f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS // UPDATES}"),
        *("actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.n_gpus_per_node=1"),
        *("actor_rollout_ref.hybrid_engine=false", f"actor_rollout_ref.rollout.n={RESPONSES}"),
        *(f"trainer.total_training_steps={STEPS}", "trainer.save_freq=2", "trainer.test_freq=-1"),
        *("trainer.val_before_train=false", "entropy_control.token_dump=1000"),
    ]
    log = folder.with_name("out")
    finish(start(arguments, log, RAY_TMPDIR=short_ray_folder), log, SECONDS)
    return folder


@pytest.fixture(scope="module")
def steps(folder: Path) -> dict[int, dict[str, float]]:
    return metrics.read_run(folder)


def test_the_mode_is_ours_and_says_so(folder: Path) -> None:
    log = (folder / "train.log").read_text(errors="replace")
    assert "trainer.v1.trainer_mode=separate_async with entropy_control=aent: aent_separate_async" in log


def test_one_step_is_one_update_of_the_controller(steps: dict[int, dict[str, float]]) -> None:
    assert sorted(steps) == list(range(1, STEPS + 1))
    controller = BandController(**BAND)  # type: ignore[arg-type]
    state = controller.initial_state()
    for step, data in steps.items():
        assert data["aent/coefficient"] == state.coefficient
        state = controller.update(state, entropy=data["aent/entropy"], step=step)
        assert data["aent/coefficient_next"] == state.coefficient
    assert state.coefficient > BAND["init"]


def test_the_entropy_is_the_mean_over_all_tokens_of_both_updates(
    folder: Path, steps: dict[int, dict[str, float]]
) -> None:
    records = token_records.read_records(folder)
    for step, data in steps.items():
        mine = [record for record in records if record.step == step]
        assert sorted(record.sample for record in mine) == list(range(PROMPTS * RESPONSES))
        tokens = [
            (entropy, kept) for record in mine for entropy, kept in zip(record.entropy, record.in_loss, strict=True)
        ]
        mean = math.fsum(entropy for entropy, kept in tokens if kept) / sum(kept for _, kept in tokens)
        assert data["aent/entropy"] == pytest.approx(mean, rel=1e-6)


def test_the_old_policy_stays_that_of_the_first_update(steps: dict[int, dict[str, float]]) -> None:
    """Were its copy a view of the current weights, every ratio would be 1 and this 0, as in stock verl on the CPU."""
    assert all(abs(data["actor/ppo_kl"]) > 1e-7 for data in steps.values())
