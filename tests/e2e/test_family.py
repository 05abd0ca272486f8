"""One training step of every preset, and of combinations, through the whole stack on two nodes in one run."""

import json
import math
from pathlib import Path

import pytest

from aent_verl.plugin import saved_state
from aent_verl.runs import metrics, worker_reports
from aent_verl.runs import token_records as tokens
from tests.e2e import witness
from tests.e2e.family import COMBINATIONS, PRESETS, STEPS
from tests.e2e.raylets import TWO_NODES, Raylets
from tests.e2e.stack import run_family

pytestmark = pytest.mark.slow

SECONDS = 600
EVERY = {
    "entropy", "entropy_full", "removed_mass", "bonus_weight", "bonus_loss", "advantage_change", "covariance",
    "entropy_share_positive", "entropy_share_negative", "entropy_q10", "entropy_q50", "entropy_q90", "entropy_q99",
    "coefficient", "coefficient_next", "coefficient_at_bound", "bound_hits", "band_side", "advantages_coefficient",
}  # fmt: skip
OWN = {
    "skywork": {"coefficient_before_gate"},
    "aer": {"initial_entropy"},
    "siren": {"initial_entropy", "bonus_aggregate"},
    "clip_cov": {"chosen_tokens", "eligible_tokens", "covariance_q01", "covariance_q50", "covariance_q99"},
    "kl_cov": {"chosen_tokens", "eligible_tokens", "covariance_q01", "covariance_q50", "covariance_q99"},
    "steer": {"largest_change"},
    "ares": {"rewards_added", "rewards_added_abs", "ares_threshold", "ares_alpha_hard", "ares_deliberations"},
}
SHAPES = {"par_stage", "par_epoch", "par_entropy", "repo_r", "steer", "entropy_adv"}


