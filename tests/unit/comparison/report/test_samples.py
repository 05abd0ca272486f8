import numpy as np
import pytest

from aent_verl.comparison.report.groups import group_runs
from aent_verl.comparison.report.samples import MOST_CHARACTERS, choose_samples
from aent_verl.runs.run import load_run
from tests.unit.comparison.report.synthetic import AENT, GRPO, make_runs, problem_id, write_evaluation, write_run


def chosen(runs):
    return choose_samples(group_runs(runs, "grpo"))


def test_the_problems_that_differ_most_and_random_ones(tmp_path):
    grpo = np.zeros((30, 4))
    aent = np.zeros((30, 4))
    aent[7], aent[3, :3], aent[5, :2], aent[1, :1] = 1, 1, 1, 1
    runs = []
    for method, scores in ((GRPO, grpo), (AENT, aent)):
        folder = write_run(tmp_path / method.name, method, 1)
        write_evaluation(folder, scores)
        runs.append(load_run(folder))
    problems = chosen(runs)
    assert [problem["prompt"] for problem in problems[:3]] == [f"How much is {i} + {i}?" for i in (7, 3, 5)]
    assert [problem["why"] for problem in problems] == ["methods differ most"] * 3 + ["at random"] * 2
    assert len({problem["prompt"] for problem in problems}) == 5
    assert problems == chosen(runs)
    first = problems[0]["samples"]
    assert (first["grpo"]["score"], first["aent"]["score"], first["aent"]["mean"], first["aent"]["count"]) == (
        0,
        1,
        1,
        4,
    )
    assert first["aent"]["text"] == "Let me count to 7.\nThe answer is right."
    assert problems[0]["ground_truth"] == "14"


def test_means_are_over_all_seeds_and_texts_of_the_first(tmp_path):
    runs = make_runs(tmp_path, seeds=3)
    problem = chosen(runs)[0]
    row = next(i for i in range(40) if problem["prompt"] == f"How much is {i} + {i}?")
    at = runs[0].scores.problems.index(problem_id(row))
    scores = [run.scores.scores[at] for run in runs if run.method == "aent"]
    sample = problem["samples"]["aent"]
    assert (sample["seed"], sample["count"]) == (1, 24)
    assert sample["mean"] == pytest.approx(np.mean(scores))
    assert sample["score"] == scores[0][0]


def test_seeds_may_have_different_numbers_of_responses(tmp_path):
    make_runs(tmp_path, seeds=2)
    write_evaluation(tmp_path / "aent_seed2", np.ones((40, 2)))
    groups = group_runs([load_run(folder) for folder in sorted(tmp_path.iterdir())], "grpo", allow_different=True)
    for problem in choose_samples(groups):
        sample = problem["samples"]["aent"]
        first = groups.runs["aent"][0].scores
        (row,) = (i for i in range(40) if problem["prompt"] == f"How much is {i} + {i}?")
        of_first = first.scores[first.problems.index(problem_id(row))]
        assert sample["count"] == 8 + 2
        assert sample["mean"] == pytest.approx((of_first.sum() + 2) / 10)


def test_long_responses_are_cut(tmp_path):
    folder = write_run(tmp_path / "a", GRPO, 1)
    write_evaluation(folder, np.ones((20, 1)), [["x" * (MOST_CHARACTERS + 5)]] * 20)
    sample = chosen([load_run(folder)])[0]["samples"]["grpo"]
    assert (len(sample["text"]), sample["cut"]) == (MOST_CHARACTERS, 5)


def test_a_single_method_has_random_problems_only(tmp_path):
    assert {problem["why"] for problem in chosen(make_runs(tmp_path, (GRPO,), seeds=1))} == {"at random"}


def test_without_texts_there_are_no_samples(tmp_path):
    runs = make_runs(tmp_path, seeds=1)
    for run in runs:
        (run.path / "evaluation" / "responses.jsonl").unlink()
    assert chosen(runs) == []


def test_damaged_texts_are_named(tmp_path):
    runs = make_runs(tmp_path, seeds=1)
    file = runs[0].path / "evaluation" / "responses.jsonl"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=r"responses.jsonl, line 40 is not readable JSON"):
        chosen(runs)
