import json
import math

import numpy as np
import pytest
from scipy import stats

from aent_verl.comparison.report.accuracy import judge
from aent_verl.comparison.report.groups import group_runs
from aent_verl.runs.run import load_run
from tests.unit.comparison.report.synthetic import (
    AENT,
    GRPO,
    Method,
    draw_scores,
    make_runs,
    write_evaluation,
    write_run,
)


def judged(runs, allow=False, target="problems like these"):
    return judge(group_runs(runs, "grpo", allow), target)


def set_scores(root, name, scores):
    """Give a run of `root` these scores and read it back."""
    write_evaluation(root / name, np.asarray(scores, dtype=float))
    return load_run(root / name)


def test_numbers_of_a_method_by_hand(tmp_path):
    accuracy = judged(make_runs(tmp_path, seeds=3))
    scores = np.stack([draw_scores(AENT, seed, 40, 8) for seed in (1, 2, 3)])
    baseline = np.stack([draw_scores(GRPO, seed, 40, 8) for seed in (1, 2, 3)])
    found = accuracy.methods["aent"]
    assert (accuracy.metric, accuracy.samples, accuracy.problems, found.seeds) == ("mean@8", 8, 40, 3)
    assert found.mean.value == pytest.approx(scores.mean())
    assert found.pass_at_k[0].value == pytest.approx(scores.mean())
    assert found.pass_at_k[7].value == pytest.approx(scores.max(axis=2).mean())
    two = [1 - math.comb(8 - int(c), 2) / math.comb(8, 2) for c in scores.sum(axis=2).ravel()]
    assert found.pass_at_k[1].value == pytest.approx(np.mean(two))
    assert found.interquartile_mean.value == pytest.approx(stats.trim_mean(scores.mean(axis=2), 0.25, axis=None))
    ours, theirs = scores.mean(axis=2)[:, None], baseline.mean(axis=2)[None]
    assert found.improvement.value == pytest.approx(np.mean((ours > theirs) + 0.5 * (ours == theirs)))
    above = dict(zip(accuracy.thresholds, found.profile, strict=True))
    assert above[0.5].value == pytest.approx((scores.mean(axis=2) > 0.5).mean())
    difference = accuracy.verdicts["aent"].difference
    assert difference.estimate.value == pytest.approx(scores.mean() - baseline.mean())
    assert accuracy.methods["grpo"].improvement is None
    assert found.mean.low < found.mean.value < found.mean.high


def test_answers_tokens_and_entropy(tmp_path):
    scores = np.zeros((20, 3))
    scores[:, 0] = 1
    scores[:5, 1] = 1
    runs = make_runs(tmp_path, (GRPO,), seeds=2, evaluate=False)
    runs = [set_scores(tmp_path, run.path.name, scores) for run in runs]
    file = tmp_path / "grpo_seed1" / "evaluation" / "scores.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row |= {"response_tokens": [1, 1, 8], "entropy": [1.0, 1.0, 0.0], "truncated": [True, False, False]}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs[0] = load_run(tmp_path / "grpo_seed1")
    runs[1] = runs[0].__class__(**{**vars(runs[0]), "seed": 2})
    found = judged(runs).methods["grpo"]
    assert found.response_tokens == pytest.approx(10 / 3)
    # Of all tokens, not of all responses.
    assert found.entropy == pytest.approx(0.2)
    assert found.truncated == pytest.approx(1 / 3)
    # In 5 problems two of three votes are right; in 15 three answers have one vote each, and one of them is right.
    assert found.majority.value == pytest.approx((5 * 1 + 15 / 3) / 20)
    assert found.calibration_error == pytest.approx(5 * (1 - 2 / 3) / 20)


def test_one_seed_has_numbers_but_no_interval_and_no_claim(tmp_path):
    runs = make_runs(tmp_path, (GRPO,), seeds=3) + make_runs(tmp_path, (AENT,), seeds=1)
    accuracy = judged(runs)
    found = accuracy.methods["aent"]
    assert accuracy.verdicts["aent"].state == "refused"
    for estimate in (found.mean, found.interquartile_mean, found.improvement, found.majority, *found.pass_at_k):
        assert math.isfinite(estimate.value)
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.high)
    assert found.checks is None
    several = judged(make_runs(tmp_path / "several", seeds=2))
    assert several.methods["aent"].checks is not None


