import math

import pytest

from aent_verl.reporting.cost import cost_charts, costs
from aent_verl.reporting.groups import group_runs
from aent_verl.results.run import Run

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
    return costs(group_runs(runs, "grpo", allow_different=True), 0.95)


def test_what_it_takes_to_reach_the_baselines_best_by_hand():
    best, found = costs_of(
        run("grpo", [0.1, 0.3, 0.5]),
        run("grpo", [0.1, 0.5, 0.7], seed=2),
        run("aent", [0.1, 0.6, 0.8], tokens=200.0, seconds=6.0),
        run("aent", [0.1, 0.6, 0.9], tokens=400.0, seconds=6.0, seed=2),
        run("slow", [0.1, 0.2, 0.3]),
    )
    assert best == pytest.approx(0.6)
    assert (found["grpo"].steps, found["grpo"].tokens_to_reach, found["grpo"].seconds_to_reach) == (20, 2000, 60)
    assert (found["aent"].steps, found["aent"].tokens_to_reach, found["aent"].seconds_to_reach) == (10, 3000, 60)
    assert (found["aent"].tokens, found["aent"].seconds) == (6000, 120)
    assert found["slow"].reached is False
    assert (found["slow"].steps, found["slow"].tokens_to_reach) == (None, None)
    assert found["slow"].best == pytest.approx(0.3)


def test_what_was_not_measured_is_none():
    best, found = costs_of(run("grpo", [0.1, 0.2], tokens=None), run("aent", [0.1, 0.2], seconds=None))
    assert best == pytest.approx(0.2)
    assert (found["grpo"].tokens, found["grpo"].tokens_to_reach, found["grpo"].seconds_to_reach) == (None, None, 30)
    assert (found["aent"].seconds, found["aent"].steps) == (None, 10)


def test_without_validations_nothing_is_reached():
    best, found = costs_of(run("grpo", [math.nan, math.nan]), run("aent", [0.1, 0.2]))
    assert best is None
    assert (found["aent"].reached, found["aent"].steps, found["grpo"].best) == (None, None, None)


def test_charts_have_what_was_spent_at_each_validation():
    groups = group_runs([run("grpo", [0.1, 0.2]), run("aent", [0.1, 0.3], tokens=200.0)], "grpo", allow_different=True)
    tokens, time = cost_charts(groups, 0.95)
    assert tokens.x_label == "tokens, thousands"
    assert [line.x.tolist() for line in tokens.lines] == [[0, 1], [0, 2]]
    assert time.x_label == "training time, seconds"
    assert [line.x.tolist() for line in time.lines] == [[0, 30], [0, 30]]
