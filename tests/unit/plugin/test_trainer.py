"""The driver's arithmetic and checks, without Ray."""

from types import SimpleNamespace

import pytest
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
from aent_verl.runs.worker_reports import banner

CONTROL = EntropyControlConfig("entreg", FunctionalConfig("full"), BonusConfig(Linear(), ConstantController(init=0.1)))
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
