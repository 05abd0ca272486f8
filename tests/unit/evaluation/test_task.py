"""Everything that is checked before a server starts, on a real tokenizer and data set."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from aent_verl.evaluation import checkpoint
from aent_verl.evaluation.task import Task, prepare, problems_of
from aent_verl.preflight import PreflightError
from tests.unit.evaluation.conftest import ROWS
from tests.unit.preflight.rows import row, write


def prepared(cfg: DictConfig) -> tuple[Task, str]:
    terminal = io.StringIO()
    return prepare(cfg, checkpoint.locate(cfg.actor_rollout_ref.model.path), terminal), terminal.getvalue()


def test_problems_prompts_and_record(cfg: DictConfig) -> None:
    from transformers import AutoTokenizer

    from aent_verl.data.tasks.warm_start import prompt_ids

    task, terminal = prepared(cfg)
    assert [problem.ground_truth for problem in task.problems] == ["0", "1", "2", "1", "2", "3"]
    tokenizer = AutoTokenizer.from_pretrained(cfg.actor_rollout_ref.model.path)
    assert list(task.prompts) == [prompt_ids(tokenizer, one["prompt"]) for one in ROWS]
    assert task.record["data"][0]["problems"] == 6
    assert task.record["sampling"] == {
        "n": 4, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 8, "seed": 42
    }  # fmt: skip
    assert task.record["reward"] == f"{cfg.reward.custom_reward_function.path}:compute_score"
    json.dumps(task.record)
    assert "checked: model: " in terminal
    assert "checked: reward: " in terminal


def test_servers_get_real_weights_and_the_log_probabilities_of_what_is_sampled(cfg: DictConfig) -> None:
    cfg.actor_rollout_ref.rollout.load_format = "dummy"
    cfg.actor_rollout_ref.rollout.logprobs_mode = "raw_logprobs"
    prepared(cfg)
    rollout = cfg.actor_rollout_ref.rollout
    assert (rollout.load_format, rollout.logprobs_mode) == ("auto", "processed_logprobs")
    assert rollout.max_model_len == 96 + 8
    assert rollout.nnodes == 1


def record(cfg: DictConfig) -> dict[str, Any]:
    return prepared(cfg)[0].record


def test_what_is_asked_decides_what_the_evaluation_is(cfg: DictConfig, tmp_path: Path) -> None:
    first = record(cfg)
    assert record(cfg) == first
    (tmp_path / "score.py").write_text((tmp_path / "score.py").read_text() + "\n# another one\n")
    assert record(cfg)["reward_sha256"] != first["reward_sha256"]
    write(tmp_path / "test.parquet", ROWS[:5])
    assert record(cfg)["data"] != first["data"]
    cfg.actor_rollout_ref.rollout.val_kwargs.temperature = 0.5
    assert record(cfg)["sampling"] != first["sampling"]
    assert record(cfg)["weights"] == first["weights"]


def test_several_files_and_repeated_problems(cfg: DictConfig, tmp_path: Path) -> None:
    more = write(tmp_path / "more.parquet", [ROWS[0], ROWS[0], row("7 + 7", "14")])
    cfg.data.val_files = [cfg.data.val_files, more]
    task, terminal = prepared(cfg)
    assert len(task.problems) == 7
    assert [file["problems"] for file in task.record["data"]] == [6, 2]
    assert "9 rows are 7 problems" in terminal


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.val_files", "nowhere.parquet", "there is no such file"),
        ("data.val_files", None, "no data set is named"),
        ("data.prompt_key", "question", "the file has no column 'question'"),
        ("actor_rollout_ref.model.path", "no such model", "there is no such folder"),
        ("actor_rollout_ref.rollout.val_kwargs.n", 0, "n=0"),
        ("evaluation.score_timeout", -1, "score_timeout=-1"),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", 2, r"gpus=1: .*too few.*takes 2.*Set gpus=2"),
        ("actor_rollout_ref.rollout.agent.default_agent_loop", "tool_agent", "one response to a prompt"),
        ("actor_rollout_ref.rollout.multi_turn.enable", True, "multi_turn.enable=True"),
        ("data.max_response_length", 4096, "with max_prompt_length=96 that is 4192 tokens, but the model takes 512; "
         "expected at most 416. Set max_response_length=416"),
        ("data.max_prompt_length", 10, "longer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(cfg: DictConfig, key: str, value: Any, message: str) -> None:
    from omegaconf import OmegaConf

    OmegaConf.update(cfg, key, value)
    with pytest.raises(PreflightError, match=message):
        prepared(cfg)


def test_a_long_prompt_at_the_end_of_a_file(cfg: DictConfig, tmp_path: Path) -> None:
    rows = [row(f"{a} + 0", str(a)) for a in range(70)]
    cfg.data.val_files = write(tmp_path / "long.parquet", [*rows, row("1 + " * 30 + "1", "31")])
    with pytest.raises(PreflightError, match=r"max_prompt_length=96: 1 of 65 prompts .*up to \d+ tokens"):
        prepared(cfg)
    cfg.data.truncation = "left"  # training may cut prompts, an evaluation looks at every one
    with pytest.raises(PreflightError, match=r"max_prompt_length=96: 1 of 71 prompts are longer, up to \d+ tokens"):
        prepared(cfg)
    cfg.data.filter_overlong_prompts = True
    task, terminal = prepared(cfg)
    assert len(task.problems) == 70
    assert "warning: 1 of 71 rows are left out" in terminal


def test_a_reward_function_that_cannot_tell_right_from_wrong(cfg: DictConfig, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n  return 0"
    )
    with pytest.raises(PreflightError, match="every answer, right or wrong, gets 0"):
        prepared(cfg)


def test_prompts_that_are_no_text() -> None:
    rows = [one | {"raw_prompt": one["prompt"]} for one in ROWS]
    assert len(problems_of(rows)) == 6
    rows[2]["raw_prompt"] = [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}]
    with pytest.raises(ValueError, match="row 2 has a prompt that is not plain text"):
        problems_of(rows)
