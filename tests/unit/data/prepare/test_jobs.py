import json

import pyarrow.parquet as pq
import pytest

from aent_verl.data.prepare.jobs import generator_settings as settings
from aent_verl.data.prepare.rows import normalise
from aent_verl.data.tasks import reasoning_gym_data
from aent_verl.data.tasks.reward import compute_score
from tests.unit.data.prepare.conftest import entry, findings, prepare, write_jsonl


def rows(folder, name, split):
    return pq.read_table(folder / f"{name}-{split}.parquet").to_pylist()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("countdown", ["min_numbers=3", "max_numbers=4"]),
        ("chain_sum", ["max_terms=3"]),
        ("graph_color", ["min_num_vertices=4", "max_num_vertices=5"]),
        ("number_sorting", []),
        ("basic_arithmetic", ["operators=[+, -]", "allow_parentheses=false", "allow_negation=false"]),
    ],
)
def test_a_generator_gives_splits_that_its_own_scorer_accepts(tmp_path, name, words):
    prepare(f"reasoning-gym:{name}", *words, "--size", 20, "--test-size", 5, "--output", tmp_path)
    splits = {split: rows(tmp_path, name, split) for split in ("train", "test")}
    assert [len(found) for found in splits.values()] == [20, 5]
    questions = [reasoning_gym_data.question_of(row) for found in splits.values() for row in found]
    assert len(set(questions)) == 25
    for split, found in splits.items():
        for row in found:
            assert row["data_source"] == f"reasoning_gym/{name}"
            assert row["prompt"] == [{"role": "user", "content": reasoning_gym_data.question_of(row)}]
            assert row["extra_info"]["split"] == split
            truth = row["reward_model"]["ground_truth"]
            assert compute_score(row["data_source"], truth, truth, row["extra_info"])["acc"] == 1.0
            assert compute_score(row["data_source"], "no idea", truth, row["extra_info"])["acc"] == 0.0


def test_settings_reach_the_generator_and_the_report(tmp_path):
    report = prepare("reasoning-gym:countdown", "min_numbers=3", "max_numbers=3", "--size", 8, "--output", tmp_path)
    for row in rows(tmp_path, "countdown", "train"):
        assert len(json.loads(row["extra_info"]["entry"])["metadata"]["numbers"]) == 3
    assert "reasoning-gym countdown min_numbers=3 max_numbers=3" in report
    assert "pkg://aent_verl.data.tasks.reward " in report
    assert entry(tmp_path, "countdown")["request"]["source"]["settings"] == {"min_numbers": 3, "max_numbers": 3}


def test_the_test_split_does_not_depend_on_the_size_of_the_training_split(tmp_path):
    for size in (8, 9):
        out = tmp_path / str(size)
        prepare("reasoning-gym:chain_sum", "--size", size, "--test-size", 4, "--output", out)
    assert (tmp_path / "8" / "chain_sum-test.parquet").read_bytes() == (
        tmp_path / "9" / "chain_sum-test.parquet"
    ).read_bytes()


def test_questions_held_out_are_not_trained_on_and_counted(tmp_path):
    # Only 90 sums of two one-digit numbers exist here, so that most of them are in the other file.
    words = ["min_terms=2", "max_terms=2", "min_digits=1", "max_digits=1"]
    prepare("reasoning-gym:chain_sum", *words, "--size", 30, "--seed", 1, "--output", tmp_path / "a")
    other = tmp_path / "a" / "chain_sum-train.parquet"
    report = prepare("reasoning-gym:chain_sum", *words, "--size", 60, "--against", other, "--output", tmp_path / "b")
    kept = {normalise(reasoning_gym_data.question_of(row)) for row in rows(tmp_path / "b", "chain_sum", "train")}
    assert not kept & {
        normalise(reasoning_gym_data.question_of(row)) for row in rows(tmp_path / "a", "chain_sum", "train")
    }
    count, left_out = findings(tmp_path / "b", "chain_sum")["held out: it is in a test split"]
    assert left_out
    assert 0 < count == 60 - len(kept)
    assert f"{count}  held out" in report


def test_an_instruction_may_hold_braces(tmp_path):
    words = ["--instruction", " Use {braces}.", "--system", "Be {brief}.", "--extract", "last_number"]
    prepare("reasoning-gym:chain_sum", "--size", 2, *words, "--output", tmp_path)
    for row in rows(tmp_path, "chain_sum", "train"):
        question = reasoning_gym_data.question_of(row)
        assert row["prompt"] == [
            {"role": "system", "content": "Be {brief}."},
            {"role": "user", "content": question + " Use {braces}."},
        ]
        assert row["extra_info"]["extract"] == "last_number"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reasoning-gym:countdwn"], "no generator 'countdwn': did you mean countdown"),
        (["reasoning-gym:zzzzzzzz"], "no generator 'zzzzzzzz': it has ab, acre"),
        (["reasoning-gym:countdown", "nonsense=1"], "refuses generator 'countdown'"),
        (["reasoning-gym:chain_sum", "--extract", "boxed"], "--extract boxed: for reasoning-gym it is whole or"),
        (["reasoning-gym:chain_sum", "--size", "0"], "nothing is asked for"),
        (["reasoning-gym:chain_sum", "--size", "-1"], "--size -1: must be at least 0"),
    ],
)
def test_what_a_generator_cannot_do_is_an_error(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        prepare(*words, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_are_read_as_yaml():
    assert settings(["a=1", "b=0.5", "c=true", "d=[+, -]", "e=x=y"]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": ["+", "-"],
        "e": "x=y",
    }
    with pytest.raises(ValueError, match="written NAME=VALUE"):
        settings(["=1"])
    with pytest.raises(ValueError, match="not YAML"):
        settings(["a=[1"])


def test_settings_without_a_generator_are_an_error(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "a", "answer": "1"}])
    with pytest.raises(ValueError, match="settings belong to reasoning-gym:NAME"):
        prepare(path, "a=1", "--output", tmp_path)