def test_identical_methods_do_not_differ(tmp_path):
    runs = make_runs(tmp_path, (GRPO,), seeds=3)
    twins = [run.__class__(**{**vars(run), "method": "twin"}) for run in runs]
    verdict = judged(runs + twins).verdicts["twin"]
    assert verdict.state == "not resolved"
    assert verdict.difference.estimate.value == 0


def test_intervals_of_shares_stay_between_0_and_1(tmp_path):
    runs = make_runs(tmp_path, (Method("grpo", 0.99), Method("aent", 0.98)), seeds=2)
    for found in judged(runs).methods.values():
        estimates = (found.mean, found.interquartile_mean, found.majority, *found.pass_at_k, *found.by_source.values())
        assert all(0 <= each.low <= each.value <= each.high <= 1 for each in estimates)


def test_the_interquartile_mean_stays_there_too(tmp_path):
    make_runs(tmp_path, (GRPO,), seeds=2)
    right = np.ones((20, 10))
    less = right.copy()
    less[:, :3] = 0
    runs = [set_scores(tmp_path, "grpo_seed1", right), set_scores(tmp_path, "grpo_seed2", less)]
    found = judged(runs).methods["grpo"].interquartile_mean
    assert (found.low, found.high) == (0, 1)


def test_graded_scores_have_no_pass_at_k_and_their_own_thresholds(tmp_path):
    make_runs(tmp_path, seeds=2)
    runs = []
    for number, name in enumerate(("grpo_seed1", "grpo_seed2", "aent_seed1", "aent_seed2")):
        runs.append(set_scores(tmp_path, name, np.random.default_rng(number).normal(0, 1, (30, 4))))
    accuracy = judged(runs)
    assert all(found.pass_at_k is None for found in accuracy.methods.values())
    assert accuracy.notes == ("No pass@k where scores are other than 0 and 1: it asks whether a response is right.",)
    lowest = min(run.scores.scores.min() for run in runs)
    assert accuracy.thresholds[0] == pytest.approx(lowest)


def test_few_problems_have_no_interval_for_others_like_them(tmp_path):
    runs = make_runs(tmp_path, seeds=2, problems=19)
    accuracy = judged(runs)
    assert accuracy.verdicts["aent"].state == "refused"
    assert math.isnan(accuracy.methods["aent"].mean.low)
    assert accuracy.notes == ("19 problems are too few to stand for others like them: there are no intervals.",)
    accuracy = judged(runs, target="these problems")
    assert accuracy.verdicts["aent"].state != "refused"
    assert math.isfinite(accuracy.methods["aent"].mean.low)


def test_numbers_by_data_source(tmp_path):
    runs = make_runs(tmp_path, (GRPO,), seeds=2)
    for run in runs:
        file = run.path / "evaluation" / "scores.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["data_source"] = "odd" if int(row["problem"], 16) % 2 else "even"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [load_run(run.path) for run in runs]
    found = judged(runs).methods["grpo"].by_source
    odd = np.array([int(problem, 16) % 2 == 1 for problem in runs[0].scores.problems])
    assert found["odd"].value == pytest.approx(np.mean([run.scores.scores[odd] for run in runs]))
    # 22 odd and 18 even ones.
    assert (math.isnan(found["odd"].low), math.isnan(found["even"].low)) == (False, True)
    assert found["even"].value == pytest.approx(np.mean([run.scores.scores[~odd] for run in runs]))


def test_different_evaluations_are_compared_on_what_they_share(tmp_path):
    make_runs(tmp_path, seeds=2)
    runs = [load_run(path) for path in sorted(tmp_path.iterdir())]
    scores = draw_scores(AENT, 2, 50, 4)
    runs[1] = set_scores(tmp_path, "aent_seed2", scores)
    accuracy = judged(runs, allow=True)
    assert (accuracy.samples, accuracy.problems) == (4, 40)
    both = [draw_scores(AENT, 1, 40, 8)[:, :4], scores[:40]]
    assert accuracy.methods["aent"].mean.value == pytest.approx(np.mean(both))
    # Of each response its own answer.
    runs[0] = set_scores(tmp_path, "aent_seed1", both[0])
    assert judged(runs, allow=True).methods["aent"].majority == accuracy.methods["aent"].majority


