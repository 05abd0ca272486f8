"""Scores of single problems, from evaluations and from verl's validation dumps."""

import json
from pathlib import Path

import numpy as np
import pytest

from aent_verl.runs.problems import read_evaluation, read_responses, read_validation, validations


def lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row(question: str, output: str, score: float, **more: object) -> dict:
    return {"input": question, "output": output, "gts": "7", "score": score, "step": 3, **more}


def evaluation(folder: Path, rows: list[dict], responses: list[dict] | None = None) -> Path:
    lines(folder / "evaluation" / "scores.jsonl", rows)
    (folder / "evaluation" / "evaluation.json").write_text('{"format": 1, "model": "m", "sampling": {"n": 2}}')
    if responses is not None:
        lines(folder / "evaluation" / "responses.jsonl", responses)
    return folder


def problem(name: str, scores: list[float], **more: object) -> dict:
    return {"problem": name, "data_source": "math", "scores": scores, **more}


def test_a_dump_is_grouped_by_problem_whatever_its_order(tmp_path: Path):
    rows = [row("b?", "1", 0.0), row("a?", "7", 1.0), row("b?", "7", 1.0), row("a?", "7", 1.0)]
    one = read_validation(lines(tmp_path / "3.jsonl", rows))
    two = read_validation(lines(tmp_path / "4.jsonl", [rows[i] for i in (1, 0, 3, 2)]))
    assert sorted(map(tuple, one.scores.tolist())) == [(0.0, 1.0), (1.0, 1.0)]
    assert one.problems == two.problems
    assert np.array_equal(one.scores, two.scores)
    assert one.samples == 2


def test_accuracy_counts_where_the_reward_has_one(tmp_path: Path):
    file = lines(tmp_path / "3.jsonl", [row("a?", "7", -1.0, acc=True), row("a?", "8", 0.5, acc=0.0)])
    assert read_validation(file).scores.tolist() == [[1.0, 0.0]]


def test_line_separators_inside_a_response_are_no_line_ends(tmp_path: Path):
    file = lines(tmp_path / "3.jsonl", [row("a?", "one\u2028two\x85three", 1.0)])
    assert read_validation(file).scores.tolist() == [[1.0]]


def test_unequal_numbers_of_responses_are_refused(tmp_path: Path):
    rows = [row("a?", "7", 1.0), row("a?", "7", 1.0), row("b?", "7", 1.0)]
    with pytest.raises(ValueError, match="1 to 2 responses"):
        read_validation(lines(tmp_path / "3.jsonl", rows))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no problem"),
        ('{"input": "a"}\n', "line 1: has no 'output', 'score'"),
        ('{"input": \n', "line 1 is not readable JSON"),
        ("[1]\n", "expected a JSON object"),
    ],
)
def test_a_damaged_dump_is_named(tmp_path: Path, text: str, says: str):
    file = tmp_path / "3.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        read_validation(file)
    assert str(file) in str(caught.value)


def test_dumps_by_step(tmp_path: Path):
    for name in ("10.jsonl", "9.jsonl", "notes.jsonl"):
        lines(tmp_path / "validation" / name, [row("a?", "7", 1.0)])
    assert list(validations(tmp_path)) == [9, 10]


def test_an_evaluation_in_the_order_of_its_ids(tmp_path: Path):
    rows = [
        problem(
            "b", [1.0, 0.0], answers=["7", None], response_tokens=[3, 4], truncated=[False, True], entropy=[0.1, 0.2]
        ),
        problem(
            "a", [0.0, 0.0], answers=["1", "2"], response_tokens=[5, 6], truncated=[False, False], entropy=[0.3, 0.4]
        ),
    ]
    found = read_evaluation(evaluation(tmp_path, rows))
    assert found.problems == ("a", "b")
    assert found.data_sources == ("math", "math")
    assert found.scores.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert found.answers == (("1", "2"), ("7", None))
    assert found.response_tokens.tolist() == [[5, 6], [3, 4]]
    assert found.truncated.tolist() == [[0, 0], [0, 1]]
    assert found.entropy.tolist() == [[0.3, 0.4], [0.1, 0.2]]
    assert found.sampling == {"n": 2}


