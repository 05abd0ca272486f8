import json

import pytest

from aent_verl.comparison.report.contents import build, protocol_rows
from aent_verl.comparison.report.groups import group_runs
from aent_verl.comparison.report.write import as_json
from aent_verl.runs.run import load_run
from tests.unit.comparison.report.synthetic import (
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


def change_evaluation(folder, **changes):
    file = folder / "evaluation" / "evaluation.json"
    record = json.loads(file.read_text())
    for key, value in changes.items():
        record[key] = record.get(key, {}) | value if isinstance(value, dict) else value
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward": "lenient.py:compute_score"}, "evaluation.reward: digits in .*; lenient.py:compute_score in aent"),
        ({"reward_sha256": "f" * 64}, "evaluation.reward: "),
        ({"reward_settings": {"strict": False}}, 'evaluation.reward_settings: {} in .*; {"strict": false} in aent'),
        (
            {"data": [{"path": "test.parquet", "sha256": "cd34", "problems": 40}]},
            "evaluation.data: .*test.parquet cd34",
        ),
        ({"prompts": {"chat_template": "other"}}, "evaluation.prompts.chat_template: .*; other in aent seed 2"),
    ],
)
def test_another_way_of_scoring_is_a_difference(tmp_path, changes, said):
    make_runs(tmp_path, seeds=2)
    for folder in tmp_path.iterdir():
        change_evaluation(folder, reward_settings={}, prompts={"chat_template": None})
    change_evaluation(tmp_path / "aent_seed2", **changes)
    with pytest.raises(ValueError, match=said):
        group_runs([load_run(path) for path in sorted(tmp_path.iterdir())], "grpo")


def test_other_random_numbers_and_another_place_of_the_data_are_no_difference(tmp_path):
    make_runs(tmp_path, seeds=2)
    for number, folder in enumerate(sorted(tmp_path.iterdir())):
        data = [{"path": f"/there/{number}.parquet", "sha256": "ab" * 32, "problems": 40}]
        change_evaluation(folder, sampling={"seed": number}, data=data)
    assert group_runs([load_run(path) for path in sorted(tmp_path.iterdir())], "grpo").differences == ()


def test_an_evaluation_of_another_checkpoint_is_named(tmp_path):
    make_runs(tmp_path, seeds=2)
    change_evaluation(tmp_path / "aent_seed2", model="checkpoints/global_step_5")
    groups = group_runs([load_run(path) for path in sorted(tmp_path.iterdir())], "grpo")
    assert groups.notices == ("aent seed 2: the evaluation is of step 5, not of the last, 40, so it does not count.",)


def test_a_final_validation_that_is_not_a_number_is_named(tmp_path):
    runs = make_runs(tmp_path, seeds=2)
    runs[0].metrics[40]["val-core/digits/acc/mean@4"] = float("nan")
    assert group_runs(runs, "grpo").notices == (
        "grpo seed 1: the last validation is NaN or infinite. It is not left out for its result: where methods are "
        "compared by their last validation, nothing is claimed about its method.",
    )


def test_an_accuracy_over_several_data_sets_says_how_it_is_made(tmp_path):
    runs = make_runs(tmp_path, seeds=2)
    for run in runs:
        run.metrics[40]["val-core/openai/gsm8k/acc/mean@1"] = 0.5
    assert group_runs(runs, "grpo").notices == (
        "Validation accuracy is the mean over 2 data sources, each of which counts the same, however many problems it "
        "has.",
    )


def test_missing_runs_are_named_first(tmp_path):
    failed = ["aent seed 3 failed: out of memory", "grpo seed 3 is not finished"]
    notices = group_runs(make_runs(tmp_path, seeds=1), "grpo", failed=failed).notices
    assert notices[:3] == (
        "aent seed 3 failed: out of memory.",
        "grpo seed 3 is not finished.",
        "Those runs are missing because they failed or are not finished; none is left out for its result.",
    )
    assert notices[3].startswith("One seed of grpo, aent")
    with pytest.raises(ValueError, match=r"no run to report on.*\(aent seed 3 failed: out of memory; grpo seed 3"):
        group_runs([], "grpo", failed=failed)
    with pytest.raises(ValueError, match=r"baseline='x'.*\(aent seed 3 failed"):
        group_runs(make_runs(tmp_path, seeds=1), "x", failed=failed)


def test_copies_of_a_file_are_one_value(tmp_path):
    names = ("a.parquet 0123456789ab", "b.parquet 0123456789ab", "a.parquet ba9876543210")
    folders = [write_run(tmp_path / str(i), GRPO, i, protocol={"data.train_files": n}) for i, n in enumerate(names)]
    groups = group_runs([load_run(folder) for folder in folders], "grpo", allow_different=True)
    assert protocol_rows(groups) == {
        "data.train_files": {names[0]: ["grpo seed 0", "grpo seed 1"], names[2]: ["grpo seed 2"]}
    }


def with_reward_alone(tmp_path, *sources, methods=("grpo", "aent")):
    """Runs of which some log only a reward for these data sources, alongside the accuracy of another."""
    make_runs(tmp_path, seeds=1, evaluate=False)
    runs = []
    for method in (GRPO, AENT):
        run = metrics(method, 1, 40)
        for data in run.values():
            if "val-core/digits/acc/mean@4" in data and method.name in methods:
                data |= {f"val-core/{source}/reward/mean@4": 0.9 for source in sources}
        write_metrics(tmp_path / f"{method.name}_seed1", run)
        runs.append(load_run(tmp_path / f"{method.name}_seed1"))
    return runs


def test_a_validation_source_that_has_only_a_reward_is_named(tmp_path):
    notices = group_runs(with_reward_alone(tmp_path, "openai/gsm8k", "essays"), "grpo").notices
    assert notices[1] == (
        "Validation accuracy leaves out the data sources essays, openai/gsm8k: only a reward is logged there, which is "
        "not averaged with the accuracy of other sources. To have it count, let the reward function return a dict with "
        "'score' and 'acc'."
    )


def test_a_validation_source_that_is_left_out_of_one_run_alone_is_named_with_it(tmp_path):
    runs = with_reward_alone(tmp_path, "essays", methods=("aent",))
    assert (
        group_runs(runs, "grpo")
        .notices[1]
        .startswith("Validation accuracy of aent seed 1 leaves out the data source essays: ")
    )
    assert "leaves out the data source essays" in as_json(build(runs, baseline="grpo", title="x"))


def test_sources_that_all_have_only_a_reward_are_compared_by_it(tmp_path):
    runs = make_runs(tmp_path, seeds=2, evaluate=False)
    for run in runs:
        for data in run.metrics.values():
            if (accuracy := data.pop("val-core/digits/acc/mean@4", None)) is not None:
                data |= {f"val-core/{source}/reward/mean@4": accuracy for source in ("a", "b")}
    assert "leaves out" not in "".join(group_runs(runs, "grpo").notices)