def test_without_an_evaluation_the_last_validation_counts(tmp_path):
    runs = make_runs(tmp_path, seeds=3, evaluate=False)
    accuracy = judged(runs)
    assert (accuracy.metric, accuracy.problems, accuracy.methods) == ("final validation accuracy", None, {})
    finals = {m: [r.metrics[40]["val-core/digits/acc/mean@4"] for r in runs if r.method == m] for m in ("aent", "grpo")}
    welch = stats.ttest_ind(finals["aent"], finals["grpo"], equal_var=False)
    difference = accuracy.verdicts["aent"].difference
    assert difference.estimate.value == pytest.approx(np.mean(finals["aent"]) - np.mean(finals["grpo"]))
    assert difference.p_value == pytest.approx(welch.pvalue)


def test_then_the_verdicts_are_about_these_problems_only(tmp_path):
    runs = make_runs(tmp_path, seeds=3, evaluate=False)
    accuracy = judged(runs)
    assert accuracy.target == "these problems"
    assert accuracy.notes == (
        "The verdicts are about these problems, not about problems like these: that would take scores of single "
        "problems.",
    )
    assert judged(runs, target="these problems").notes == ()


def test_then_data_sources_count_the_same_and_that_is_said(tmp_path):
    runs = make_runs(tmp_path, seeds=3, evaluate=False)
    for run in runs:
        run.metrics[40]["val-core/openai/gsm8k/acc/mean@4"] = 0.5
    accuracy = judged(runs)
    assert accuracy.metric == "final validation accuracy, mean over 2 data sources"
    assert accuracy.metric in accuracy.verdicts["aent"].sentence


def test_a_seed_whose_last_validation_is_not_a_number_is_not_left_out(tmp_path):
    runs = make_runs(tmp_path, (GRPO, AENT, Method("entreg", 0.5)), seeds=3, evaluate=False)
    (broken,) = [run for run in runs if run.name == "aent seed 2"]
    broken.metrics[40]["val-core/digits/acc/mean@4"] = math.nan
    accuracy = judged(runs)
    assert list(accuracy.verdicts) == ["aent", "entreg"]
    refused, other = accuracy.verdicts.values()
    assert (refused.state, refused.difference, refused.comparisons) == ("refused", None, 1)
    assert refused.sentence == (
        "refused: the last validation of aent seed 2 is NaN or infinite, and no seed is left out for its result: find "
        "out why, and evaluate or train again"
    )
    assert (other.state != "refused", other.comparisons) == (True, 1)


def test_such_a_seed_of_the_baseline_refuses_all(tmp_path):
    runs = make_runs(tmp_path, seeds=2, evaluate=False)
    for run in runs[1:]:
        run.metrics[40]["val-core/digits/acc/mean@4"] = math.inf
    (refused,) = judged(runs).verdicts.values()
    assert "of aent seed 1, aent seed 2, grpo seed 2 is NaN" in refused.sentence


