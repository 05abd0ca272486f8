"""Presets of every kind in verl's asynchronous trainers, one step each; ``make test-cluster``.

One run of the full stack per mode changes the preset from step to step, as `tests.e2e.test_family` does in ``sync``.
"""

import math
from pathlib import Path

import pytest

from aent_verl.runs import metrics
from tests.e2e import family
from tests.e2e.stack import run_family

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SECONDS = 600
PRESETS = ["grpo", "aent", "par_entropy", "siren", "aer", "clip_cov", "steer", "ares"]
MODES = {
    "colocate_async": (),
    "separate_async": (
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
    ),
}


@pytest.fixture(scope="module", params=MODES)
def steps(
    request: pytest.FixtureRequest, task: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, float]]:
    """What the step of each preset logged."""
    mode: str = request.param
    folder = tmp_path_factory.mktemp(mode) / "run"
    arguments = [
        *("experiment=cpu_arithmetic", f"run.dir={folder}", "run.task=null"),
        *(f"data.train_files={task}/train.parquet", f"data.val_files={task}/validation.parquet"),
        *(f"actor_rollout_ref.model.path={task}/model", "actor_rollout_ref.actor.optim.lr=1e-5"),
        *("data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=8", "trainer.logger=[file]"),
        *("trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1"),
        *(f"trainer.v1.trainer_mode=aent_{mode}", *MODES[mode]),
    ]
    run_family(arguments, folder, SECONDS, **{family.CHOSEN: " ".join(PRESETS)})
    return dict(zip(PRESETS, metrics.read_run(folder).values(), strict=True))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_of_every_kind_of_method(steps: dict[str, dict[str, float]], preset: str) -> None:
    data = steps[preset]
    for name in ("actor/pg_loss", "actor/grad_norm", "aent/entropy", "aent/entropy_full", "aent/coefficient"):
        assert math.isfinite(data[name]), name
    assert data["actor/grad_norm"] > 0
    assert 0 < data["aent/entropy"] <= data["aent/entropy_full"] + 1e-6
    assert data["aent/nonfinite_steps"] == 0


def test_each_method_does_what_is_its_own(steps: dict[str, dict[str, float]]) -> None:
    assert steps["grpo"]["aent/bonus_loss"] == 0
    assert steps["aent"]["aent/bonus_loss"] < 0 < steps["aent"]["aent/removed_mass"]
    assert steps["par_entropy"]["aent/advantage_change"] > 0
    assert steps["siren"]["aent/initial_entropy"] == pytest.approx(steps["siren"]["aent/bonus_aggregate"], rel=0.3)
    assert steps["aer"]["aent/initial_entropy"] == pytest.approx(steps["aer"]["aent/entropy_full"], rel=0.2)
    assert steps["clip_cov"]["aent/chosen_tokens"] >= 1
    assert steps["steer"]["aent/largest_change"] > 0
    assert steps["ares"]["aent/rewards_added_abs"] > 0
