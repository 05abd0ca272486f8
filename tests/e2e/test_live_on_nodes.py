"""A run on two nodes is watched and changed from a third, killed, and started again; ``make test-cluster``."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from aent_verl.core.controllers import BandController
from aent_verl.runs import checkpoints, live_changes, metrics
from aent_verl.runs.live_changes import Change
from tests.e2e.raylets import Raylets
from tests.e2e.stack import finish, kill, start
from tests.e2e.test_killed_on_nodes import CONTROLLER as BEFORE
from tests.e2e.test_modes import TWO_NODES
from tests.e2e.test_nodes import command, overrides, said

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SECONDS = 600
NAME = "changed_on_nodes"
# Above any entropy of this model, so that the coefficient moves in each step, before and after.
AFTER: BandController = replace(BEFORE, low=2.0, lr=0.005)


@dataclass(frozen=True)
class Changed:
    """What a run left that was changed and killed, and what was printed on the way."""

    folder: Path
    done: int
    status: list[dict[str, object]]
    answer: str
    refused: str
    terminal: str
    changes: list[Change]


@pytest.fixture(scope="module")
def run(raylets: Raylets, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Changed:
    folder = tmp_path_factory.mktemp("changed") / "run"
    band = [f"entropy_control.bonus.controller.{key}={value}" for key, value in vars(BEFORE).items()]
    more = [*TWO_NODES, f"run.dir={folder}", f"trainer.experiment_name={NAME}", *band, "trainer.save_freq=1"]
    log = folder.with_name("train.out")

    def asked(name: str, *words: str) -> tuple[int, str]:
        return said(command(name, "--address", raylets.address, *words), raylets, folder.parent)

    raylets.wait(gpus=2)
    total = "trainer.total_training_steps=200"
    process = start(command("train", *overrides(task, *more, total)), log, **raylets.environment)
    tail = metrics.MetricsTail(folder / metrics.METRICS_FILE)
    deadline = time.monotonic() + SECONDS

    def wait_for(step: int) -> None:
        while not any(found >= step for found, _ in tail.read_new()):
            assert process.poll() is None, log.read_text(errors="replace")[-6000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-6000:]
            time.sleep(0.1)

    try:
        wait_for(1)
        _, status = asked("status", "--json")
        code, refused = asked("set", NAME, "low=4.0")
        assert code == 1, refused
        code, answer = asked("set", NAME, "low=2.0", "lr=0.005")
        assert code == 0, answer
        changes = live_changes.read(folder / "checkpoints")
        wait_for(max(metrics.read_run(folder)) + 3)
        changes = live_changes.read(folder / "checkpoints")
    finally:
        kill(process)
    raylets.wait(gpus=2)
    done = checkpoints.latest_step(folder / "checkpoints")
    total = f"trainer.total_training_steps={done + 2}"
    terminal = finish(start(command("train", *overrides(task, *more, total)), log, **raylets.environment), log, SECONDS)
    return Changed(folder, done, json.loads(status[status.index("[") :]), answer, refused, terminal, changes)


def test_the_status_is_that_of_the_run(run: Changed) -> None:
    (status,) = run.status
    assert (status["run"], status["method"], status["trainer_mode"]) == (NAME, "aent", "aent_sync")
    steps = metrics.read_run(run.folder)
    history = status["history"]
    assert isinstance(history, list)
    assert history
    for step in history:
        logged = steps[step["step"]]
        assert step["bonus"] == {"coefficient": logged["aent/coefficient"], "entropy": logged["aent/entropy"]}


def test_a_wrong_value_is_refused(run: Changed) -> None:
    assert "entropy_control.bonus.controller.high=3.0 is not allowed: must be >= low=4.0" in run.refused


def test_the_coefficient_follows_what_was_in_force(run: Changed) -> None:
    """From the first step that the change is in force for, over the kill and the resume, to the end."""
    low, lr = run.changes
    assert (low.new, lr.new, low.step) == (2.0, 0.005, lr.step)
    assert f"from step {low.step} on" in run.answer
    assert low.step <= run.done
    state = BEFORE.initial_state()
    steps = metrics.read_run(run.folder)
    assert list(steps) == list(range(1, run.done + 3))
    for step, data in steps.items():
        controller = BEFORE if step < low.step else AFTER
        assert data["aent/live_changes"] == (0 if step < low.step else 2)
        assert data["aent/coefficient"] == state.coefficient, step
        state = controller.update(state, entropy=data["aent/entropy"], step=step)
        assert data["aent/coefficient_next"] == state.coefficient, step


def test_the_resume_says_that_it_keeps_the_change(run: Changed) -> None:
    low = run.changes[0]
    assert f"warning: {low.key}=2.0 is kept, which {low.by} set for step {low.step} and later ones" in run.terminal
    assert live_changes.read(run.folder / "checkpoints") == run.changes
    log = (run.folder / "train.log").read_text(errors="replace")
    assert log.count(f"changed by `aent-verl set`: {low}") == 1