def test_an_evaluation_without_a_single_answer_counts_as_wrong(tmp_path):
    """One of a comparison whose reward tells answers elsewhere."""
    runs = make_runs(tmp_path, seeds=2)
    for name in ("aent_seed1", "aent_seed2"):
        file = tmp_path / name / "evaluation" / "scores.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        told = name == "aent_seed2"
        for row in rows:
            row |= {"scores": [float(told)] * 8, "answers": ["right" if told else None] * 8}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [load_run(run.path) for run in runs]
    assert judged(runs).methods["aent"].majority.value == 0.5
    assert judged(runs).methods["aent"].calibration_error == 0
    # A reward that tells no answers at all.
    for run in runs:
        file = run.path / "evaluation" / "scores.jsonl"
        rows = [json.loads(line) | {"answers": [None] * 8} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = judged([load_run(run.path) for run in runs]).methods["aent"]
    assert (found.majority, found.calibration_error) == (None, None)


def test_another_reward_that_tells_no_answer_has_no_majority(tmp_path):
    runs = make_runs(tmp_path, seeds=2)
    for name in ("aent_seed1", "aent_seed2"):
        folder = tmp_path / name / "evaluation"
        rows = [json.loads(line) | {"answers": [None] * 8} for line in (folder / "scores.jsonl").open()]
        (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        record = json.loads((folder / "evaluation.json").read_text()) | {"reward": "silent.py:score"}
        (folder / "evaluation.json").write_text(json.dumps(record))
    methods = judged([load_run(run.path) for run in runs], allow=True).methods
    assert (methods["grpo"].majority is None, methods["aent"].majority) == (False, None)


def test_responses_without_tokens_have_no_entropy_to_divide_by(tmp_path):
    runs = make_runs(tmp_path, (GRPO,), seeds=1)
    file = tmp_path / "grpo_seed1" / "evaluation" / "scores.jsonl"
    rows = [json.loads(line) | {"response_tokens": [0] * 8, "entropy": [0.0] * 8} for line in file.open()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = judged([load_run(run.path) for run in runs]).methods["grpo"]
    assert (found.response_tokens, found.entropy) == (0, 0)


def test_with_the_baselines_evaluation_missing_validations_are_compared(tmp_path):
    runs = make_runs(tmp_path, (GRPO,), seeds=2, evaluate=False) + make_runs(tmp_path, (AENT,), seeds=2)
    accuracy = judged(runs)
    assert accuracy.metric == "final validation accuracy"
    assert accuracy.notes[0].startswith("Scores of single problems exist for aent only")


def test_a_single_run_without_an_evaluation_is_named(tmp_path):
    runs = make_runs(tmp_path, seeds=2)
    runs.append(load_run(write_run(tmp_path / "third", AENT, 3, evaluate=False)))
    accuracy = judged(runs)
    assert accuracy.methods["aent"].seeds == 2
    assert accuracy.notes == ("No scores of single problems exist for aent seed 3: left out of the accuracy.",)


def test_scores_that_are_no_number_are_named(tmp_path):
    make_runs(tmp_path, seeds=2)
    scores = draw_scores(AENT, 1, 40, 8)
    scores[3, 2] = math.nan
    set_scores(tmp_path, "aent_seed1", scores)
    accuracy = judged([load_run(path) for path in sorted(tmp_path.iterdir())])
    assert accuracy.metric == "final validation accuracy"
    assert "scores['aent'] hold 1 values that are not finite" in accuracy.notes[0]


def test_neither_evaluation_nor_validation(tmp_path):
    runs = make_runs(tmp_path, seeds=1, evaluate=False)
    for run in runs:
        for data in run.metrics.values():
            data.pop("val-core/digits/acc/mean@4", None)
    assert judged(runs) is None


def test_a_validation_before_the_training_claims_nothing(tmp_path):
    runs = make_runs(tmp_path, seeds=3, evaluate=False)
    for run in runs:
        for step in (10, 20, 30, 40):
            del run.metrics[step]["val-core/digits/acc/mean@4"]
    assert judged(runs) is None
    (notice,) = group_runs(runs, "grpo").notices
    assert notice == (
        "grpo seed 1, grpo seed 2, grpo seed 3, aent seed 1, aent seed 2, aent seed 3: the last validation is at step "
        "0, not at the end of training, step 40."
    )


def test_with_uneven_responses_the_validations_are_compared(tmp_path):
    make_runs(tmp_path, seeds=2, evaluate=False)
    runs = []
    for folder in sorted(tmp_path.iterdir()):
        (folder / "validation").mkdir()
        rows = [{"input": q, "output": "o", "gts": "1", "score": 1.0} for q in ("a", "b", "b")]
        (folder / "validation" / "40.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(load_run(folder))
    assert judged(runs).metric == "final validation accuracy"
    (notice,) = group_runs(runs, "grpo").notices
    assert "do not count: problems have 1 to 2 responses" in notice
