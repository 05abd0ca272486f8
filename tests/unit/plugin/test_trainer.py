"""The driver's arithmetic and checks, without Ray."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from aent_verl.core.controllers import (
    ConstantController,
    EntropyGuidedController,
    LinearDecayController,
    StageController,
)
from aent_verl.methods.axes import Linear, PositiveReweight
from aent_verl.methods.settings import AdvantagesConfig, BonusConfig, EntropyControlConfig, FunctionalConfig
from aent_verl.plugin import trainer
from aent_verl.plugin.coefficients import Snapshot
from aent_verl.plugin.trainer import PlugInNotActiveError, check_reports
from aent_verl.plugin.trainers import EntropyControlTrainerSeparateAsync, EntropyControlTrainerSync
from aent_verl.runs import live_changes
from aent_verl.runs.live_changes import Change
from aent_verl.runs.worker_reports import banner

CONTROL = EntropyControlConfig("entreg", FunctionalConfig("full"), BonusConfig(Linear(), ConstantController(init=0.1)))
LOW = "entropy_control.bonus.controller.low"
CHANGES = Change(3, LOW, 0.2, 0.1, "ann@node", "now"), Change(5, LOW, 0.1, 0.3, "bob@node", "later")
REPORT = {
    "rank": 0,
    "engine": "EntropyControlEngine",
    "loss": "entropy_control_loss",
    "method": "entreg",
    "functional": "full",
    "controller": "ConstantController(init=0.1)",
    "bonus": str(CONTROL.bonus),
    "advantages": str(CONTROL.advantages),
    "rewards": str(CONTROL.rewards),
    "coefficient": 0.1,
    "device": "cpu",
}


def test_matching_reports_pass_and_make_the_banner() -> None:
    check_reports([REPORT, REPORT | {"rank": 1}], CONTROL)
    text = banner([REPORT, REPORT | {"rank": 1}])
    for part in ("2 rank(s)", "method entreg", "functional full", "ConstantController(init=0.1)", "coefficient 0.1"):
        assert part in text


def test_the_banner_names_what_is_done_to_advantages() -> None:
    assert "advantages" not in banner([REPORT])
    shaped = AdvantagesConfig(PositiveReweight(), StageController())
    text = banner([REPORT | {"advantages": str(shaped)}])
    assert "PositiveReweight()" in text
    assert "StageController" in text


@pytest.mark.parametrize("key", ["engine", "loss", "method", "functional", "bonus", "advantages", "rewards"])
def test_a_worker_that_runs_something_else_stops_the_run(key: str) -> None:
    with pytest.raises(PlugInNotActiveError, match=f"rank 1 reports {key}='other'"):
        check_reports([REPORT, REPORT | {"rank": 1, key: "other"}], CONTROL)


def test_no_actor_at_all_stops_the_run() -> None:
    with pytest.raises(PlugInNotActiveError, match="no worker"):
        check_reports([{"rank": 0, "role": "ref"}], CONTROL)


@pytest.mark.parametrize(("platform", "seconds"), [("cpu", 0.2), ("cuda", 2.0)])
def test_on_the_cpu_finished_responses_are_looked_for_more_often(
    platform: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERL_PLATFORM", platform)
    monkeypatch.setattr(PPOTrainerSync, "_build_replay_buffer", lambda self: SimpleNamespace(poll_interval=2.0))
    mine = EntropyControlTrainerSync.__new__(EntropyControlTrainerSync)
    assert mine._build_replay_buffer().poll_interval == seconds


def test_responses_whose_prompt_is_gone_are_cleared_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """verl restores those of the step that the checkpoint had just trained: nobody else would ever remove them."""
    prompt, running = {"is_prompt": True}, {"is_prompt": True, "status": "running"}
    items = {"a": prompt, "a_0_0": {}, "a_1_0": {}, "b_0_0": {}, "b_1_0": {}, "c_d": running, "c_d_0_0": {}}
    cleared = []
    queue = SimpleNamespace(
        kv_list=lambda partition: {partition: items}, kv_clear=lambda keys, partition_id: cleared.append(keys)
    )
    monkeypatch.setattr(trainer, "tq", queue)
    resumed = EntropyControlTrainerSeparateAsync.__new__(EntropyControlTrainerSeparateAsync)
    resumed.global_steps = 3
    resumed._clear_trained_responses()
    assert cleared == [["b_0_0", "b_1_0"]]
    queue.kv_list = lambda partition: None
    resumed._clear_trained_responses()
    assert len(cleared) == 1


def live(folder: Path) -> EntropyControlTrainerSync:
    mine = EntropyControlTrainerSync.__new__(EntropyControlTrainerSync)
    mine.config, mine._changes = OmegaConf.create({"trainer": {"default_local_dir": str(folder)}}), ()
    return mine


def test_what_was_changed_is_logged_once_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine = live(tmp_path)
    mine._note(())
    assert list(tmp_path.iterdir()) == []
    for changes in (CHANGES[:1], CHANGES[:1], CHANGES):
        mine._note(changes)
        assert live_changes.read(tmp_path) == list(changes)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"changed by `aent-verl set`: {change}" for change in CHANGES]


def test_a_start_names_the_changes_that_it_does_not_continue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live_changes.write(tmp_path, CHANGES)
    mine = live(tmp_path)
    mine._take_up(CHANGES[:1])
    assert live_changes.read(tmp_path) == list(mine._changes) == list(CHANGES[:1])
    (record,) = caplog.records
    assert "not in force, for this start does not continue from a step that had it" in record.getMessage()
    assert str(CHANGES[1]) in record.getMessage()


def test_schedules_go_on_through_steps_without_an_update() -> None:
    """During critic_warmup no controller moves; the first update of the actor has its own step's coefficient."""
    mine = EntropyControlTrainerSync.__new__(EntropyControlTrainerSync)
    mine.global_steps, mine.entropy_control = 51, CONTROL
    decay = LinearDecayController(init=1.0, final=0.0, total_steps=101)
    guided = EntropyGuidedController(init=0.25)
    mine._total_steps = 101
    controllers = {"bonus": decay, "advantages": guided}
    states = {axis: controller.initial_state() for axis, controller in controllers.items()}
    sent = mine._step_values(Snapshot(0, controllers, states))
    assert (sent.bonus_coefficient, sent.advantages_coefficient) == (0.5, 0.25)
