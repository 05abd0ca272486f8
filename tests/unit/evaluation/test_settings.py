import math
import re
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from aent_verl.evaluation import settings
from aent_verl.preflight import PreflightError
from aent_verl.preflight.findings import FAILED, WARNING


def test_short_keys_are_written_out_and_all_others_left_alone() -> None:
    given = [
        "model=m",
        "data=[a=b.parquet,c]",
        "n=4",
        "platform=cpu",
        "data.seed=1",
        "+x=1",
        "--cfg",
        "run.progress=false",
    ]
    assert settings.long_form(given) == [
        "actor_rollout_ref.model.path=m",
        "data.val_files=[a=b.parquet,c]",
        "actor_rollout_ref.rollout.val_kwargs.n=4",
        *given[3:],
    ]


def test_every_short_key_is_a_setting_of_the_config(composed_evaluation: DictConfig) -> None:
    missing = object()
    for key in settings.SHORT_KEYS.values():
        assert OmegaConf.select(composed_evaluation, key, default=missing) is not missing, key


def test_messages_speak_of_the_keys_that_users_type() -> None:
    message = (
        "data.val_files='x': no such file. Set data.val_files to yours; data.val_files_2 and my.data.val_files stay"
    )
    assert settings.short_form(message) == (
        "data='x': no such file. Set data to yours; data.val_files_2 and my.data.val_files stay"
    )


def test_keys_that_were_typed() -> None:
    assert settings.typed_keys(["a.b=1", "+c=2", "~d", "x@y=3"]) == {"a.b", "c", "d", "x"}


RUN = {
    "data": {"val_files": "val.parquet", "max_response_length": 8, "apply_chat_template_kwargs": {"thinking": False}},
    "actor_rollout_ref": {"rollout": {"val_kwargs": {"n": 2, "temperature": 0.6}}, "model": {"path": "elsewhere"}},
    "reward": {"custom_reward_function": {"path": "mine.py", "name": "score", "reward_kwargs": {"strict": True}}},
    "trainer": {"n_gpus_per_node": 4},
}


def test_a_checkpoint_is_evaluated_as_its_run_was_validated(composed_evaluation: DictConfig) -> None:
    cfg = composed_evaluation.copy()
    changed = settings.inherit(cfg, RUN, typed={"actor_rollout_ref.rollout.val_kwargs.n"})
    assert cfg.data.val_files == "val.parquet"
    assert cfg.data.apply_chat_template_kwargs == {"thinking": False}
    assert cfg.reward.custom_reward_function == RUN["reward"]["custom_reward_function"]
    assert cfg.actor_rollout_ref.rollout.val_kwargs.temperature == 0.6
    # What the user typed stays, and so does what is none of the run's business here.
    assert cfg.actor_rollout_ref.rollout.val_kwargs.n == 4
    assert cfg.actor_rollout_ref.model.path != "elsewhere"
    assert cfg.trainer.n_gpus_per_node == 1
    assert "data.max_response_length" not in changed  # it was 8 before
    assert "actor_rollout_ref.rollout.val_kwargs.temperature" in changed


def test_of_a_block_that_was_typed_in_part_nothing_is_taken_over(composed_evaluation: DictConfig) -> None:
    cfg = composed_evaluation.copy()
    before = cfg.reward.custom_reward_function.copy()
    settings.inherit(cfg, RUN, typed={"reward.custom_reward_function.path"})
    assert cfg.reward.custom_reward_function == before


def test_an_experiment_stands_above_the_run(composed_evaluation: DictConfig) -> None:
    cfg = composed_evaluation.copy()
    assert settings.inherit(cfg, RUN, typed={"experiment"}) == []
    assert cfg == composed_evaluation


def warnings(cfg: DictConfig) -> list[str]:
    """What an evaluation's own checks warn of; none of them fails."""
    rows = [row for row in settings.check(cfg) if row.check == "evaluation"]
    assert {row.state for row in rows} <= {WARNING}
    return [row.detail for row in rows]


def test_sampling(cfg: DictConfig) -> None:
    assert settings.sampling_of(cfg) == settings.Sampling(
        n=4, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=8, seed=42
    )
    assert warnings(cfg) == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("n", 0, r"n=0: .* at least 1\. Set n=16"),
        ("n", 1.5, "whole number"),
        ("n", True, "whole number"),
        ("n", None, "whole number"),
        ("temperature", -0.1, r"temperature=-0.1: .* at least 0\. Set temperature=1.0"),
        ("temperature", math.nan, "at least 0"),
        ("temperature", math.inf, "at least 0"),
        ("temperature", "hot", "at least 0"),
        ("top_p", 0, r"top_p=0: .*\(0, 1\]"),
        ("top_p", 1.01, r"in \(0, 1\]"),
        ("top_k", 0, "top_k=0: .*Set top_k=-1"),
        ("top_k", -2, "top_k=-2"),
        ("max_response_length", 0, "max_response_length=0"),
        ("seed", -1, "seed=-1"),
    ],
)
def test_every_bound_of_the_sampling(cfg: DictConfig, key: str, value: Any, expected: str) -> None:
    OmegaConf.update(cfg, settings.SHORT_KEYS[key], value)
    with pytest.raises(PreflightError, match=expected):
        settings.sampling_of(cfg)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("evaluation.scorers", 0, "scorers=0"),
        ("evaluation.score_timeout", 0, "score_timeout=0"),
        ("evaluation.score_timeout", math.inf, "score_timeout=inf"),
        ("reward.reward_model.enable", True, "reward function alone"),
    ],
)
def test_every_bound_of_the_scoring(cfg: DictConfig, key: str, value: Any, expected: str) -> None:
    assert warnings(cfg) == []
    OmegaConf.update(cfg, key, value)
    (row,) = [row for row in settings.check(cfg) if row.state == FAILED]
    assert re.search(expected, row.detail)


def test_settings_that_do_less_than_one_may_think_are_named(cfg: DictConfig) -> None:
    cfg.actor_rollout_ref.rollout.val_kwargs.temperature = 0
    cfg.actor_rollout_ref.rollout.val_kwargs.top_k = 5
    with open_dict(cfg):
        cfg.reward.reward_manager.source = "importlib"
    found = warnings(cfg)
    assert ["temperature=0 with n=4" in found[0], "no effect" in found[1], "not used" in found[2]] == [True] * 3
    cfg.actor_rollout_ref.rollout.val_kwargs.n = 1
    assert "n=" not in warnings(cfg)[0]
