"""What has to be equal before runs are compared."""

from pathlib import Path

import pytest

from aent_verl.results.protocol import SEED_KEYS, differences, fingerprint, protocol_of, settings_of


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


def test_a_run_without_protocol_is_no_equal_of_any(tmp_path: Path):
    lines = differences({"a": protocol_of(config(tmp_path)), "stock": {}})
    assert lines == ["the protocol of stock is not known (no run.json, no config beside it)"]


def test_settings_are_what_a_method_may_choose(tmp_path: Path):
    settings = settings_of(config(tmp_path))
    assert settings == {
        "actor_rollout_ref.actor.optim.lr": "1e-06",
        "actor_rollout_ref.actor.clip_ratio_high": "0.2",
        "entropy_control.bonus.controller.low": "0.2",
    }
    assert not set(SEED_KEYS) & set(settings)
