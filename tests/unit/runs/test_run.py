"""Runs from folders, made by us or by others."""

import json
from pathlib import Path

import pytest

from aent_verl.runs.metrics import REWARD, read_metrics
from aent_verl.runs.run import by_method, load_run, load_runs
from tests.unit.comparison.report.synthetic import GRPO, make_runs


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
        (lambda path: log(path / "m.jsonl", name="loss"), ValueError, "verl did not train there"),
    ],
)
def test_what_is_not_a_run_is_named(tmp_path: Path, make, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        load_run(make(tmp_path), method="a", seed=1)


@pytest.mark.parametrize(("text", "says"), [("{", "not readable JSON"), ('{"format": 99}', "expected format 1")])
def test_a_damaged_record_is_named(tmp_path: Path, text: str, says: str):
    log(tmp_path / "metrics.jsonl")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        load_run(tmp_path)


def dump(folder: Path, step: int, scores: dict[str, list[float]]) -> None:
    (folder / "validation").mkdir(exist_ok=True)
    rows = [{"input": q, "output": "o", "gts": "1", "score": s} for q, each in scores.items() for s in each]
    (folder / "validation" / f"{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def record(folder: Path, **more: object) -> Path:
    log(folder / "metrics.jsonl")
    given = {"format": 1, "method": "aent", "seed": 4, "state": "complete", **more}
    (folder / "run.json").write_text(json.dumps(given))
    return folder


def evaluation(folder: Path, model: str = "m") -> None:
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps({"format": 1, "model": model}))
    (folder / "evaluation" / "scores.jsonl").write_text('{"problem": "a", "data_source": "d", "scores": [1.0]}\n')


def test_the_validation_after_the_last_step_gives_the_scores(tmp_path: Path):
    record(tmp_path)
    for step, score in ((0, 0.0), (3, 0.5), (9, 1.0)):  # 9: of a start that was abandoned
        dump(tmp_path, step, {"a?": [score], "b?": [score]})
    run = load_run(tmp_path)
    assert (run.scores.scores.tolist(), run.scores.step, run.notes) == ([[0.5], [0.5]], 3, ())


@pytest.mark.parametrize("step", [0, 2, 9])
def test_a_validation_at_another_step_gives_none(tmp_path: Path, step: int):
    dump(record(tmp_path), step, {"a?": [1.0]})
    run = load_run(tmp_path)
    assert run.scores is None
    assert run.notes == (
        f"responses of validations are there up to step {step}, but not those at the end of training, step 3, so they "
        "do not count",
    )


def test_a_question_that_occurs_twice_does_not_cost_the_run(tmp_path: Path):
    dump(record(tmp_path), 3, {"a?": [1.0], "b?": [1.0, 0.0]})
    run = load_run(tmp_path)
    assert run.scores is None
    (note,) = run.notes
    assert note.startswith("the responses of the last validation do not count: problems have 1 to 2 responses")


@pytest.mark.parametrize(("step", "counts"), [(3, True), (2, False), (9, False)])
def test_an_evaluation_counts_only_of_the_last_step(tmp_path: Path, step: int, counts: bool):
    evaluation(record(tmp_path), f"r/checkpoints/global_step_{step}")
    dump(tmp_path, 3, {"a?": [1.0]})
    run = load_run(tmp_path)
    assert (run.scores is not None, run.notes == ()) == (counts, counts)
    if not counts:
        assert run.notes == (f"the evaluation is of step {step}, not of the last, 3, so it does not count",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"state": "started"}, "aent seed 4 is not finished: the state is 'started', not 'complete'"),
        ({"state": "trained"}, "aent seed 4 is not finished: the state is 'trained', not 'complete'"),
        ({"evaluation": ["n=2"]}, "aent seed 4 is not finished: evaluation/evaluation.json is missing"),
    ],
)
def test_unfinished_runs_are_named_and_left_out(tmp_path: Path, given: dict, said: str):
    whole, half = record(tmp_path / "whole", seed=1), record(tmp_path / "half", **given)
    runs, unfinished = load_runs([whole, half])
    assert ([run.name for run in runs], unfinished) == (["aent seed 1"], [said])
    # Naming it, or its log, does not make it whole.
    _, unfinished = load_runs([half / "metrics.jsonl"], method="mine", seed=7)
    assert unfinished == [said.replace("aent seed 4", "mine seed 7")]


