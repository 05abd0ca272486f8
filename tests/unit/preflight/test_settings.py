"""One list of checks of settings, and one way to show it."""

import io
import warnings

import pytest
from omegaconf import open_dict

from aent_verl import preflight
from aent_verl.launch import command_line
from aent_verl.preflight.findings import FAILED, OK, WARNING, PreflightError, PreflightFailed, Row
from tests.config.composing import MICRO_BATCHES
from tests.unit.preflight.finding import config

NO_EFFECT = ["actor_rollout_ref.actor.calculate_entropy=true"]


def rows(*overrides: str, state: str) -> list[str]:
    found = preflight.check_settings(config(*MICRO_BATCHES, *overrides))
    return [row.detail for row in found if row.state == state]


@pytest.mark.parametrize(
    ("overrides", "warns"),
    [
        ([], ["rollout.n=1: algorithm.adv_estimator=grpo compares", "trainer.save_freq=-1: saves no checkpoint"]),
        (["trainer.save_freq=5", "actor_rollout_ref.rollout.n=8"], []),
        (["trainer.save_freq=5", "algorithm.adv_estimator=reinforce_plus_plus"], []),
        (
            ["trainer.save_freq=5", "actor_rollout_ref.rollout.n=8", *NO_EFFECT],
            ["calculate_entropy=True has no effect"],
        ),
        (["trainer.save_freq=5", "actor_rollout_ref.rollout.n=8", "trainer.logger=[console]"], ["plot stay empty"]),
    ],
)
def test_what_loses_work_learns_nothing_or_has_no_effect_is_a_warning(overrides: list[str], warns: list[str]) -> None:
    found = rows(*overrides, state=WARNING)
    assert len(found) == len(warns)
    for line, text in zip(found, warns, strict=True):
        assert text in line


def test_no_setting_without_effect_reaches_the_terminal_as_pythons_own_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert rows(*NO_EFFECT, state=WARNING)
    assert not [item for item in caught if "has no effect" in str(item.message)]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("entropy_control.functional.clamp_p=2", "entropy_control.functional.clamp_p=2"),
        ("actor_rollout_ref.actor.entropy_coeff=0.1", "entropy_coeff=0.1"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=100000", "100000"),
    ],
)
def test_an_invalid_setting_of_ours_or_verls_fails_without_the_layers_of_hydra(override: str, problem: str) -> None:
    text = "\n".join(rows(override, state=FAILED))
    assert problem in text
    assert "Instantiation" not in text


def test_a_config_without_a_method_fails() -> None:
    cfg = config(*MICRO_BATCHES)
    with open_dict(cfg):
        cfg.actor_rollout_ref.actor._target_ = "verl.workers.config.FSDPActorConfig"
        del cfg.actor_rollout_ref.actor["entropy_control"]
        del cfg["entropy_control"]
    details = [row.detail for row in preflight.check_settings(cfg) if row.state == FAILED]
    assert ["trains without entropy control" in line and "+entropy_control=aent" in line for line in details] == [True]


def test_all_that_holds_and_warns_is_said_before_the_one_error_is_raised() -> None:
    error = PreflightError("data.x", 1, "is wrong", hint="Set data.x=2")
    terminal = io.StringIO()
    with pytest.raises(PreflightError, match=r"^data\.x=1: is wrong\. Set data\.x=2$") as caught:
        preflight.say(
            [Row("a", FAILED, "d", error), Row("b", WARNING, "w"), Row("c", OK, "o")], terminal, about="aent: "
        )
    assert caught.value is error
    assert terminal.getvalue() == "warning: aent: w\nchecked: aent: o\n"


def test_several_errors_are_raised_together() -> None:
    with pytest.raises(PreflightFailed, match=r"2 things do not fit:\n  first\n  second"):
        preflight.say([Row("a", FAILED, "first"), Row("b", FAILED, "second")], io.StringIO())


def test_a_key_is_named_by_one_check() -> None:
    keys = {
        "actor_rollout_ref.rollout.do_sample": "false",
        "actor_rollout_ref.model.lora.rank": "8",
        "algorithm.use_pf_ppo": "true",
        "algorithm.adv_estimator": "gpro",
        "algorithm.use_kl_in_reward": "true",
        "algorithm.kl_penalty": "k4",
        "trainer.save_freq": "5",
    }
    cfg = config(*MICRO_BATCHES, *(f"{key}={value}" for key, value in keys.items()))
    found = [row.key for row in preflight.check_settings(cfg) if row.key is not None]
    assert len(found) == len(set(found))
    assert set(keys) - {"trainer.save_freq", "algorithm.use_kl_in_reward"} <= set(found)


def test_verls_bare_defaults_get_findings_and_no_exception_of_another_kind() -> None:
    """verl's own command needs a rollout engine and micro-batch sizes: each is named with its key."""
    cfg = command_line.parse(["python", "-m", "verl.trainer.main_ppo"]).completed().compose()
    failed = [row for row in preflight.check_settings(cfg) if row.state == FAILED and row.check != "settings"]
    assert all(isinstance(row.error, PreflightError) for row in failed)
    assert {"actor_rollout_ref.rollout.name", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"} <= {
        row.key for row in failed
    }
