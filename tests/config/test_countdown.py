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
def trials() -> list[plan.Cell]:
    return plan.cells(grid("tuning"))


@pytest.fixture(scope="module")
def reported() -> list[plan.Cell]:
    return plan.cells(grid("compare"))


def test_every_method_that_is_reported_has_the_same_number_of_trials(trials: list[plan.Cell]):
    tried = Counter(cell.config.entropy_control.method for cell in trials)
    assert set(tried) == set(grid("compare").methods)
    assert set(tried.values()) == {4}
    assert len({cell.overrides[: cell.overrides.index(f"data.seed={cell.seed}")] for cell in trials}) == len(trials)


def test_neither_seeds_nor_problems_of_the_trials_are_reported(trials: list[plan.Cell], reported: list[plan.Cell]):
    assert not {cell.seed for cell in trials} & {cell.seed for cell in reported}
    assert all(cell.config.data.val_files.endswith("/validation.parquet") for cell in trials)
    assert all(cell.evaluation is None for cell in trials)
    assert all("/test.parquet" in " ".join(cell.evaluation) for cell in reported)


def test_what_was_chosen_is_one_of_the_trials(trials: list[plan.Cell], reported: list[plan.Cell]):
    chosen = {cell.method: _choices(cell) for cell in reported}
    tried = [(cell.config.entropy_control.method, _choices(cell)) for cell in trials]
    for method, choices in chosen.items():
        assert (method, choices) in tried, method


def _choices(cell: plan.Cell) -> tuple[object, ...]:
    control, actor = cell.config.entropy_control, cell.config.actor_rollout_ref.actor
    return actor.optim.lr, control.bonus.controller, control.advantages.controller