def test_answers_that_are_all_none_are_still_stored(tmp_path: Path):
    """Whether the reward tells none, or no response gave one, other evaluations show."""
    found = read_evaluation(evaluation(tmp_path, [problem("a", [1.0, 0.0], answers=[None, None])]))
    assert found.answers == ((None, None),)


def test_what_an_evaluation_lacks_is_none(tmp_path: Path):
    found = read_evaluation(evaluation(tmp_path, [problem("a", [1.0])]))
    assert (found.answers, found.response_tokens, found.truncated, found.entropy) == ((), None, None, None)


def test_no_evaluation_is_none(tmp_path: Path):
    assert read_evaluation(tmp_path) is None


def test_a_damaged_evaluation_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="1 to 2 values a problem"):
        read_evaluation(evaluation(tmp_path, [problem("a", [1.0]), problem("b", [1.0, 0.0])]))
    (tmp_path / "evaluation" / "scores.jsonl").unlink()
    with pytest.raises(ValueError, match=r"scores.jsonl is missing"):
        read_evaluation(tmp_path)


def test_responses_come_with_their_scores(tmp_path: Path):
    texts = [{"problem": "a", "prompt": "q", "ground_truth": "7", "responses": ["7", "8"]}]
    found = read_responses(evaluation(tmp_path, [problem("a", [1.0, 0.0])], texts))["a"]
    assert (found.prompt, found.ground_truth, found.responses, found.scores) == ("q", "7", ("7", "8"), (1.0, 0.0))


def test_without_an_evaluation_the_validation_at_a_step_gives_the_responses(tmp_path: Path):
    lines(tmp_path / "validation" / "2.jsonl", [row("a?", "early", 0.0)])
    lines(tmp_path / "validation" / "10.jsonl", [row("a?", "late", 1.0)])
    (found,) = read_responses(tmp_path, 2).values()
    assert found.responses == ("early",)
    assert read_responses(tmp_path, 3) == {}
    assert read_responses(tmp_path / "empty", 2) == {}


def test_texts_of_an_evaluation_are_not_mixed_with_those_of_a_validation(tmp_path: Path):
    lines(tmp_path / "validation" / "2.jsonl", [row("a?", "early", 0.0)])
    assert read_responses(evaluation(tmp_path, [problem("a", [1.0])]), 2) == {}


@pytest.mark.parametrize(
    ("model", "step"),
    [
        ("Qwen/Qwen2.5-0.5B", None),
        ("r/checkpoints/global_step_40", 40),
        ("global_step_7/x/global_step_120/actor/huggingface", 120),
    ],
)
def test_a_checkpoint_tells_its_step(tmp_path: Path, model: str, step: int | None):
    evaluation(tmp_path, [problem("a", [1.0])])
    (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps({"format": 1, "model": model}))
    found = read_evaluation(tmp_path)
    assert found.step == step
    assert found.origin == f"evaluation of the {'final model' if step is None else f'model after step {step}'}"


def test_an_evaluation_says_what_others_have_to_agree_in(tmp_path: Path):
    evaluation(tmp_path, [problem("a", [1.0])])
    summary = {
        "format": 1,
        "model": "m",
        "data": [{"path": "/there/test.parquet", "sha256": "0123456789abcdef", "problems": 1}],
        "sampling": {"n": 1, "temperature": 0.6, "seed": 3},
        "prompts": {"max_tokens": 96, "chat_template": None, "chat_template_settings": {"b": 1, "a": 2}},
        "reward": "/there/rewards.py:compute_score",
        "reward_settings": {"strict": True},
        "reward_sha256": "fedcba9876543210",
    }
    (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps(summary))
    assert read_evaluation(tmp_path).protocol == {
        "evaluation.temperature": "0.6",
        "evaluation.data": "test.parquet 0123456789ab",
        "evaluation.prompts.max_tokens": "96",
        "evaluation.prompts.chat_template": "None",
        "evaluation.prompts.chat_template_settings": '{"a": 2, "b": 1}',
        "evaluation.reward": "rewards.py fedcba987654",
        "evaluation.reward_function": "compute_score",
        "evaluation.reward_settings": '{"strict": true}',
    }
