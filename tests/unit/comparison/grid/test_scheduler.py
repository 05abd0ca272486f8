"""The grid as it runs: stages in order, failures named, and a killed comparison resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from aent_verl.comparison.grid.record import last_checkpoint
from aent_verl.comparison.grid.scheduler import Scheduler, _Stage
from aent_verl.comparison.grid.status import DONE, FAILED
from aent_verl.comparison.report.contents import build
from aent_verl.comparison.report.write import as_json
from aent_verl.runs.metrics import read_run
from aent_verl.runs.run import load_run
from tests.unit.comparison.grid.grid import grid_run, scheduler, small_grid
from tests.unit.comparison.grid.trainer import HOLD, STEPS, evaluate


def report(results: Path) -> str:
    """The numbers of the report, without where and when its runs were made."""
    runs = [load_run(folder) for folder in sorted((results / "runs").iterdir())]
    text = as_json(build(runs, baseline="grpo", title="a grid", target="these problems")).replace(
        str(results), "RESULTS"
    )
    return re.sub(r'"(seconds|starts|at|versions)": ("[^"]*"|\d[\d.]*|\[[^\]]*\]|{[^}]*})', "", text)


def starts(folder: Path) -> Counter:
    return Counter((folder / "starts.txt").read_text().split())


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_each_run_is_trained_evaluated_and_recorded(tmp_path: Path):
    grid = [grid_run(tmp_path, method, seed, evaluated=True) for seed in (1, 2) for method in ("grpo", "aent")]
    seen = []
    failed = scheduler(grid, parallel=2).run(lambda statuses: seen.append([status.state for status in statuses]))
    assert not failed
    assert max(states.count("train") + states.count("evaluate") for states in seen) == 2
    for run in grid:
        assert starts(run.folder) == {"train": 1, "evaluate": 1}
        assert record(run.folder)["state"] == "complete"
        assert set(record(run.folder)["seconds"]) == {"train", "evaluate"}
        loaded = load_run(run.folder)
        assert (loaded.method, loaded.seed, loaded.last_step) == (run.method, run.seed, STEPS)
        assert loaded.scores.scores.shape == (8, 2)


def test_a_finished_grid_is_not_repeated(tmp_path: Path):
    grid = [grid_run(tmp_path, "grpo", 1), grid_run(tmp_path, "aent", 1)]
    scheduler(grid).run(lambda _: None)
    again = scheduler([*grid, grid_run(tmp_path, "aent", 2)])
    again.run(lambda _: None)
    assert [starts(run.folder)["train"] for run in grid] == [1, 1]
    assert [status.state for status in again.statuses] == [DONE] * 3
    assert again.statuses[0].step == STEPS
    assert again.statuses[0].accuracy == pytest.approx(0.5 + 0.01 + 0.02 * STEPS)


@pytest.mark.slow
def test_a_killed_grid_resumes_and_ends_the_same(tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert not scheduler(small_grid(whole)).run(lambda _: None)
    aent = killed / "runs" / "aent_seed1"
    aent.mkdir(parents=True)
    (aent / HOLD).touch()
    process = subprocess.Popen([sys.executable, "-m", "tests.unit.comparison.grid.grid", str(killed)])
    wait_for(lambda: (aent / "metrics.jsonl").exists() and len((aent / "metrics.jsonl").read_text().splitlines()) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not trainers(killed))
    assert not (killed / "runs" / "aent_seed2" / "starts.txt").exists()
    (aent / HOLD).unlink()
    assert not scheduler(small_grid(killed)).run(lambda _: None)
    assert starts(killed / "runs" / "grpo_seed1") == {"train": 1, "evaluate": 1}
    assert starts(aent) == {"train": 2, "evaluate": 1}
    assert len(list(aent.glob("metrics*.jsonl"))) == 2
    assert min(json.loads(line)["step"] for line in (aent / "metrics.jsonl").read_text().splitlines()) > 1
    for name in ("grpo_seed1", "aent_seed1", "aent_seed2"):
        one, two = load_run(whole / "runs" / name), load_run(killed / "runs" / name)
        assert one.metrics == two.metrics
        assert one.protocol == two.protocol
    assert report(whole) == report(killed)


def test_an_evaluation_that_was_killed_is_repeated_and_the_training_is_not(tmp_path: Path):
    run = grid_run(tmp_path, "grpo", 1, evaluated=True)
    scheduler([run]).run(lambda _: None)
    (run.folder / "evaluation" / "evaluation.json").unlink()
    scheduler([run]).run(lambda _: None)
    assert starts(run.folder) == {"train": 1, "evaluate": 2}


def test_an_evaluation_can_be_added_to_a_trained_grid(tmp_path: Path):
    scheduler([grid_run(tmp_path, "grpo", 1)]).run(lambda _: None)
    run = grid_run(tmp_path, "grpo", 1, evaluated=True)
    scheduler([run]).run(lambda _: None)
    assert starts(run.folder) == {"train": 1, "evaluate": 1}
    assert record(run.folder)["evaluation"] == ["n=2"]


def test_an_evaluation_made_by_hand_stands_in_the_way_of_the_one_asked_for(tmp_path: Path):
    scheduler([grid_run(tmp_path, "grpo", 1)]).run(lambda _: None)
    run = grid_run(tmp_path, "grpo", 1, evaluated=True)
    evaluate([f"output={run.folder}/evaluation", "model=checkpoints/global_step_2"])
    # `aent-verl evaluate` would refuse to replace it, after the comparison has begun.
    with pytest.raises(ValueError, match=r"by another command, asked for is n=2: remove or rename evaluation"):
        scheduler([run])
    (run.folder / "evaluation").rename(run.folder / "mine")
    scheduler([run]).run(lambda _: None)
    assert "global_step_6" in (run.folder / "evaluation" / "evaluation.json").read_text()


def test_an_evaluation_that_is_no_longer_asked_for_is_not_missed(tmp_path: Path):
    run = grid_run(tmp_path, "grpo", 1, evaluated=True)
    scheduler([run]).run(lambda _: None)
    (run.folder / "evaluation" / "evaluation.json").unlink()
    half = scheduler([run])
    assert record(run.folder)["state"] == "complete"
    assert half.statuses[0].state != DONE
    assert scheduler([grid_run(tmp_path, "grpo", 1)]).statuses[0].state == DONE


def test_a_run_that_never_started_takes_new_settings(tmp_path: Path):
    scheduler([grid_run(tmp_path, "grpo", 1)])
    again = scheduler([grid_run(tmp_path, "grpo", 1, extra=("trainer.x=2",))])
    again.run(lambda _: None)
    assert "trainer.x=2" in record(again.statuses[0].run.folder)["overrides"]


def test_data_that_changed_since_a_run_started_is_refused(tmp_path: Path):
    run = grid_run(tmp_path, "fails", 1)
    scheduler([run]).run(lambda _: None)
    changed = grid_run(tmp_path, "fails", 1, pause=2)
    with pytest.raises(
        ValueError, match=r"changed since it started \(data.train_batch_size: 1 in when it started; 2 in now"
    ):
        scheduler([replace(changed, overrides=run.overrides)])


def test_the_log_of_an_evaluation_is_a_sign_of_life(tmp_path: Path):
    run = grid_run(tmp_path, "grpo", 1, evaluated=True)
    made = scheduler([run], stall_seconds=1)
    log = run.folder / "evaluation" / "evaluation.log"
    log.parent.mkdir(parents=True)
    running = _Stage(made.statuses[0], None, tmp_path / "x.log", started_at=time.time() - 10)
    assert made._stalled(running)
    log.write_text("still here")
    assert not made._stalled(running)


def test_all_runs_are_stopped_even_if_one_cannot_be(tmp_path: Path):
    stopped = []

    class Handle:
        def __init__(self, arguments, log):
            self.log = log

        def poll(self):
            return None

        def stop(self):
            stopped.append(self.log.parent.name)
            raise OSError("no answer")

    made = Scheduler([grid_run(tmp_path, "grpo", seed) for seed in (1, 2)], Handle, parallel=2, stall_seconds=0)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(OSError, match="no answer"):
        made.run(interrupt)
    assert sorted(stopped) == ["grpo_seed1", "grpo_seed2"]


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path):
    grid = [grid_run(tmp_path, method, 1) for method in ("fails", "ends_early", "grpo")]
    failed = scheduler(grid).run(lambda _: None)
    assert [status.run.method for status in failed] == ["fails", "ends_early"]
    assert failed[0].state == FAILED
    assert "boom: out of memory" in failed[0].reason
    assert "ended at step 2 of 6" in failed[1].reason
    assert record(grid[2].folder)["state"] == "complete"
    assert record(grid[0].folder)["state"] == "started"


def test_a_failed_run_is_tried_again_from_its_checkpoint(tmp_path: Path):
    run = grid_run(tmp_path, "fails", 1)
    for count in (1, 2):
        assert scheduler([run]).run(lambda _: None)
        assert starts(run.folder)["train"] == count
    assert max(read_run(run.folder)) == 2


def test_a_run_that_says_nothing_is_stopped(tmp_path: Path):
    run = grid_run(tmp_path, "stalls", 1)
    failed = scheduler([run], stall_seconds=0.5).run(lambda _: None)
    assert "stall_minutes" in failed[0].reason
    assert not trainers(tmp_path)


def test_an_interrupted_grid_stops_its_runs(tmp_path: Path):
    def interrupt(statuses):
        if statuses[0].step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scheduler([grid_run(tmp_path, "grpo", 1, pause=50)]).run(interrupt)
    assert not trainers(tmp_path)


def test_a_folder_with_other_settings_is_refused(tmp_path: Path):
    scheduler([grid_run(tmp_path, "grpo", 1)]).run(lambda _: None)
    with pytest.raises(
        ValueError, match=r"other settings \(there: the same in another order; asked for: trainer.x=2\)"
    ):
        scheduler([grid_run(tmp_path, "grpo", 1, extra=("trainer.x=2",))])


def test_a_folder_with_someone_elses_run_is_refused(tmp_path: Path):
    run = grid_run(tmp_path, "grpo", 1)
    run.folder.mkdir(parents=True)
    run.metrics_file.write_text("")
    with pytest.raises(ValueError, match="compare did not make"):
        scheduler([run])


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def trainers(folder: Path) -> list[str]:
    """The stand-in trainers at work in a folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "tests.unit.comparison.grid.trainer" in command and str(folder) in command:
            found.append(pid)
    return found


def test_a_damaged_tracker_is_named(tmp_path: Path):
    run = grid_run(tmp_path, "grpo", 1, evaluated=True)
    scheduler([run]).run(lambda _: None)
    (run.folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("")
    with pytest.raises(ValueError, match=r"iteration\.txt holds '' and not a step"):
        last_checkpoint(run)