def test_a_grid_on_its_way_is_told_in_one_sentence_a_method_and_reason(tmp_path: Path):
    folders = [
        record(tmp_path / f"{method}{seed}", method=method, seed=seed, state=state)
        for method, seed, state in (("aent", 1, "started"), ("grpo", 1, "started"), ("aent", 2, "trained"))
    ]
    folders += [record(tmp_path / f"aent{seed}", seed=seed, state="started") for seed in (3, 10)]
    nameless = record(tmp_path / "nameless", method=None, state="started")
    assert load_runs([*folders, nameless]) == (
        [],
        [
            "aent seeds 1, 3, 10 are not finished: the state is 'started', not 'complete'",
            "grpo seed 1 is not finished: the state is 'started', not 'complete'",
            "aent seed 2 is not finished: the state is 'trained', not 'complete'",
            "run nameless is not finished: the state is 'started', not 'complete'",
        ],
    )


def test_a_finished_evaluation_makes_a_finished_run(tmp_path: Path):
    evaluation(record(tmp_path, evaluation=["n=2"]))
    runs, unfinished = load_runs([tmp_path])
    assert (len(runs), unfinished) == (1, [])


def test_a_run_that_has_logged_nothing_yet_is_unfinished(tmp_path: Path):
    (record(tmp_path, state="started") / "metrics.jsonl").unlink()
    assert load_runs([tmp_path]) == ([], ["aent seed 4 is not finished: the state is 'started', not 'complete'"])


def test_runs_made_elsewhere_have_no_state(tmp_path: Path):
    runs, unfinished = load_runs([log(tmp_path / "a.jsonl")], method="grpo", seed=1)
    assert ([run.name for run in runs], unfinished) == (["grpo seed 1"], [])
    with pytest.raises(FileNotFoundError):
        load_runs([tmp_path / "missing"])


def test_a_config_next_to_the_only_log_is_that_logs(tmp_path: Path):
    file = log(tmp_path / "grpo_1.jsonl")
    log(tmp_path / "metrics.1.jsonl")
    (tmp_path / "config.yaml").write_text("trainer: {total_training_steps: 3}\n")
    assert load_run(file, method="grpo", seed=1).protocol["trainer.total_training_steps"] == "3"
    log(tmp_path / "grpo_2.jsonl")
    assert load_run(file, method="grpo", seed=1).protocol == {}


@pytest.mark.parametrize(("steps", "unfinished"), [(3, []), (5, ["aent seed 4 is not finished: it is at step 3 of 5"])])
def test_a_run_that_was_killed_is_not_finished_whoever_made_it(tmp_path: Path, steps: int, unfinished: list[str]):
    log(tmp_path / "metrics.jsonl")
    (tmp_path / "config.yaml").write_text(
        f"entropy_control: {{method: aent}}\ndata: {{seed: 4}}\ntrainer: {{total_training_steps: {steps}}}\n"
    )
    runs, said = load_runs([tmp_path])
    assert (len(runs), said) == (not unfinished, unfinished)


def test_a_config_that_tells_no_seed_or_nothing(tmp_path: Path):
    log(tmp_path / "metrics.jsonl")
    (tmp_path / "config.yaml").write_text("entropy_control: {method: aent}\ndata: {seed: '${x.y}'}\n")
    with pytest.raises(ValueError, match="its seed is not recorded there"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_text("data: {seed: [")
    with pytest.raises(ValueError, match=r"config\.yaml is not readable YAML"):
        load_run(tmp_path)


def test_what_is_said_about_a_run_comes_before_what_is_written_there(tmp_path):
    (made,) = make_runs(tmp_path, (GRPO,), seeds=1)
    run = load_run(made.path, method="mine", seed=7)
    assert (run.method, run.seed) == ("mine", 7)
