import argparse
import shlex
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from aent_verl._util import locked
from aent_verl.commands import prepare as command
from aent_verl.data.prepare import jobs, output
from tests.unit.data.prepare.conftest import entry, findings, prepare, problems, write_jsonl, write_parquet
from tests.unit.data.prepare.native import ROWS

pytestmark = pytest.mark.usefixtures("no_hub")


def sums(count, start=0):
    return [
        {"problem": f"What is $1 + {number}$?", "answer": str(1 + number)} for number in range(start, start + count)
    ]


def mine(folder, rows=None, name="mine.jsonl"):
    return write_jsonl(folder / name, sums(20) if rows is None else rows)


def written(split, name):
    return SimpleNamespace(files={split: f"{name}.parquet"}, reward="aent_verl.data.tasks.math_reward")


def test_the_report_and_prepare_json_say_what_was_made_from_what(tmp_path):
    path = mine(tmp_path, [*sums(3), *sums(1), {"problem": "x", "answer": ""}])
    text = prepare(path, "--output", tmp_path / "out")
    assert "mine-train.parquet: 3 of 5 rows" in text
    assert "left out      1  the same problem again\n" in text
    assert "row 3: What is $1 + 0$?" in text
    assert "use: data.train_files=" in text
    assert "reward.custom_reward_function.path=pkg://aent_verl.data.tasks.math_reward" in text
    made = entry(tmp_path / "out", "mine")
    assert made["request"]["source"]["train"]["path"] == "mine.jsonl"
    assert len(made["request"]["source"]["train"]["sha256"]) == 64
    assert made["splits"]["train"]["rows"] == 3
    assert set(made["versions"]) == {"aent-verl", "datasets", "math-verify", "pyarrow"}
    assert set(made["files"]) == {"mine-train.parquet"}


def test_nothing_found_is_said_too(tmp_path):
    assert "checked, nothing found" in prepare(mine(tmp_path), "--output", tmp_path)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    path = mine(tmp_path)
    for out in ("a", "b"):
        prepare(path, "--limit", 10, "--output", tmp_path / out)
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        ".prepare.lock",
        "mine-train.parquet",
        "prepare.json",
    ]
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_second_run_of_the_same_command_stops_and_changes_nothing(tmp_path):
    path, out = mine(tmp_path), tmp_path / "out"
    prepare(path, "--output", out)
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert "mine: already in" in prepare(path, "--output", out)
    moved = path.rename(tmp_path / "moved.jsonl")
    assert "mine: already in" in prepare(moved, "--name", "mine", "--output", out)
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--limit", 5], "limit: null then, 5 now"),
        (["--system", "Hi"], 'system: null then, "Hi" now'),
        (["--instruction", ""], "instruction: "),
        (["--keep-unscorable"], "keep_unscorable: false then, true now"),
        (["--extract", "whole"], 'extract: "automatic" then, "whole" now'),
        (["--against", "{against}"], "against: "),
    ],
)
def test_other_arguments_are_refused_until_overwriting_is_asked_for(tmp_path, words, difference):
    path, out = mine(tmp_path), tmp_path / "out"
    words = [str(word).format(against=mine(tmp_path, sums(2), "b.jsonl")) for word in words]
    prepare(path, "--output", out)
    before = (out / "mine-train.parquet").read_bytes()
    with pytest.raises(ValueError, match=r"made differently .* --overwrite") as caught:
        prepare(path, *words, "--output", out)
    assert difference in str(caught.value)
    assert (out / "mine-train.parquet").read_bytes() == before
    prepare(path, *words, "--overwrite", "--output", out)
    assert "already in" in prepare(path, *words, "--output", out)


