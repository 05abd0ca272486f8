"""Runs from folders, made by us or by others."""

import json
from pathlib import Path

import pytest

from aent_verl.metrics import REWARD
from aent_verl.results.run import by_method, load_run
from aent_verl.results.sources import read_metrics


def log(path: Path, steps: int = 3, name: str = REWARD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": k, "data": {name: k / 10}}) + "\n" for k in range(1, steps + 1)))
    return path


def tensorboard(folder: Path, steps: int = 3) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for step in range(1, steps + 1):
        writer.add_scalar(REWARD, step / 10, step)
        writer.add_scalar("actor/entropy", 1 / step, step)
    writer.close()
    return folder


def test_stock_verls_log_needs_its_method_and_seed_said(tmp_path: Path):
    file = log(tmp_path / "grpo_baseline.jsonl")
    with pytest.raises(ValueError, match=r"--from METHOD:SEED="):
        load_run(file)
    run = load_run(file, method="grpo", seed=4)
    assert (run.name, run.last_step, run.protocol, run.scores) == ("grpo seed 4", 3, {}, None)


def test_tensorboard_files_give_the_same_metrics_as_the_log(tmp_path: Path):
    tensorboard(tmp_path / "tensorboard" / "project" / "run")
    found = read_metrics(tmp_path)
    expected = read_metrics(log(tmp_path / "x.jsonl"))
    assert list(found) == list(expected)
    for step, data in expected.items():
        assert found[step][REWARD] == pytest.approx(data[REWARD])
    assert found[2]["actor/entropy"] == pytest.approx(0.5)


def test_several_tensorboard_runs_are_not_mixed(tmp_path: Path):
    for name in ("one", "two"):
        tensorboard(tmp_path / name)
    with pytest.raises(ValueError, match=r"2 runs below it \(one, two"):
        read_metrics(tmp_path)


def test_method_and_seed_of_our_own_folder(tmp_path: Path):
    log(tmp_path / "metrics.jsonl")
    (tmp_path / "hydra").mkdir()
    (tmp_path / "hydra" / "config.yaml").write_text(
        "entropy_control: {method: aent}\ndata: {seed: 5, train_files: t.parquet}\ntrainer: {total_training_steps: 3}\n"
    )
    run = load_run(tmp_path)
    assert run.name == "aent seed 5"
    assert run.protocol["trainer.total_training_steps"] == "3"
    assert load_run(tmp_path, method="mine", seed=6).name == "mine seed 6"


def test_interpolations_that_do_not_resolve_here_are_left_as_they_are(tmp_path: Path):
    log(tmp_path / "metrics.jsonl")
    (tmp_path / "config.yaml").write_text("data: {seed: 1, train_files: '${oc.env:NOT_SET_HERE}'}\n")
    assert "NOT_SET_HERE" in load_run(tmp_path, method="grpo").protocol["data.train_files"]


def test_runs_by_method_and_seed(tmp_path: Path):
    runs = [
        load_run(log(tmp_path / f"{i}.jsonl"), method=m, seed=s)
        for i, (m, s) in enumerate([("a", 2), ("b", 1), ("a", 1)])
    ]
    groups = by_method(runs, first="b")
    assert {method: [run.seed for run in group] for method, group in groups.items()} == {"b": [1], "a": [1, 2]}
    assert list(groups) == ["b", "a"]


def test_the_same_run_twice_is_refused(tmp_path: Path):
    runs = [load_run(log(tmp_path / name), method="a", seed=1) for name in ("1.jsonl", "2.jsonl")]
    with pytest.raises(ValueError, match="are both a seed 1"):
        by_method(runs)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda path: path / "missing", FileNotFoundError, "is not there"),
        (lambda path: path, FileNotFoundError, "neither metrics.jsonl nor TensorBoard"),
        (lambda path: log(path / "m.jsonl", steps=0), ValueError, "holds no step"),
        (lambda path: log(path / "m.jsonl", name="loss"), ValueError, "no training run of verl's"),
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, make, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        load_run(make(tmp_path), method="a", seed=1)


@pytest.mark.parametrize(("text", "says"), [("{", "not readable JSON"), ('{"format": 99}', "expected format 1")])
def test_a_damaged_record_is_named(tmp_path: Path, text: str, says: str):
    log(tmp_path / "metrics.jsonl")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        load_run(tmp_path)
