"""How long a grid still takes, and what is shown of it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from aent_verl.comparison.grid import display
from aent_verl.comparison.grid.plan import GridRun
from aent_verl.comparison.grid.status import DONE, EVALUATE, FAILED, TRAIN, WAITING, Status, seconds_left
from tests.unit.comparison.grid.grid import grid_run
from tests.unit.comparison.grid.trainer import STEPS


def status(run: GridRun, state: str, steps: int, seconds_a_step: float, **seconds: float) -> Status:
    run.folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "step": step,
            "data": {"critic/score/mean": 0.5, "timing_s/step": seconds_a_step, "val-core/t/acc/mean@4": 0.25},
        }
        for step in range(1, steps + 1)
    ]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Status(run, {"seconds": dict(seconds)}, state)


@pytest.fixture
def grid(tmp_path: Path) -> list[Status]:
    """Two of four runs done: a step of grpo takes 10 s, of aent 20; 30 s outside the steps; 7 s an evaluation."""

    def make(method: str, seed: int, *arguments, **seconds: float) -> Status:
        return status(grid_run(tmp_path, method, seed, evaluated=True), *arguments, **seconds)

    return [
        make("grpo", 1, DONE, STEPS, 10.0, train=10.0 * STEPS + 30, evaluate=7.0),
        make("aent", 1, DONE, STEPS, 20.0, train=20.0 * STEPS + 30, evaluate=7.0),
        make("grpo", 2, TRAIN, 2, 10.0),
        make("aent", 2, WAITING, 0, 0.0),
    ]


def test_time_left_counts_steps_start_and_evaluation(grid: list[Status]):
    running = (STEPS - 2) * 10 + 7
    waiting = STEPS * 20 + 30 + 7
    assert seconds_left(grid, parallel=1) == pytest.approx(running + waiting)
    assert seconds_left(grid, parallel=2) == pytest.approx((running + waiting) / 2)


def test_a_method_that_has_not_run_yet_is_taken_to_be_like_the_others(grid: list[Status], tmp_path: Path):
    other = status(grid_run(tmp_path, "skywork", 1, evaluated=True), WAITING, 0, 0.0)
    assert seconds_left([*grid[:2], other], parallel=1) == pytest.approx(STEPS * 15 + 30 + 7)


def test_failed_and_finished_runs_take_no_time(grid: list[Status]):
    grid[2].state = grid[3].state = FAILED
    assert seconds_left(grid, parallel=1) == 0


def test_before_the_first_step_no_time_is_told(tmp_path: Path):
    assert seconds_left([Status(grid_run(tmp_path, "grpo", 1), {"seconds": {}})], parallel=1) is None


def test_lines_tell_what_changed(grid: list[Status]):
    out = io.StringIO()
    shown = display.GridDisplay(Console(file=out, width=100), parallel=1)
    grid[3].state, grid[3].reason = FAILED, "out of memory"
    with shown:
        shown.show(grid)
        before = out.getvalue()
        shown.show(grid)
    assert out.getvalue() == before
    assert before.splitlines() == [
        "grpo seed 1: done, 6 steps, last validation 0.250, 1 min 37 s",
        "aent seed 1: done, 6 steps, last validation 0.250, 2 min 37 s",
        "grpo seed 2: train (2 of 6 steps)",
        "aent seed 2: failed: out of memory",
    ]


def test_the_table_fits_a_terminal_of_80_columns(grid: list[Status]):
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=False)
    console.print(display.table(grid))
    console.print(display.total(grid, parallel=1))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == 6
    assert "grpo seed 2  train     2/6" in lines[3]
    assert lines[-1].startswith("2 of 4 runs done, about 3 min 24 s left")


def test_a_large_grid_shows_what_runs_and_what_failed(tmp_path: Path):
    states = [DONE] * 40 + [TRAIN, EVALUATE, FAILED] + [WAITING] * 10
    grid = [Status(grid_run(tmp_path, "grpo", seed), {"seconds": {}}, state) for seed, state in enumerate(states)]
    assert display.table(grid).row_count == 3