def test_other_input_changed_output_and_foreign_files_are_refused(tmp_path):
    path, out = mine(tmp_path), tmp_path / "out"
    prepare(path, "--output", out)
    mine(tmp_path, sums(21))
    with pytest.raises(ValueError, match=r"made differently .*sha256"):
        prepare(path, "--output", out)
    mine(tmp_path)
    write_parquet(out / "mine-train.parquet", [{"edited": 1}])
    with pytest.raises(ValueError, match=r"mine-train\.parquet changed or went missing"):
        prepare(path, "--output", out)
    (out / "prepare.json").unlink()
    with pytest.raises(ValueError, match=r"already has mine-train\.parquet: prepare\.json does not know them"):
        prepare(path, "--output", out)
    (out / "prepare.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        prepare(path, "--output", out)


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


def test_an_unpinned_set_that_is_there_needs_no_hub(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    class Info:
        sha = "first"

    with monkeypatch.context() as hub:
        hub.setattr(
            datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(ROWS["dapo-math-17k"]["train"])
        )
        hub.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: Info)
        prepare("dapo-math-17k", "--output", tmp_path)
        Info.sha = "second"
        with pytest.raises(ValueError, match='revision: "first" then, "second" now'):
            prepare("dapo-math-17k", "--output", tmp_path)
    assert "already in" in prepare("dapo-math-17k", "--output", tmp_path)


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


@pytest.mark.parametrize(
    "other",
    [
        {"problem": "what is  $1+1$?"},
        {"question": "What is $1 + 1$?"},
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "What is $1 + 1$?"}]},
        {"prompt": [{"role": "user", "content": "What is $1 + 1$? My way."}]},
        {
            "prompt": [
                {
                    "role": "user",
                    "content": "What is $1 + 1$?\nPlease reason step by step, and put your final "
                    "answer within \\boxed{}.",
                }
            ]
        },
        {
            "prompt": [
                {
                    "role": "user",
                    "content": "What is $1 + 1$? Let's think step by step and output the final "
                    "answer within \\boxed{}.",
                }
            ]
        },
        {
            "prompt": [
                {
                    "role": "user",
                    "content": ROWS["dapo-math-17k-original"]["train"][0]["prompt"][0]["content"].replace(
                        "Find $a + b$.", "What is $1 + 1$?"
                    ),
                }
            ]
        },
        {"prompt": "x", "extra_info": {"problem": "What is $1 + 1$?"}},
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


def test_prompts_are_counted_in_tokens_and_kept(tmp_path, tiny_model_folder):
    path = mine(tmp_path, [*sums(3), {"problem": "long " * 50, "answer": "1"}])
    words = ["--instruction", "", "--tokenizer", tiny_model_folder, "--max-prompt-length", 100]
    text = prepare(path, *words, "--output", tmp_path / "out")
    assert "1 prompts are longer than 100, which verl drops" in text
    measured = entry(tmp_path / "out", "mine")["splits"]["train"]["lengths"]
    # Byte tokenizer: the text and about twenty bytes of chat template.
    assert (measured["limit"], measured["longer"]) == (100, 1)
    assert len(("long " * 50).strip()) < measured["longest"] < 300
    assert len(problems(tmp_path / "out" / "mine-train.parquet")) == 4
    again = prepare(path, *words, "--output", tmp_path / "out")
    assert "already in" in again
    assert "1 prompts are longer than 100" in again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "x"], "name what to prepare"),
        (["math"], "--output is missing"),
        (["mathh", "--output", "x"], "'mathh' is no data set and no file: did you mean math"),
        (["math", "gsm8k", "--from", "a.jsonl", "--output", "x"], "--from is for one data set at a time, not 2"),
        (["math", "--size", "3", "--output", "x"], "--size is for reasoning-gym:NAME only"),
        (["math", "--split", "train", "--output", "x"], "--split is for a file of your own only"),
        (["a.jsonl", "--from", "b.jsonl", "--output", "x"], "--from is for a public data set only"),
        (["reasoning-gym:chain_sum", "--limit", "3", "--output", "x"], "--limit is for a public data set or a file"),
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


def test_files_for_different_rewards_are_not_offered_for_one_run(tmp_path):
    text = prepare(mine(tmp_path), "reasoning-gym:chain_sum", "--size", 2, "--output", tmp_path / "out")
    rewards = "aent_verl.data.tasks.math_reward and aent_verl.data.tasks.reward"
    assert f"these need different rewards, so different runs: {rewards}" in text


def test_several_files_are_written_as_a_hydra_list(tmp_path):
    lines = output.usage(tmp_path, [written("test", "a"), written("test", "b")])
    assert lines[0] == f"use: data.val_files=[{tmp_path / 'a.parquet'},{tmp_path / 'b.parquet'}]"


def test_a_folder_with_a_space_is_quoted_for_the_shell_and_for_hydra(tmp_path):
    folder = tmp_path / "my data"
    (line, _) = output.usage(folder, [written("train", "a")])
    (override,) = shlex.split(line.removeprefix("use: "))
    parsed = OverridesParser.create().parse_override(override)
    assert (parsed.key_or_group, parsed.value()) == ("data.train_files", str(folder / "a.parquet"))


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
