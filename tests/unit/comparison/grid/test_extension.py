"""A comparison that is trained longer: what resumes, what stays, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aent_verl.comparison.grid.plan import GridRun
from aent_verl.comparison.grid.record import asks_for_length
from aent_verl.core.controllers import Schedule
from aent_verl.methods.settings import ADVANTAGES_CONTROLLERS, BONUS_CONTROLLERS
from aent_verl.runs import provenance
from aent_verl.runs.run import load_run
from tests.unit.comparison.grid.grid import grid_run, scheduler
from tests.unit.comparison.grid.test_scheduler import record, report, starts
from tests.unit.comparison.grid.trainer import STEPS

LONGER = STEPS + 3


def grid(results: Path, steps: int) -> list[GridRun]:
    return [
        grid_run(results, method, seed, evaluated=True, steps=steps)
        for seed in (1, 2, 3)
        for method in ("grpo", "aent")
    ]


def set_in(run: GridRun, key: str, value: object) -> GridRun:
    config = run.config.copy()
    OmegaConf.update(config, key, value, force_add=True)
    return replace(run, config=config)


@pytest.mark.slow
def test_a_finished_grid_resumes_and_is_what_it_would_have_been(tmp_path: Path):
    for steps in (STEPS, LONGER):
        assert not scheduler(grid(tmp_path / "longer", steps), parallel=2).run(lambda _: None)
    assert not scheduler(grid(tmp_path / "whole", LONGER), parallel=2).run(lambda _: None)
    for run in grid(tmp_path / "longer", LONGER):
        assert starts(run.folder) == {"train": 2, "evaluate": 2}
        assert json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])["step"] == STEPS + 1
        loaded = load_run(run.folder)
        assert list(loaded.metrics) == list(range(1, LONGER + 1))
        assert loaded.protocol["trainer.total_training_steps"] == str(LONGER)
        assert f"global_step_{LONGER}" in (run.folder / "evaluation" / "evaluation.json").read_text()
        before = run.folder / f"evaluation_step{STEPS}" / "evaluation.json"
        assert f"global_step_{STEPS}" in before.read_text()
        assert OmegaConf.load(run.folder / "config.yaml").trainer.total_training_steps == LONGER
    assert report(tmp_path / "longer") == report(tmp_path / "whole")


def test_it_resumes_only_once(tmp_path: Path):
    for steps in (STEPS, LONGER, LONGER):
        scheduler([grid_run(tmp_path, "grpo", 1, evaluated=True, steps=steps)]).run(lambda _: None)
    assert starts(tmp_path / "runs" / "grpo_seed1") == {"train": 2, "evaluate": 2}


def test_more_steps_and_another_evaluation(tmp_path: Path):
    scheduler([grid_run(tmp_path, "grpo", 1, evaluated=True)]).run(lambda _: None)
    longer = replace(grid_run(tmp_path, "grpo", 1, steps=LONGER), evaluation=["n=4"])
    scheduler([longer]).run(lambda _: None)
    assert starts(longer.folder) == {"train": 2, "evaluate": 2}
    assert record(longer.folder)["evaluation"] == ["n=4"]


def test_the_commits_and_versions_of_all_parts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for steps, commit in ((STEPS, "aaa"), (LONGER, "bbb"), (LONGER, "ccc"), (LONGER + 1, "aaa"), (LONGER + 2, None)):
        monkeypatch.setattr(provenance, "commit", lambda commit=commit: commit)
        monkeypatch.setattr(provenance, "versions", lambda commit=commit: {"torch": commit or "aaa"})
        scheduler([grid_run(tmp_path, "grpo", 1, steps=steps)]).run(lambda _: None)
    found = record(tmp_path / "runs" / "grpo_seed1")
    assert found["commit"] == "aaa and bbb"
    assert found["versions"] == {"torch": "aaa and bbb"}


def test_fewer_steps_are_refused(tmp_path: Path):
    scheduler([grid_run(tmp_path, "grpo", 1, steps=LONGER)]).run(lambda _: None)
    says = f"has {LONGER} training steps, but {STEPS} are asked for: the number can only increase"
    with pytest.raises(ValueError, match=f"^trainer.total_training_steps={STEPS}: .* {says}"):
        scheduler([grid_run(tmp_path, "grpo", 1)])


def test_what_goes_by_the_length_of_the_run_is_refused_before_any_run_is_changed(tmp_path: Path):
    scheduler([grid_run(tmp_path, "grpo", 1, evaluated=True), grid_run(tmp_path, "aent", 1)]).run(lambda _: None)
    first = grid_run(tmp_path, "grpo", 1, evaluated=True, steps=LONGER)
    last = fine = grid_run(tmp_path, "aent", 1, steps=LONGER)
    for key, value, other in (
        ("entropy_control.bonus.name", "smoothed", "linear"),
        ("entropy_control.bonus.controller.name", "linear_decay", "band"),
        ("entropy_control.advantages.controller.name", "stage", "entropy_guided"),
        ("actor_rollout_ref.actor.optim.lr_scheduler_type", "cosine", "constant"),
        ("actor_rollout_ref.actor.optim.warmup_style", "cosine", None),
        ("actor_rollout_ref.actor.optim.lr_warmup_steps_ratio", 0.1, 0.0),
    ):
        with pytest.raises(ValueError, match=rf"{re.escape(key)}={value} depends on the length"):
            scheduler([first, set_in(last, key, value)])
        assert record(first.folder)["state"] == "complete"
        assert (first.folder / "evaluation").is_dir()
        fine = set_in(fine, key, other)
    scheduler([first, fine])


def test_epochs_that_must_hold_the_steps_may_grow_with_them(tmp_path: Path):
    scheduler([grid_run(tmp_path, "grpo", 1, extra=("trainer.total_epochs=2",))]).run(lambda _: None)
    with pytest.raises(ValueError, match="other settings"):
        scheduler([grid_run(tmp_path, "grpo", 1, extra=("trainer.total_epochs=4",))])
    scheduler([grid_run(tmp_path, "grpo", 1, steps=LONGER, extra=("trainer.total_epochs=4",))]).run(lambda _: None)
    assert max(load_run(tmp_path / "runs" / "grpo_seed1").metrics) == LONGER


def test_a_warm_up_of_so_many_steps_is_not_a_share_of_the_run(tmp_path: Path):
    scheduler([grid_run(tmp_path, "grpo", 1)]).run(lambda _: None)
    optimizer = "actor_rollout_ref.actor.optim."
    longer = set_in(grid_run(tmp_path, "grpo", 1, steps=LONGER), f"{optimizer}lr_warmup_steps_ratio", 0.1)
    scheduler([set_in(longer, f"{optimizer}lr_warmup_steps", 2)])


def test_other_settings_are_refused_all_the_same(tmp_path: Path):
    scheduler([grid_run(tmp_path, "grpo", 1)]).run(lambda _: None)
    with pytest.raises(ValueError, match=r"asked for: data.train_batch_size=2\)"):
        scheduler([grid_run(tmp_path, "grpo", 1, pause=2, steps=LONGER)])


def test_all_controllers_that_go_by_the_length_of_the_run_are_known():
    every = {**BONUS_CONTROLLERS, **ADVANTAGES_CONTROLLERS}
    found = {name for name in BONUS_CONTROLLERS if asks_for_length("bonus", name)}
    found |= {name for name in ADVANTAGES_CONTROLLERS if asks_for_length("advantages", name)}
    assert found == {"linear_decay", "stage", "epoch"}
    assert found | {"constant"} == {name for name, kind in every.items() if issubclass(kind, Schedule)}
    assert not asks_for_length("bonus", None)
