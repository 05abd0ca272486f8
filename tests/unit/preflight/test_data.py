import json
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aent_verl import preflight
from aent_verl.preflight import PreflightError, data
from aent_verl.preflight.rows import SAMPLE
from tests.unit.preflight.rows import ROWS, row, write


def test_a_good_config_passes_and_says_what_was_checked(settings):
    lines = "\n".join(row.detail for row in preflight.check_run(settings) if row.state == preflight.findings.OK)
    assert "data.train_files: 16 rows" in lines
    assert "data.val_files: 4 rows" in lines
    assert "Qwen2Tokenizer with 259 tokens" in lines
    assert "the longest of 20 has" in lines
    assert "scores right answers 1 and wrong ones at most 0 (3 of 3 rows tell them apart)" in lines
    assert "Ray: 16 CPU slots, 6 needed" in lines
    assert "memory: about" in lines


@pytest.mark.parametrize("value", [None, "", []])
def test_no_data_set(settings, value):
    settings.data.train_files = value
    with pytest.raises(PreflightError, match=r"data\.train_files=.*no data set is named.*cpu_arithmetic") as error:
        preflight.say(preflight.check_run(settings), sys.stdout)
    assert error.value.key == "data.train_files"
    assert error.value.value == value


@pytest.mark.parametrize("key", ["data.train_files", "data.val_files"])
def test_a_missing_file(settings, key, tmp_path):
    missing = str(tmp_path / "missing.parquet")
    OmegaConf.update(settings, key, missing)
    with pytest.raises(PreflightError, match=f"{key}='{missing}': there is no such file"):
        data.check(settings)


def test_a_home_folder_that_verl_would_not_expand(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings.data.train_files = "~/train.parquet"
    with pytest.raises(PreflightError, match=f"verl does not expand '~': write {tmp_path}/train.parquet"):
        data.check(settings)


def test_an_unknown_format(settings, tmp_path):
    (tmp_path / "train.csv").write_text("prompt\n")
    settings.data.train_files = str(tmp_path / "train.csv")
    with pytest.raises(
        PreflightError, match=r"does not know this format; expected a name that ends in \.parquet, \.json"
    ):
        data.check(settings)


@pytest.mark.parametrize("name", ["train.parquet", "train.json", "train.jsonl"])
def test_a_damaged_file(settings, tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1 or {not json")
    settings.data.train_files = str(tmp_path / name)
    with pytest.raises(PreflightError, match=r"cannot be read .*make it again"):
        data.check(settings)


def test_a_half_copied_parquet_file(settings):
    path = Path(settings.data.train_files)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PreflightError, match="cannot be read"):
        data.check(settings)


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_json_is_read_as_an_array_or_as_lines(settings, tmp_path, name):
    text = json.dumps(ROWS) if name == "train.json" else "\n".join(map(json.dumps, ROWS)) + "\n\n"
    (tmp_path / name).write_text(text)
    settings.data.train_files = str(tmp_path / name)
    sample, lines = data.check(settings)
    assert sample.train == {str(tmp_path / name): ROWS}
    assert "16 rows" in lines[0]


def test_rows_of_several_files_are_added_up(settings, tmp_path):
    half = [write(tmp_path / f"{part}.parquet", ROWS[8 * part : 8 * part + 8]) for part in range(2)]
    settings.data.train_files = half
    sample, lines = data.check(settings)
    assert sample.train == {half[0]: ROWS[:8], half[1]: ROWS[8:]}
    assert sample.rows == ROWS + ROWS[:4]
    assert "16 rows" in lines[0]


@pytest.mark.parametrize("name", ["many.parquet", "many.jsonl"])
def test_rows_beyond_the_sample_are_counted(settings, tmp_path, name):
    settings.data.train_files = str(tmp_path / name)
    if name == "many.parquet":
        write(tmp_path / name, ROWS * 20)
    else:
        (tmp_path / name).write_text("\n".join(map(json.dumps, ROWS * 20)))
    sample, lines = data.check(settings)
    assert len(sample.train[str(tmp_path / name)]) == SAMPLE
    assert "320 rows" in lines[0]


def test_no_rows(settings, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    settings.data.train_files = str(tmp_path / "empty.jsonl")
    with pytest.raises(PreflightError, match="the file has no rows"):
        data.check(settings)


@pytest.mark.parametrize("column", ["prompt", "data_source", "reward_model"])
def test_a_missing_column(settings, tmp_path, column):
    rows = [{key: value for key, value in one.items() if key != column} for one in ROWS]
    settings.data.val_files = write(tmp_path / "val.parquet", rows)
    with pytest.raises(PreflightError, match=f"data.val_files=.*has no column '{column}'.*it has 'extra_info'|it has "):
        data.check(settings)


def test_a_column_that_the_config_names(settings):
    settings.data.prompt_key = "question"
    with pytest.raises(PreflightError, match=r"has no column 'question' \(data\.prompt_key\)"):
        data.check(settings)


@pytest.mark.parametrize("prompt", ["How many is 2 + 3?", [], [{"role": "user"}], ["How many?"]])
def test_a_prompt_that_is_not_chat_messages(settings, tmp_path, prompt):
    (tmp_path / "train.json").write_text(json.dumps([*ROWS, row(prompt=prompt)]))
    settings.data.train_files = str(tmp_path / "train.json")
    with pytest.raises(PreflightError, match=r"'prompt' of row 16 is .*expected chat messages"):
        data.check(settings)


def test_fewer_rows_than_a_batch(settings):
    settings.data.train_batch_size = 17
    with pytest.raises(
        PreflightError, match=r"data\.train_batch_size=17: the training data has only 16 rows; expected at most 16"
    ):
        data.check(settings)


@pytest.mark.parametrize("size", [5, 32])
def test_fetches_that_do_not_make_up_a_batch(settings, size):
    settings.data.gen_batch_size = size
    with pytest.raises(PreflightError, match=rf"data\.gen_batch_size={size}: .*expected a divisor of 16"):
        data.check(settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm.filter_groups.enable", True),
        ("trainer.v1.sampler.sync_refill_failed_groups", True),
        ("trainer.v1.trainer_mode", "colocate_async"),
        ("trainer.v1.trainer_mode", "separate_async"),
    ],
)
def test_a_size_of_fetches_that_verl_overrides(settings, key, value):
    OmegaConf.update(settings, key, value, force_add=True)
    settings.data.gen_batch_size = 96
    warning = data.check(settings)[1][1]
    assert isinstance(warning, Warning)
    assert str(warning).startswith("data.gen_batch_size=96 has no effect: with ")
    assert key in str(warning)
    settings.data.gen_batch_size = 1
    assert not [line for line in data.check(settings)[1] if isinstance(line, Warning)]


def test_a_limit_on_rows_below_a_batch(settings):
    settings.data.train_max_samples = 8
    with pytest.raises(PreflightError, match=r"data\.train_batch_size=16: .*only 8 rows"):
        data.check(settings)
    settings.data.train_max_samples = 0  # no limit, to verl
    data.check(settings)
    settings.data.train_max_samples = None
    with pytest.raises(PreflightError, match=r"data\.train_max_samples=None.*Set it to -1"):
        data.check(settings)


def test_a_data_set_class_of_the_user_is_left_alone(settings):
    settings.data.custom_cls.path = "mine.py"
    settings.data.train_files = None
    assert data.check(settings)[1] == ["data: left to your data set class mine.py"]