@pytest.fixture(scope="module")
def folder(task: Path, raylets: Raylets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that used preset after preset, one step each."""
    folder = tmp_path_factory.mktemp("family") / "run"
    arguments = [
        "experiment=cpu_arithmetic",
        f"run.dir={folder}",
        "run.task=null",
        f"data.train_files={task}/train.parquet",
        f"data.val_files={task}/validation.parquet",
        f"actor_rollout_ref.model.path={task}/model",
        # Eight groups in a mini-batch: in one of four there may be no token whose covariance `clip_cov` chooses from.
        "data.train_batch_size=16",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        # Slow enough that the model stays as right as it is.
        "actor_rollout_ref.actor.optim.lr=1e-5",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        f"trainer.save_freq={len(STEPS)}",
        "trainer.logger=[file]",
        *TWO_NODES,
    ]
    run_family(arguments, folder, SECONDS, **raylets.environment, VERL_USE_EXTERNAL_MODULES=witness.NAME)
    return folder


@pytest.fixture(scope="module")
def steps(folder: Path) -> dict[int, dict[str, float]]:
    return metrics.read_run(folder)


def test_every_preset_and_combination_trained_one_step(steps: dict[int, dict[str, float]]) -> None:
    assert sorted(steps) == list(range(1, len(STEPS) + 1))


@pytest.mark.parametrize("number", range(1, len(STEPS) + 1), ids=lambda n: " ".join(STEPS[n - 1]))
def test_losses_are_finite_and_all_shared_metrics_are_there(steps: dict[int, dict[str, float]], number: int) -> None:
    data = steps[number]
    for key in ("actor/pg_loss", "actor/grad_norm", *(f"aent/{name}" for name in EVERY)):
        assert math.isfinite(data[key]), key
    assert data["actor/grad_norm"] > 0
    assert data["aent/nonfinite_steps"] == 0
    assert 0 <= data["aent/entropy"] <= data["aent/entropy_full"] + 1e-6


@pytest.mark.parametrize("preset", PRESETS)
def test_each_method_reports_what_is_its_own(steps: dict[int, dict[str, float]], preset: str) -> None:
    data = steps[PRESETS.index(preset) + 1]
    for name in OWN.get(preset, set()):
        assert math.isfinite(data[f"aent/{name}"])
    others = set().union(*OWN.values()) - OWN.get(preset, set())
    assert not [name for name in others if f"aent/{name}" in data]
    if preset in SHAPES:
        assert data["aent/advantage_change"] > 0
    elif preset != "progrpo":
        assert data["aent/advantage_change"] == 0


def test_what_the_numbers_say_is_what_the_methods_do(steps: dict[int, dict[str, float]]) -> None:
    at = {name: steps[PRESETS.index(name) + 1] for name in PRESETS}
    assert at["grpo"]["aent/bonus_loss"] == 0
    assert at["entreg"]["aent/bonus_loss"] == pytest.approx(-0.02 * at["entreg"]["aent/entropy"], rel=0.1)
    assert at["aent"]["aent/removed_mass"] > 0
    assert 0 < at["aer"]["aent/bonus_weight"] < 1
    assert at["aer"]["aent/initial_entropy"] == pytest.approx(at["aer"]["aent/entropy_full"], rel=0.1)
    assert at["par_stage"]["aent/advantages_coefficient"] == 0
    assert at["kl_cov"]["aent/chosen_tokens"] == at["clip_cov"]["aent/chosen_tokens"] == 1
    # Above the .8 quantile: one token of four in a response of four, one of two in one of two.
    assert 0 < at["siren"]["aent/bonus_weight"] <= 0.5
    assert at["siren"]["aent/initial_entropy"] == pytest.approx(at["siren"]["aent/bonus_aggregate"], rel=0.2)
    # Wrong answers to hard prompts gain half of 1.2 alpha at least, and the scores that the trackers show do not.
    assert 0.1 < at["ares"]["aent/rewards_added_abs"] < 1.2 * at["ares"]["aent/ares_alpha_hard"]
    assert 0 <= at["ares"]["critic/score/min"] <= at["ares"]["critic/score/max"] <= 1
    assert at["linear_decay"]["aent/coefficient_next"] < at["linear_decay"]["aent/coefficient"]


def test_a_rank_on_each_node_used_the_coefficient_of_each_step(
    folder: Path, steps: dict[int, dict[str, float]]
) -> None:
    reports = json.loads((folder / "checkpoints" / worker_reports.FILE).read_text())
    assert [(report["rank"], report["loss"]) for report in reports] == [
        (rank, "entropy_control_loss") for rank in (0, 1)
    ]
    seen = witness.notes(folder, "loss")
    assert len({(each["rank"], each["node"]) for each in seen}) == len({each["node"] for each in seen}) == 2
    logged = {(step, data["aent/coefficient"]) for step, data in steps.items()}
    for rank in (0, 1):
        assert {(each["step"], each["coefficient"]) for each in seen if each["rank"] == rank} == logged


def test_one_process_writes_the_state_file_once(folder: Path) -> None:
    (written,) = witness.notes(folder, "state")
    assert written["folder"] == f"global_step_{len(STEPS)}"
    assert (folder / "checkpoints" / written["folder"] / saved_state.NAME).is_file()
    # Both ranks' parts of the model are there as well.
    assert {file.name for file in (folder / "checkpoints").glob("*/actor/model_*.pt")} == {
        f"model_world_size_2_rank_{rank}.pt" for rank in (0, 1)
    }


def test_the_token_dump_of_the_last_step_is_there(folder: Path) -> None:
    assert "token_dump=3" in COMBINATIONS[-1][-1]
    records = tokens.read_records(folder)
    assert [(record.step, record.sample) for record in records] == [(len(STEPS), sample) for sample in range(3)]
    for record in records:
        # The peaks of the mask have the bonus, the other tokens none.
        assert set(record.bonus_weight) <= {0.0, 1.0}
        assert record.functional == "clamped(clamp_p=0.33)"
