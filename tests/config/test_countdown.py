"""Countdown: equal trials for each method, chosen by other problems and seeds than those that are reported."""

from collections import Counter
from pathlib import Path

import pytest

from aent_verl.comparison.grid import plan
from aent_verl.comparison.grid.settings import Settings, parse

FOLDER = Path("examples/countdown")


def grid(name: str) -> Settings:
    return parse([f"grid={FOLDER / name}.yaml"])


@pytest.fixture(scope="module")
def trials() -> list[plan.GridRun]:
    return plan.plan_runs(grid("tuning"))


@pytest.fixture(scope="module")
def reported() -> list[plan.GridRun]:
    return plan.plan_runs(grid("compare"))


def test_every_method_that_is_reported_has_the_same_number_of_trials(trials: list[plan.GridRun]):
    tried = Counter(run.config.entropy_control.method for run in trials)
    assert set(tried) == set(grid("compare").methods)
    assert set(tried.values()) == {4}
    assert len({run.overrides[: run.overrides.index(f"data.seed={run.seed}")] for run in trials}) == len(trials)


def test_neither_seeds_nor_problems_of_the_trials_are_reported(
    trials: list[plan.GridRun], reported: list[plan.GridRun]
):
    assert not {run.seed for run in trials} & {run.seed for run in reported}
    assert all(run.config.data.val_files.endswith("/validation.parquet") for run in trials)
    assert all(run.evaluation is None for run in trials)
    assert all("/test.parquet" in " ".join(run.evaluation) for run in reported)


def test_what_was_chosen_is_one_of_the_trials(trials: list[plan.GridRun], reported: list[plan.GridRun]):
    chosen = {run.method: _choices(run) for run in reported}
    tried = [(run.config.entropy_control.method, _choices(run)) for run in trials]
    for method, choices in chosen.items():
        assert (method, choices) in tried, method


def _choices(run: plan.GridRun) -> tuple[object, ...]:
    control, actor = run.config.entropy_control, run.config.actor_rollout_ref.actor
    return actor.optim.lr, control.bonus.controller, control.advantages.controller
