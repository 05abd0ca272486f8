"""Presets of every kind in verl's asynchronous trainers on two nodes, one step each; ``make test-cluster``.

One run of the full stack per mode changes the preset from step to step, as `tests.e2e.test_family` does in ``sync``,
and on two nodes as well. FSDP2 shards the model over both, and each has a vLLM server.
"""

import json
import math
from pathlib import Path

import pytest

from aent_verl.runs import metrics, worker_reports
from tests.e2e import family, witness
from tests.e2e.raylets import TWO_NODES, Raylets
from tests.e2e.stack import run_family
from tests.e2e.test_family import EVERY

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SECONDS = 600
PRESETS = ["grpo", "aent", "par_entropy", "siren", "aer", "clip_cov", "steer", "ares"]
MODES: dict[str, tuple[str, ...]] = {
    "sync": (),
    "colocate_async": (),
    "separate_async": (
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
    ),
}


@pytest.fixture(scope="module", params=[mode for mode in MODES if mode != "sync"])
def folder(
    request: pytest.FixtureRequest, task: Path, raylets: Raylets, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run that used preset after preset, one step each."""
    mode: str = request.param
    folder = tmp_path_factory.mktemp(mode) / "run"
    arguments = [
        *("experiment=cpu_arithmetic", f"run.dir={folder}", "run.task=null", *TWO_NODES),
        *(f"data.train_files={task}/train.parquet", f"data.val_files={task}/validation.parquet"),
        *(f"actor_rollout_ref.model.path={task}/model", "actor_rollout_ref.actor.optim.lr=1e-5"),
        *("data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=8", "trainer.logger=[file]"),
        *("trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1"),
        *(f"trainer.v1.trainer_mode=aent_{mode}", *MODES[mode]),
    ]
    raylets.wait(gpus=3)
    variables = {family.CHOSEN: " ".join(PRESETS), "VERL_USE_EXTERNAL_MODULES": witness.NAME}
    run_family(arguments, folder, SECONDS, **raylets.environment, **variables)
    return folder


@pytest.fixture(scope="module")
def steps(folder: Path) -> dict[str, dict[str, float]]:
    """What the step of each preset logged."""
    return dict(zip(PRESETS, metrics.read_run(folder).values(), strict=True))


def test_a_rank_on_each_node_runs_our_engine_and_loss(folder: Path) -> None:
    reports = json.loads((folder / "checkpoints" / worker_reports.FILE).read_text())
    assert [report["rank"] for report in reports] == [0, 1]
    assert {report["engine"] for report in reports} == {"EntropyControlEngine"}
    assert {report["loss"] for report in reports} == {"entropy_control_loss"}


def test_both_ranks_used_the_coefficient_of_each_step(folder: Path) -> None:
    seen = witness.notes(folder, "loss")
    assert len({(each["rank"], each["node"]) for each in seen}) == len({each["node"] for each in seen}) == 2
    logged = {(step, data["aent/coefficient"]) for step, data in metrics.read_run(folder).items()}
    for rank in (0, 1):
        assert {(each["step"], each["coefficient"]) for each in seen if each["rank"] == rank} == logged


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_of_every_kind_of_method(steps: dict[str, dict[str, float]], preset: str) -> None:
    data = steps[preset]
    for name in ("actor/pg_loss", "actor/grad_norm", *(f"aent/{name}" for name in EVERY)):
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
