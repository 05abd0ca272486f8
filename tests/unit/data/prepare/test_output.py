import shlex
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from aent_verl.data.prepare import output
from tests.unit.data.prepare.conftest import entry, mine, prepare, problems, sums, write_parquet
from tests.unit.data.prepare.native import ROWS

pytestmark = pytest.mark.usefixtures("no_hub")


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


def test_files_for_different_rewards_are_not_offered_for_one_run(tmp_path):
    text = prepare(mine(tmp_path), "reasoning-gym:chain_sum", "--size", 2, "--output", tmp_path / "out")
    rewards = "aent_verl.data.tasks.math_reward and aent_verl.data.tasks.reward"
    assert f"these need different rewards, so different runs: {rewards}" in text


def test_several_files_are_written_as_a_hydra_list(tmp_path):
    lines = output.usage(tmp_path, [written("test", "a"), written("test", "b")])
    assert lines[0] == f"use: data.val_files=[{tmp_path / 'a.parquet'},{tmp_path / 'b.parquet'}]"


def test_a_folder_with_a_space_is_quoted_for_the_shell_and_for_hydra(tmp_path):
    folder = tmp_path / "my data, his"
    (line, _) = output.usage(folder, [written("train", "a")])
    (override,) = shlex.split(line.removeprefix("use: "))
    parsed = OverridesParser.create().parse_override(override)
    assert (parsed.key_or_group, parsed.value()) == ("data.train_files", str(folder / "a.parquet"))
