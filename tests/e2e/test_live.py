"""`aent-verl status` and `aent-verl set` on a real Ray cluster; the runs are those of tests/e2e/live_run.py."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from aent_verl.commands import main
from tests.e2e.stack import ray_head

pytestmark = pytest.mark.slow


class Run:
    """A driver of its own, as each training is."""

    def __init__(self, address: str, name: str, job: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.live_run", address, name, job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.job = self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self._answer() == "done"

    def end(self) -> None:
        self.process.kill()
        self.process.wait(60)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Address of a cluster's head."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_head("--include-dashboard=false", "--num-cpus=2") as port:
            yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def runs(address: str) -> Iterator[tuple[Run, Run]]:
    """Two runs of one name."""
    both = Run(address, "mine", "first"), Run(address, "mine", "second")
    yield both
    for run in both:
        run.end()


def statuses(address: str, capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, Any]]:
    assert main.main(["status", "--address", address, "--json", *more]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def change(address: str, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main.main(["set", "--address", address, *words])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_a_running_job_is_watched_and_changed(
    address: str, runs: tuple[Run, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = runs
    assert [run["folder"] for run in statuses(address, capsys)] == ["/runs/first", "/runs/second"]
    for step in (1, 2):
        first.tell(f"begin {step}")
        first.tell(f"update {step} 0.25")
    first.tell("begin 3")
    status, said = change(address, capsys, first.job, "low=.2", "high=0.4")
    assert status == 0, said
    assert said.startswith("entropy_control.bonus.controller.low: 0.5 -> 0.2 from step 4 on (by ")
    (before,) = statuses(address, capsys, "--run", first.job)
    assert before["axes"]["bonus"]["settings"]["low"] == 0.5
    first.tell("update 3 nan")
    (after,) = statuses(address, capsys, "--run", first.job)
    assert (after["axes"]["bonus"]["settings"]["low"], after["step"]) == (0.2, 3)
    assert [step["bonus"]["entropy"] for step in after["history"]] == [0.25, 0.25, None]
    assert [change["new"] for change in after["changes"]] == [0.2, 0.4]
    (other,) = statuses(address, capsys, "--run", second.job)
    assert (other["begun"], other["changes"]) == (False, [])
    assert main.main(["status", "--address", address]) == 0
    assert "step 3 of 40" in capsys.readouterr().out


def test_what_cannot_be_changed(address: str, runs: tuple[Run, Run], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = runs
    first.tell("begin 4")
    for words, message in {
        (first.job, "low=-1"): f"{first.job} is unchanged: entropy_control.bonus.controller.low=-1 is not allowed",
        (first.job, "lw=1"): "lw cannot be changed while method aent runs; these can: bonus.coefficient, bonus.init",
        (first.job, "low"): "'low' is not of the form key=value",
        (first.job, "low=1", "low=2"): "low is given twice",
        (second.job, "low=1"): "has not begun its first step",
        ("mine", "low=1"): f"2 runs are named 'mine': give the job's id instead, one of {first.job} (/runs/first on",
        ("other", "low=1"): "no run 'other' trains on this cluster; there are: mine, mine",
    }.items():
        status, said = change(address, capsys, *words)
        assert (status, message in said) == (1, True), said
    assert statuses(address, capsys, "--run", first.job)[0]["axes"]["bonus"]["settings"]["low"] == 0.2


def test_a_run_that_ended(address: str, runs: tuple[Run, Run], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = runs
    second.end()
    # Ray ends the actors of a driver that is gone.
    while len(statuses(address, capsys)) == 2:
        pass
    status, said = change(address, capsys, second.job, "low=1")
    assert (status, said) == (1, f"error: no run '{second.job}' trains on this cluster; there are: mine\n")
    assert statuses(address, capsys, "--run", "tests/mine")[0]["job"] == first.job


@pytest.mark.parametrize("wrong", ["127.0.0.1:1", "http://127.0.0.1:8265", "nowhere.invalid:6379"])
def test_no_cluster(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["status", "--address", wrong]) == 1
    said = capsys.readouterr().err
    assert f"error: no Ray cluster can be joined at '{wrong}' (" in said
    assert "--address host:6379" in said
    assert os.linesep not in said.strip()
