import argparse
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from aent_verl._util import locked
from aent_verl.commands import prepare as command
from aent_verl.data.prepare import jobs, output
from tests.unit.data.prepare.conftest import entry, findings, mine, prepare, problems, sums, write_parquet
from tests.unit.data.prepare.native import DAPO_AFTER, DAPO_BEFORE, ROWS

pytestmark = pytest.mark.usefixtures("no_hub")


@pytest.mark.slow
@pytest.mark.parametrize("names", [("a", "b"), ("a", "a")], ids=["two sets", "the same set"])
def test_two_at_once_write_one_after_the_other(tmp_path, monkeypatch, names):
    path, out = mine(tmp_path), tmp_path / "out"
    build, write, both = jobs.MathJob.build, output.write_json, threading.Barrier(2, timeout=60)

    def build_together(job, held_out):
        outcome = build(job, held_out)
        both.wait()
        return outcome

    def write_slowly(*arguments):
        time.sleep(0.2)
        write(*arguments)

    monkeypatch.setattr(jobs.MathJob, "build", build_together)
    monkeypatch.setattr(output, "write_json", write_slowly)
    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(lambda name: prepare(path, "--name", name, "--output", out), names))
    assert set(output.read_manifest(out)) == set(names)
    assert sum("already in" in text for text in reports) == 2 - len(set(names))
    assert all("already in" in prepare(path, "--name", name, "--output", out) for name in names)


def test_who_finds_another_at_work_waits_and_says_so(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with ThreadPoolExecutor(1) as threads:
        with locked(out / ".prepare.lock"):
            waiting = threads.submit(prepare, mine(tmp_path), "--output", out)
            said, end = "", time.monotonic() + 60
            while not said and time.monotonic() < end:
                said = capsys.readouterr().err
                time.sleep(0.01)
            assert f"--output {out}: waiting for another aent-verl prepare" in said
        assert "20 of 20 rows" in waiting.result()
    assert "waiting" not in capsys.readouterr().err


def test_what_is_there_is_used_in_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    path, out = mine(tmp_path), tmp_path / "out"
    prepare(path, "--output", out)
    (out / ".prepare.lock").unlink()
    monkeypatch.setattr(command.os, "access", lambda *_: False)
    assert "already in" in prepare(path, "--output", out)
    assert not (out / ".prepare.lock").exists()


def test_train_problems_that_are_in_the_test_split_are_left_out(tmp_path):
    train = mine(tmp_path, [*ROWS["math12k"]["train"], {"problem": "solve $x^2=2$ for $x>0$.", "answer": "\\sqrt 2"}])
    test = mine(tmp_path, ROWS["math12k"]["test"], "b.jsonl")
    text = prepare("math12k", "--from", f"train={train}", f"test={test}", "--output", tmp_path / "out")
    assert problems(tmp_path / "out" / "math12k-train.parquet") == ["What is $3 + 4$?"]
    assert len(problems(tmp_path / "out" / "math12k-test.parquet")) == 1
    assert findings(tmp_path / "out", "math12k") == {"held out: it is in math12k-test": (1, True)}
    assert "held out: it is in math12k-test" in text


def test_train_loses_what_is_in_the_test_sets_of_the_same_command(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(ROWS["aime25"]["test"]))
    path = mine(tmp_path, [*sums(2), {"problem": "Sum of bases?", "answer": "70"}])
    prepare(path, "aime25", "--output", tmp_path / "a")
    assert findings(tmp_path / "a", "mine") == {"held out: it is in aime25-test": (1, True)}
    # Also when the test set is there already, and not read again.
    prepare("aime25", "--output", tmp_path / "b")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("read again"))
    assert "aime25: already in" in prepare(path, "aime25", "--output", tmp_path / "b")
    assert problems(tmp_path / "b" / "mine-train.parquet") == problems(tmp_path / "a" / "mine-train.parquet")


def asked(text, *before):
    return {"prompt": [*before, {"role": "user", "content": text}]}


@pytest.mark.parametrize(
    "other",
    [
        {"problem": "what is  $1+1$?"},
        {"question": "What is $1 + 1$?"},
        asked("What is $1 + 1$?", {"role": "system", "content": "s"}),
        asked("What is $1 + 1$? My way."),
        asked("What is $1 + 1$?\nPlease reason step by step, and put your final answer within \\boxed{}."),
        asked("What is $1 + 1$? Let's think step by step and output the final answer within \\boxed{}."),
        asked('What is $1 + 1$? Let\'s think step by step and output the final answer after "####".'),
        asked(DAPO_BEFORE + "What is $1 + 1$?" + DAPO_AFTER),
        {"prompt": "x", "extra_info": {"problem": "What is $1 + 1$?"}},
        {"prompt": "x", "extra_info": {"entry": '{"question": "What is $1 + 1$?"}'}},
    ],
)
def test_other_files_are_held_out_whatever_their_format(tmp_path, other):
    against = write_parquet(tmp_path / "other.parquet", [other])
    prepare(mine(tmp_path), "--against", against, "--instruction", " My way.", "--output", tmp_path / "out")
    assert findings(tmp_path / "out", "mine") == {"held out: it is in other.parquet": (1, True)}
    assert "What is $1 + 1$?" not in problems(tmp_path / "out" / "mine-train.parquet")


def test_a_file_without_problems_cannot_be_held_out(tmp_path):
    against = write_parquet(tmp_path / "other.parquet", [{"a": 1}])
    with pytest.raises(ValueError, match="no column 'prompt', 'problem' or 'question'; its columns are 'a'"):
        prepare(mine(tmp_path), "--against", against, "--output", tmp_path)


