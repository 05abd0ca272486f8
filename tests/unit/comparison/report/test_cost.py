import math

import pytest

from aent_verl.comparison.report.cost import cost_charts, cost_notes, costs
from aent_verl.comparison.report.groups import group_runs
from aent_verl.runs.run import Run

KEY = "val-core/digits/acc/mean@4"


def run(method, accuracies, tokens=100.0, seconds=3.0, seed=1):
    """Validated at steps 0, 10, 20, ...; every step costs the same."""
    last = 10 * (len(accuracies) - 1)
    metrics = {step: {"critic/score/mean": 0.5} for step in range(1, last + 1)}
    for data in metrics.values():
        data |= {"perf/total_num_tokens": tokens} if tokens else {}
        data |= {"timing_s/step": seconds} if seconds else {}
    for number, accuracy in enumerate(accuracies):
        metrics.setdefault(10 * number, {})[KEY] = accuracy
    return Run(method, seed, path=None, metrics=dict(sorted(metrics.items())))


def costs_of(*runs):
    return costs(group_runs(runs, "grpo", allow_different=True))


def test_what_it_takes_to_reach_the_baselines_best_by_hand():
    best, found = costs_of(
        run("grpo", [0.1, 0.3, 0.5]),
        run("grpo", [0.1, 0.5, 0.7], seed=2),
        run("aent", [0.1, 0.6, 0.8], tokens=200.0, seconds=6.0),
        run("aent", [0.1, 0.6, 0.9], tokens=400.0, seconds=6.0, seed=2),
        run("slow", [0.1, 0.2, 0.3]),
    )
    assert best == pytest.approx(0.6)
    assert (found["grpo"]["steps"], found["grpo"]["tokens_to_reach"], found["grpo"]["seconds_to_reach"]) == (
        20,
        2000,
        60,
    )
    assert (found["aent"]["steps"], found["aent"]["tokens_to_reach"], found["aent"]["seconds_to_reach"]) == (
        10,
        3000,
        60,
    )
    assert (found["aent"]["tokens"], found["aent"]["seconds"]) == (6000, 120)
    assert found["slow"]["reached"] is False
    assert (found["slow"]["steps"], found["slow"]["tokens_to_reach"]) == (None, None)
    assert found["slow"]["best"] == pytest.approx(0.3)


def test_what_was_not_measured_is_none():
    best, found = costs_of(run("grpo", [0.1, 0.2], tokens=None), run("aent", [0.1, 0.2], seconds=None))
    assert best == pytest.approx(0.2)
    assert (found["grpo"]["tokens"], found["grpo"]["tokens_to_reach"], found["grpo"]["seconds_to_reach"]) == (
        None,
        None,
        30,
    )
    assert (found["aent"]["seconds"], found["aent"]["steps"]) == (None, 10)


def test_without_validations_nothing_is_reached():
    best, found = costs_of(run("grpo", [math.nan, math.nan]), run("aent", [0.1, 0.2]))
    assert best is None
    assert (found["aent"]["reached"], found["aent"]["steps"], found["grpo"]["best"]) == (None, None, None)


def late(start, **more):
    """A run whose log starts late: the earlier steps cost something, too."""
    found = run(**more)
    for step in range(1, start):
        del found.metrics[step]
    return found


def test_what_an_incomplete_log_leaves_out_is_not_known():
    """Rather than cheap."""
    groups = group_runs(
        [
            run("grpo", [0.1, 0.3, 0.5]),
            late(11, method="aent", accuracies=[0.1, 0.2, 0.6]),
            run("aent", [0.1, 0.2, 0.6], seed=2),
        ],
        "grpo",
        allow_different=True,
    )
    _, found = costs(groups)
    assert (found["aent"]["steps"], found["aent"]["reached"]) == (20, True)
    aent = found["aent"]
    assert (aent["seconds"], aent["tokens"], aent["seconds_to_reach"], aent["tokens_to_reach"]) == (
        None,
        None,
        None,
        None,
    )
    assert [[line.place for line in chart.lines] for chart in cost_charts(groups)] == [[0], [0]]
    assert cost_notes(groups) == (
        "aent seed 1: no tokens are recorded at 10 of 20 steps, first at step 1, so what its method costs from there "
        "on is not known.",
        "aent seed 1: no step time is recorded at 10 of 20 steps, first at step 1, so what its method costs from there "
        "on is not known.",
    )


def test_a_step_time_that_is_not_a_number_ends_what_is_known():
    broken = run("grpo", [0.1, 0.5, 0.4])
    broken.metrics[15]["timing_s/step"] = math.nan
    groups = group_runs([broken], "grpo")
    _, found = costs(groups)
    assert (found["grpo"]["seconds"], found["grpo"]["seconds_to_reach"], found["grpo"]["tokens"]) == (None, 30, 2000)
    tokens, time = cost_charts(groups)
    assert (len(tokens.lines[0].x), time.lines[0].x.tolist(), time.lines[0].mean.tolist()) == (3, [0, 30], [0.1, 0.5])
    (note,) = cost_notes(groups)
    assert note.startswith("grpo seed 1: no step time is recorded at 1 of 20 steps, first at step 15,")


def test_a_run_that_ended_early_cost_what_it_cost():
    _, found = costs_of(run("grpo", [0.1, 0.3, 0.5]), run("grpo", [0.1, 0.3], seed=2))
    assert found["grpo"]["seconds"] == (60 + 30) / 2


def test_cost_is_that_of_the_runs_whose_accuracy_is_shown():
    never = run("grpo", [math.nan] * 3, seconds=9.0, tokens=500.0, seed=2)
    groups = group_runs([run("grpo", [0.1, 0.3, 0.5]), never], "grpo", allow_different=True)
    _, found = costs(groups)
    assert (found["grpo"]["seconds_to_reach"], found["grpo"]["tokens_to_reach"]) == (60, 2000)
    assert found["grpo"]["seconds"] == (60 + 180) / 2
    tokens, time = cost_charts(groups)
    assert (tokens.lines[0].x.tolist(), time.lines[0].x.tolist()) == ([0, 1, 2], [0, 0.5, 1])


def test_charts_have_what_was_spent_at_each_validation():
    groups = group_runs([run("grpo", [0.1, 0.2]), run("aent", [0.1, 0.3], tokens=200.0)], "grpo", allow_different=True)
    tokens, time = cost_charts(groups)
    assert tokens.x_label == "tokens, thousands"
    assert [line.x.tolist() for line in tokens.lines] == [[0, 1], [0, 2]]
    assert time.x_label == "training time, seconds"
    assert [line.x.tolist() for line in time.lines] == [[0, 30], [0, 30]]
