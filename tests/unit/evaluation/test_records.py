import json
import math
from pathlib import Path

import numpy as np
import pytest

from aent_verl.evaluation import records, summary
from aent_verl.evaluation.records import Answered, Problem, Response
from aent_verl.runs.problems import read_evaluation, read_responses


def problem(question: str = "2 + 3", truth: object = "5", source: str = "sums") -> Problem:
    return Problem(source, [{"role": "user", "content": question}], truth, {"index": 0})


ANSWERED = [
    Answered(
        problem(),
        [
            Response("5", 2, False, 0.5, 1.0, "5"),
            Response("\u2028no\nidea \ud800", 8, True, 1.5, 0.0, None, "KeyError: 1"),
        ],
    ),
    Answered(
        problem("1 + 1", ["2", "two"], "others"), [Response("", 0, False, 0.0), Response("2", 2, False, 0.25, 1.0, "2")]
    ),
]
RECORD = {"format": 1, "model": "m", "sampling": {"n": 2}}


def test_a_problem_is_known_by_data_source_and_prompt() -> None:
    assert problem().id == problem(truth="6").id
    assert len({problem().id, problem("2 + 4").id, problem(source="others").id}) == 3
    system = Problem("sums", [{"role": "system", "content": "2 + 3"}], "5", {})
    assert system.id != problem().id
    assert len(problem().id) == 16


def test_repeated_problems_are_evaluated_once() -> None:
    assert records.distinct([problem(), problem("x"), problem()]) == [problem(), problem("x")]


def test_a_problem_with_two_right_answers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 \+ 3.*'5' and '6'.*Remove one"):
        records.distinct([problem(), problem(truth="6")])


def test_what_is_written_is_what_the_reader_of_results_finds(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    records.write(folder, RECORD | {"summary": summary.summarize(ANSWERED)}, ANSWERED)
    assert {file.name for file in folder.iterdir()} == {"evaluation.json", "scores.jsonl", "responses.jsonl"}
    found = read_evaluation(tmp_path)
    assert found is not None
    rows = {one.problem.id: one for one in ANSWERED}
    assert set(found.problems) == set(rows)
    for index, name in enumerate(found.problems):
        one = rows[name]
        assert found.data_sources[index] == one.problem.data_source
        assert found.answers[index] == tuple(response.answer for response in one.responses)
        for column, field in (
            ("scores", "score"),
            ("response_tokens", "tokens"),
            ("truncated", "truncated"),
            ("entropy", "entropy"),
        ):
            assert np.array_equal(
                getattr(found, column)[index], [getattr(response, field) for response in one.responses]
            )
    assert found.sampling == {"n": 2}
    texts = read_responses(tmp_path)
    assert texts[problem().id].responses == ("5", "\u2028no\nidea ?")
    assert texts[problem().id].prompt == "2 + 3"
    assert json.loads(texts[problem("1 + 1", source="others").id].ground_truth) == ["2", "two"]


def test_the_summary_is_there_only_with_all_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.write(tmp_path, RECORD, ANSWERED)
    assert records.read_summary(tmp_path) == RECORD

    def disk_full(fd: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", disk_full)
        with pytest.raises(OSError, match="disk full"):
            records.write(tmp_path, RECORD | {"model": "other"}, ANSWERED)
    assert records.read_summary(tmp_path) is None
    records.write(tmp_path, RECORD, ANSWERED)
    (tmp_path / records.SCORES).unlink()
    assert records.read_summary(tmp_path) is None


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    records.write(tmp_path, RECORD, ANSWERED)
    for text in ("{", "[]"):
        (tmp_path / records.SUMMARY).write_text(text)
        with pytest.raises(ValueError, match=r"evaluation.json is not readable JSON.*overwrite=true"):
            records.read_summary(tmp_path)


def test_two_evaluations_differ_where_they_were_asked_something_else() -> None:
    there = {"format": 1, "model": "m", "sampling": {"n": 2}, "seconds": 5.0, "summary": {}}
    assert records.differences(there, {"format": 1, "model": "m", "sampling": {"n": 2}}) == []
    found = records.differences(there, {"format": 1, "model": "m", "sampling": {"n": 4}, "weights": "ab"})
    assert found == ["weights: None there, ab here", "sampling: {'n': 2} there, {'n': 4} here"]


def test_entropy_of_a_response() -> None:
    assert records.entropy_of([-1.0, -2.0, 0.0]) == 1.0
    assert records.entropy_of([]) == 0.0
    assert math.copysign(1, records.entropy_of([0.0, 1e-9])) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.5])
def test_log_probabilities_that_are_none_stop_the_evaluation(value: float) -> None:
    with pytest.raises(ValueError, match="the model gives NaN or infinite logits"):
        records.entropy_of([-1.0, value])