def test_a_limit_samples_training_problems_only(tmp_path):
    out = tmp_path / "out"
    prepare(mine(tmp_path), "--limit", 5, "--seed", 3, "--output", out)
    assert len(problems(out / "mine-train.parquet")) == 5
    prepare(mine(tmp_path), "--limit", 5, "--output", tmp_path / "seed_0")
    assert problems(out / "mine-train.parquet") != problems(tmp_path / "seed_0" / "mine-train.parquet")
    assert entry(out, "mine")["request"]["seed"] == 3
    assert findings(out, "mine") == {"not drawn (--limit 5 --seed 3)": (15, True)}
    with pytest.raises(ValueError, match="--limit 21: only 20 problems"):
        prepare(mine(tmp_path), "--limit", 21, "--output", tmp_path / "other")


def test_settings_without_an_effect_warn(tmp_path):
    path = mine(tmp_path, ROWS["amc23"]["test"])
    text = prepare("amc23", "--from", path, "--limit", 1, "--against", path, "--output", tmp_path / "out")
    assert "warning: --limit has no effect: nothing here is trained on" in text
    assert "warning: --against has no effect: nothing here is trained on" in text
    assert len(problems(tmp_path / "out" / "amc23-test.parquet")) == 1


def test_instruction_system_name_and_split_are_written(tmp_path):
    words = ["--instruction", " Box it.", "--system", "You solve.", "--name", "own", "--split", "test"]
    prepare(mine(tmp_path, sums(1)), *words, "--output", tmp_path)
    (row,) = pq.read_table(tmp_path / "own-test.parquet").to_pylist()
    assert row["data_source"] == "own"
    assert row["prompt"] == [
        {"role": "system", "content": "You solve."},
        {"role": "user", "content": "What is $1 + 0$? Box it."},
    ]
    assert row["extra_info"] == {"split": "test", "index": 0, "problem": "What is $1 + 0$?"}


def test_own_columns_and_answers_inside_solutions(tmp_path):
    rows = [{"q": "A?", "s": "so $\\boxed{\\frac{1}{2}}$"}, {"q": "B?", "s": "so\n#### 1,000"}, {"q": "C?", "s": "3"}]
    prepare(mine(tmp_path, rows), "--problem", "q", "--answer", "s", "--output", tmp_path)
    made = pq.read_table(tmp_path / "mine-train.parquet").to_pylist()
    assert [row["reward_model"]["ground_truth"] for row in made] == ["\\frac{1}{2}", "1000", "3"]


def test_other_columns_of_a_known_set_are_read_by_looking_at_the_answer(tmp_path):
    rows = [{"problem": "Diameter?", "solution": "It is \\boxed{1.6} cm."}]
    words = ["--problem", "problem", "--answer", "solution"]
    prepare("minerva", "--from", mine(tmp_path, rows), *words, "--output", tmp_path)
    (row,) = pq.read_table(tmp_path / "minerva-test.parquet").to_pylist()
    assert row["reward_model"]["ground_truth"] == "1.6"


def test_a_split_of_which_nothing_is_left_is_an_error_with_the_reasons(tmp_path):
    with pytest.raises(ValueError, match="none of 1 rows is left; 1 of them: no answer"):
        prepare(mine(tmp_path, [{"problem": "x", "answer": "proof"}]), "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "x"], "name what to prepare"),
        (["math"], "--output is missing"),
        (["mathh", "--output", "x"], "'mathh' is neither a data set nor a file: did you mean math"),
        (["math", "gsm8k", "--from", "a.jsonl", "--output", "x"], "--from is for one data set at a time, not 2"),
        (["math", "--size", "3", "--output", "x"], "--size is for reasoning-gym:NAME only"),
        (["math", "--split", "train", "--output", "x"], "--split is for your own file only"),
        (["a.jsonl", "--from", "b.jsonl", "--output", "x"], "--from is for a public data set only"),
        (["reasoning-gym:chain_sum", "--limit", "3", "--output", "x"], "--limit is for a public data set or your own"),
        (["math", "--limit", "0", "--output", "x"], "--limit 0: must be at least 1"),
        (["math", "--max-prompt-length", "9", "--output", "x"], "name the model's --tokenizer"),
        (["math", "--from", "{file}", "--output", "x"], "math has train and test; say which, as in train="),
        (["aime24", "--from", "train={file}", "--output", "x"], "aime24 has no train split, only test"),
        (["aime24", "--from", "{file}", "test={file}", "--output", "x"], "one file for each split"),
        (["{file}", "--extract", "last_number", "--output", "x"], "one of auto, whole, boxed, hashes"),
        (["{file}", "--output", "{file}"], "is a file, not a folder"),
        (["{file}", "sub/{name}", "--output", "x"], "two data sets are named mine"),
    ],
)
def test_unusable_commands_are_errors_that_name_the_option(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    mine(tmp_path / "sub")
    path = mine(tmp_path)
    with pytest.raises(ValueError, match=message):
        prepare(*(word.format(file=path, name=path.name) for word in words))
    assert not (tmp_path / "x").exists()


def test_every_example_of_the_help_is_a_command_that_parses(capsys):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    with pytest.raises(SystemExit):
        parser.parse_args(["prepare", "--help"])
    assert command.EXAMPLES in capsys.readouterr().out
    lines = [line.strip() for line in command.EXAMPLES.splitlines()[1:]]
    assert len(lines) == 8
    for line in lines:
        words = line.split("  ")[0].split()
        assert words[:2] == ["aent-verl", "prepare"]
        options = parser.parse_args(words[1:])
        assert options.list or options.output == "data"
