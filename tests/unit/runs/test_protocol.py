"""What has to be equal before runs are compared."""

import hashlib
import os
from pathlib import Path

import pytest

from aent_verl import _util
from aent_verl.runs import protocol
from aent_verl.runs.protocol import (
    SEED_KEYS,
    differences,
    fingerprint,
    fingerprint_all,
    protocol_of,
    settings_of,
    shortened,
)


def config(tmp_path: Path, **changes: object) -> dict:
    (tmp_path / "train.parquet").write_bytes(b"train")
    made = {
        "actor_rollout_ref": {
            "model": {"path": "Qwen/Qwen2.5-Math-1.5B"},
            "actor": {"optim": {"lr": 1e-6}, "data_loader_seed": 1, "clip_ratio_high": 0.2},
            "rollout": {"n": 8, "seed": 1, "trace": {"experiment_name": "x"}},
        },
        "data": {"train_files": str(tmp_path / "train.parquet"), "val_files": ["gone.parquet"], "seed": 1},
        "trainer": {"total_training_steps": 40, "experiment_name": "x", "default_local_dir": "d", "save_freq": 3},
        "run": {"dir": "r"},
        "entropy_control": {"method": "aent", "bonus": {"controller": {"low": 0.2}}},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = made
        for part in parents:
            place = place[part]
        place[last] = value
    return made


def test_equal_runs_have_no_differences(tmp_path: Path):
    one = protocol_of(config(tmp_path))
    two = protocol_of(config(tmp_path, data__seed=2, entropy_control__method="grpo", trainer__experiment_name="y"))
    assert differences({"a": one, "b": two}) == []


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (
            "actor_rollout_ref__model__path",
            "other",
            "actor_rollout_ref.model.path: Qwen/Qwen2.5-Math-1.5B in a; other in b",
        ),
        ("actor_rollout_ref__rollout__n", 4, "actor_rollout_ref.rollout.n: 8 in a; 4 in b"),
        ("trainer__total_training_steps", 50, "trainer.total_training_steps: 40 in a; 50 in b"),
        ("data__val_files", ["else.parquet"], "data.val_files: gone.parquet in a; else.parquet in b"),
    ],
)
def test_each_difference_is_named_with_both_values(tmp_path: Path, key: str, value: object, says: str):
    runs = {"a": protocol_of(config(tmp_path)), "b": protocol_of(config(tmp_path, **{key: value}))}
    assert differences(runs) == [says]


def test_a_file_is_its_content_and_not_its_name(tmp_path: Path):
    one = protocol_of(config(tmp_path))
    before = fingerprint(str(tmp_path / "train.parquet"))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train.parquet").write_bytes(b"train")
    assert fingerprint(str(tmp_path / "copy" / "train.parquet")) == before
    (tmp_path / "copy" / "train.parquet").write_bytes(b"other")
    two = protocol_of(config(tmp_path, data__train_files=str(tmp_path / "copy" / "train.parquet")))
    assert [line.split(":")[0] for line in differences({"a": one, "b": two})] == ["data.train_files"]


