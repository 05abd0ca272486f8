import json

import pytest

from aent_verl.reporting.groups import group_runs
from aent_verl.results.run import load_run
from tests.unit.reporting.synthetic import (
    AENT,
    GRPO,
    PROTOCOL,
    draw_scores,
    make_runs,
    metrics,
    write_evaluation,
    write_metrics,
    write_run,
)


def test_the_baseline_comes_first_and_seeds_in_order(tmp_path):
    runs = make_runs(tmp_path, (AENT, GRPO), seeds=3)
    groups = group_runs([*runs[:3][::-1], *runs[3:]], "grpo")
    assert groups.methods == ["grpo", "aent"]
    assert [run.seed for run in groups.all] == [1, 2, 3, 1, 2, 3]
    assert (groups.baseline, groups.differences, groups.notices) == ("grpo", (), ())


def test_no_run_and_an_unknown_baseline_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no run to report on"):
        group_runs([], "grpo")
    with pytest.raises(ValueError, match=r"baseline='gpro': no run of it; there are runs of grpo, aent"):
        group_runs(make_runs(tmp_path, seeds=1), "gpro")


def test_a_single_method_needs_no_baseline(tmp_path):
    groups = group_runs(make_runs(tmp_path, (AENT,), seeds=2), "grpo")
    assert groups.baseline is None
    assert groups.notices == ("There is no run of the baseline grpo, so nothing is compared.",)


def test_another_protocol_is_refused_unless_allowed(tmp_path):
    runs = make_runs(tmp_path, seeds=2)
    other = write_run(tmp_path / "other", AENT, 3, protocol=PROTOCOL | {"actor_rollout_ref.model.path": "big"})
    runs.append(load_run(other))
    with pytest.raises(ValueError, match=r"model.path: tiny 0123456789ab in .*; big in aent seed 3\n.*--allow-diff"):
        group_runs(runs, "grpo")
    (line,) = group_runs(runs, "grpo", allow_different=True).differences
    assert line.endswith("big in aent seed 3")


def test_an_unknown_protocol_is_a_difference(tmp_path):
    runs = make_runs(tmp_path, seeds=2)
    write_metrics(tmp_path / "stock", metrics(GRPO, 9, 40))
    runs.append(load_run(tmp_path / "stock", method="stock", seed=1))
    with pytest.raises(ValueError, match="the protocol of stock seed 1 is not known"):
        group_runs(runs, "grpo")


@pytest.mark.parametrize(("problems", "samples", "said"), [(39, 8, "evaluation.problems"), (40, 4, "evaluation.n: 8")])
def test_another_evaluation_is_a_difference(tmp_path, problems, samples, said):
    make_runs(tmp_path, seeds=2)
    folder = tmp_path / "aent_seed2"
    write_evaluation(folder, draw_scores(AENT, 2, problems, samples))
    runs = [load_run(path) for path in sorted(tmp_path.iterdir())]
    with pytest.raises(ValueError, match=said):
        group_runs(runs, "grpo")


def test_another_temperature_of_the_evaluation_is_a_difference(tmp_path):
    make_runs(tmp_path, seeds=2)
    file = tmp_path / "aent_seed2" / "evaluation" / "evaluation.json"
    record = json.loads(file.read_text())
    record["sampling"]["temperature"] = 0.6
    file.write_text(json.dumps(record))
    runs = [load_run(path) for path in sorted(tmp_path.iterdir())]
    with pytest.raises(ValueError, match=r"evaluation.temperature: 1.0 in .*; 0.6 in aent seed 2"):
        group_runs(runs, "grpo")


def test_notices_name_what_is_odd(tmp_path):
    runs = make_runs(tmp_path, (GRPO,), seeds=2)
    short = write_run(tmp_path / "short", AENT, 1, steps=30)
    steps = metrics(AENT, 1, 30)
    steps[7]["aent/entropy"] = None
    write_metrics(short, {step: {k: v for k, v in data.items() if "val-core" not in k} for step, data in steps.items()})
    runs.append(load_run(short))
    notices = group_runs(runs, "grpo").notices
    assert [notice.split(":")[0] for notice in notices] == [
        "One seed of aent",
        "Not all runs are equally long; the longest end at step 40",
        "aent seed 1",
        "aent seed 1 was never validated",
    ]
    assert "aent seed 1 ends at step 30" in notices[1]
    assert notices[2] == "aent seed 1: aent/entropy is NaN or infinite at 1 of 30 steps."


def test_seeds_with_other_settings_are_named(tmp_path):
    make_runs(tmp_path, (GRPO,), seeds=2)
    file = tmp_path / "grpo_seed2" / "config.yaml"
    file.write_text(file.read_text().replace("1e-06", "5e-06"))
    groups = group_runs([load_run(path) for path in sorted(tmp_path.iterdir())], "grpo")
    assert groups.notices == (
        "Seeds of grpo were trained with different settings, so they are not one method: "
        "actor_rollout_ref.actor.optim.lr.",
    )
