"""Countdown: equal trials for each method, chosen by other problems and seeds than those that are reported."""

import functools
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from aent_verl.comparison.grid import plan
from aent_verl.comparison.grid.settings import Settings, parse

FOLDER = Path("examples/countdown")


@functools.cache
def grid(name: str, *overrides: str) -> Settings:
    return parse([f"grid={FOLDER / name}.yaml", *overrides])


@pytest.fixture(scope="module")
def reported() -> dict[str, plan.GridRun]:
    """The first seed of each method; seeds differ in nothing else."""
    return {run.method: run for run in plan.plan_runs(grid("compare", "seeds=[11]"))}


@pytest.fixture(scope="module")
def trials(reported: dict[str, plan.GridRun]) -> list[tuple[str, DictConfig]]:
    """Method and config of each trial: its own settings over those of the method, without composing all of them."""
    found = []
    for preset, *own in grid("tuning").methods.values():
        method = preset.removeprefix("entropy_control=")
        config = reported[method].config.copy()
        for key, _, value in (text.partition("=") for text in own):
            OmegaConf.update(config, key, OmegaConf.create(f"value: {value}").value)
        found.append((method, config))
    return found


def test_every_method_that_is_reported_has_the_same_number_of_trials(trials: list[tuple[str, DictConfig]]):
    tried = Counter(method for method, _ in trials)
    assert set(tried) == set(grid("compare").methods)
    assert set(tried.values()) == {4}
    assert len(set(grid("tuning").methods.values())) == len(trials)


def test_neither_seeds_nor_problems_of_the_trials_are_reported(reported: dict[str, plan.GridRun]):
    assert not set(grid("tuning").seeds) & set(grid("compare").seeds)
    assert set(grid("tuning").overrides) > set(grid("compare").overrides)
    assert not any("data." in text for text in grid("tuning").overrides)
    assert all(run.config.data.val_files.endswith("/validation.parquet") for run in reported.values())
    assert not grid("tuning").evaluation
    assert all("/test.parquet" in " ".join(run.evaluation or ()) for run in reported.values())


def test_what_was_chosen_is_one_of_the_trials(reported: dict[str, plan.GridRun], trials: list[tuple[str, DictConfig]]):
    tried = [(method, _choices(config)) for method, config in trials]
    for method, run in reported.items():
        assert (method, _choices(run.config)) in tried, method


def _choices(config: DictConfig) -> tuple[object, ...]:
    control, actor = config.entropy_control, config.actor_rollout_ref.actor
    return actor.optim.lr, control.bonus.controller, control.advantages.controller