def test_a_model_folder_is_its_weights_and_config(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    before = fingerprint(str(folder))
    (folder / "README.md").write_text("no part of the model")
    assert fingerprint(str(folder)) == before
    (folder / "config.json").write_text("{}")
    assert fingerprint(str(folder)) != before


def test_a_run_without_protocol_is_not_equal_to_any(tmp_path: Path):
    lines = differences({"a": protocol_of(config(tmp_path)), "stock": {}})
    assert lines == ["the protocol of stock is not known (no run.json, no config there)"]


def test_settings_are_what_a_method_may_choose(tmp_path: Path):
    settings = settings_of(config(tmp_path))
    assert settings == {
        "actor_rollout_ref.actor.optim.lr": "1e-06",
        "actor_rollout_ref.actor.clip_ratio_high": "0.2",
        "entropy_control.bonus.controller.low": "0.2",
    }
    assert not set(SEED_KEYS) & set(settings)


def test_a_copy_under_another_name_is_the_same_file(tmp_path: Path):
    one = protocol_of(config(tmp_path))
    (tmp_path / "my copy, renamed.parquet").write_bytes(b"train")
    (tmp_path / "copy.parquet").write_bytes(b"train")
    two = protocol_of(config(tmp_path, data__train_files=str(tmp_path / "copy.parquet")))
    assert two["data.train_files"].startswith("copy.parquet ")
    assert differences({"a": one, "b": two}) == []
    both = [str(tmp_path / name) for name in ("copy.parquet", "train.parquet")]
    lists = [protocol_of(config(tmp_path, data__train_files=files)) for files in (both, both[::-1], both[:1])]
    assert differences({"a": lists[0], "b": lists[1]}) == []
    assert len(differences({"a": lists[0], "b": lists[2]})) == 1


def test_every_file_of_a_list_is_its_content(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    files = [str(tmp_path / name) for name in "ab"]
    before = fingerprint_all(files)
    assert before == ", ".join(map(fingerprint, files))
    assert fingerprint_all(files[0]) == fingerprint(files[0])
    assert fingerprint_all(None) == ""
    (tmp_path / "b").write_text("c")
    assert fingerprint_all(files) != before


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_reward_function_is_the_content_of_its_file(tmp_path: Path, prefix: str):
    file = tmp_path / "reward.py"
    runs = {}
    for name, code in (("a", "return 0"), ("b", "return 1")):
        file.write_text(code)
        runs[name] = protocol_of(config(tmp_path) | {"reward": {"custom_reward_function": {"path": f"{prefix}{file}"}}})
    (line,) = differences(runs)
    assert line.startswith("reward.custom_reward_function.path: reward.py ")


def test_a_reward_function_of_a_package_is_its_name(tmp_path: Path):
    given = config(tmp_path) | {"reward": {"custom_reward_function": {"path": "pkg://aent_verl.data.tasks.reward"}}}
    assert protocol_of(given)["reward.custom_reward_function.path"] == "pkg://aent_verl.data.tasks.reward"


def test_epochs_count_only_where_steps_do_not_decide(tmp_path: Path):
    def run(steps: int | None, epochs: int) -> dict[str, str]:
        return protocol_of(config(tmp_path, trainer__total_training_steps=steps, trainer__total_epochs=epochs))

    assert differences({"a": run(40, 1), "b": run(40, 2)}) == []
    assert differences({"a": run(None, 1), "b": run(None, 2)}) == ["trainer.total_epochs: 1 in a; 2 in b"]
    assert len(differences({"a": run(None, 1), "b": run(40, 2)})) == 2


@pytest.mark.parametrize(
    ("key", "value", "off"),
    [
        ("data__train_max_samples", 10, -1),
        ("data__val_max_samples", 10, -1),
        ("data__filter_overlong_prompts", True, False),
        ("data__apply_chat_template_kwargs", {"enable_thinking": False}, {}),
        ("actor_rollout_ref__model__custom_chat_template", "{{ x }}", None),
        ("reward", {"custom_reward_function": {"reward_kwargs": {"strict": False}}}, {}),
    ],
)
def test_what_changes_the_data_is_protocol_only_where_it_is_set(tmp_path: Path, key: str, value: object, off: object):
    plain = protocol_of(config(tmp_path))
    given = config(tmp_path, **{key: value})
    (line,) = differences({"a": plain, "b": protocol_of(given)})
    assert line.startswith(key.replace("__", "."))
    assert protocol_of(config(tmp_path, **{key: off})) == plain
    assert settings_of(given) == settings_of(config(tmp_path))


def test_long_texts_are_told_apart_and_are_one_short_line():
    one, two = shortened("x" * 500 + "1"), shortened("x" * 500 + "2")
    assert one != two
    assert len(one) < 80
    assert shortened("short") == "short"
    assert shortened("a\nb") != shortened("a b")
    assert differences({"a": {"k": one}, "b": {"k": two}})


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "model.safetensors"
    file.write_text("weights")
    os.utime(file, (1, 1))
    before = fingerprint(str(file))
    read = []
    monkeypatch.setattr(protocol, "file_sha256", lambda path: read.append(path) or "f" * 64)
    assert fingerprint(str(file)) == before
    assert read == []
    os.utime(file, (2, 2))
    assert fingerprint(str(file)) != before
    # Written just now: it may change again within the clock's resolution.
    os.utime(file)
    fingerprint(str(file))
    fingerprint(str(file))
    assert len(read) == 3


def test_a_model_folder_tells_which_file_is_which(tmp_path: Path):
    for name, files in (("one", ("a.bin", "b.bin")), ("two", ("a.bin", "c.bin")), ("three", ("a.bin", "b.bin"))):
        (tmp_path / name).mkdir()
        for file, content in zip(files, "xy", strict=True):
            (tmp_path / name / file).write_text(content)
    hashes = [fingerprint(str(tmp_path / name)).split()[1] for name in ("one", "two", "three")]
    assert hashes[0] == hashes[2] != hashes[1]


def test_all_of_a_file_counts(tmp_path: Path):
    content = bytes(1 << 20) + b"end"
    (tmp_path / "model.safetensors").write_bytes(content)
    assert _util.file_sha256(tmp_path / "model.safetensors") == hashlib.sha256(content).hexdigest()
