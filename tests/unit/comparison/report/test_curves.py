import math

import numpy as np
import pytest
from scipy import stats

from aent_verl.comparison.report.curves import (
    POINTS,
    Bounds,
    bounds_of,
    curve_of,
    end_of,
    final_validation,
    final_validations,
    learning_curves,
)
from aent_verl.comparison.report.groups import group_runs
from aent_verl.runs.metrics import REWARD
from aent_verl.runs.run import Run
from tests.unit.comparison.report.synthetic import AENT, make_runs


def run(values, method="grpo", seed=1, key=REWARD, **more):
    """A run in memory whose metric has these values from step 1 on."""
    return Run(method, seed, path=None, metrics={s: {key: v} for s, v in enumerate(values, start=1)}, **more)


def reward(data):
    return data.get(REWARD)


def charts_of(runs, allow=True):
    return {chart.name: chart for chart in learning_curves(group_runs(runs, "grpo", allow))}


def test_mean_and_interval_over_seeds_by_hand():
    curve = curve_of([run([1, 2]), run([3, 2]), run([2, 5])], reward)
    assert curve.mean.tolist() == [2, 3]
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert curve.low[0] == pytest.approx(2 - half)
    assert curve.high[0] == pytest.approx(2 + half)


def test_many_steps_are_averaged_over_bins_of_each_seed():
    count = 3 * POINTS
    ramp = np.arange(1.0, count + 1)
    (chart,) = charts_of([run(ramp), run(ramp + 6, seed=2)]).values()
    (line,) = chart.lines
    assert len(line.x) == POINTS
    assert line.x[:2].tolist() == [2, 5]
    assert line.mean[:2].tolist() == [2 + 3, 5 + 3]
    assert chart.note == "Points: means over 3 steps."


def test_many_points_far_apart_are_averaged_over_the_steps_that_they_span():
    steps = range(5, 5 * (2 * POINTS + 1), 5)
    runs = [Run("grpo", seed, path=None, metrics={s: {REWARD: float(s)} for s in steps}) for seed in (1, 2)]
    (chart,) = charts_of(runs).values()
    (line,) = chart.lines
    assert chart.note == "Points: means over 10 steps."
    assert len(line.x) == POINTS
    # Each value is its step, so each point lies on the diagonal.
    assert line.x[:2].tolist() == [7.5, 17.5]
    assert line.mean.tolist() == line.x.tolist()


def test_one_point_too_many_makes_half_as_many():
    """Each of two values, and not of one in a span as wide as the distance of two."""
    (chart,) = charts_of([Run("grpo", 1, path=None, metrics={s: {REWARD: 0.5} for s in range(0, 2010, 10)})]).values()
    assert chart.lines[0].x[:3].tolist() == [0, 15, 35]
    assert chart.note == "Points: means over 20 steps."


def test_a_step_left_out_of_a_bin_is_said_and_the_bin_moves():
    ramp = np.arange(1.0, 2 * POINTS + 1)
    hole = ramp.copy()
    hole[0] = math.nan
    (chart,) = charts_of([run(ramp), run(hole, seed=2)]).values()
    (line,) = chart.lines
    assert (line.x[:2].tolist(), line.mean[:2].tolist()) == ([2, 3.5], [2, 3.5])
    assert f"1 of {2 * POINTS} steps is left out, 1:" in chart.note


def test_a_step_that_is_nan_in_a_seed_is_left_out_and_said():
    (chart,) = charts_of([run([1, math.nan, 3]), run([1, 2, 3], seed=2)]).values()
    assert chart.lines[0].x.tolist() == [1, 3]
    assert "grpo: 1 of 3 steps" in chart.note


def test_where_a_seed_ends_its_curve_ends():
    (chart,) = charts_of([run([1, 2, 3, 4]), run([1, 2], seed=2)]).values()
    assert chart.lines[0].x.tolist() == [1, 2]


def test_a_metric_that_is_nan_throughout_has_no_curve():
    assert curve_of([run([math.nan, math.nan])], reward) is None
    assert end_of([run([math.nan])], reward) is None


def test_one_seed_has_no_band_and_few_runs_have_thin_lines():
    one = run([1, 2, 3], method="aent")
    (chart,) = charts_of([run([1, 2, 3]), run([2, 3, 4], seed=2), one]).values()
    assert [line.low is None for line in chart.lines] == [False, True]
    assert [len(line.seeds) for line in chart.lines] == [2, 0]
    (chart,) = charts_of([run([1, 2], seed=seed) for seed in range(13)]).values()
    assert len(chart.lines[0].seeds) == 0


def test_values_at_the_end_are_means_over_the_last_tenth():
    found = end_of([run(range(20)), run(range(2, 22), seed=2)], reward)
    assert found.value == pytest.approx(19.5)
    half = stats.t.ppf(0.975, 1) * np.std([18.5, 20.5], ddof=1) / math.sqrt(2)
    assert found.high == pytest.approx(19.5 + half)
    assert math.isnan(end_of([run(range(20))], reward).low)


def test_the_end_is_that_of_training_and_not_of_what_all_seeds_share():
    nan = [0.5] * 50 + [math.nan] * 50
    assert end_of([run(np.ones(100)), run(nan, seed=2)], reward) is None
    late = [*range(95), *[math.nan] * 5]
    assert end_of([run(range(100)), run(late, seed=2)], reward).value == pytest.approx(np.mean(range(90, 95)))
    # A seed that never had the metric says nothing about the others' end.
    longer = run([1.0] * 200, seed=3, key="other")
    assert end_of([run(np.ones(100)), run(np.ones(100), seed=2), longer], reward).value == 1


def test_final_validations_are_those_after_the_last_step():
    key = "val-core/digits/acc/mean@4"
    early = run([0.5, 0.6], seed=3)
    early.metrics[1][key] = 0.2
    runs = [run([0.1, 0.4], key=key), run([0.1, math.nan], key=key, seed=2), early, run([0.3], key=key, seed=4)]
    found = final_validations(runs)
    assert found == {"grpo seed 1": 0.4, "grpo seed 2": pytest.approx(math.nan, nan_ok=True), "grpo seed 4": 0.3}
    assert final_validations([early]) == {}


def test_a_final_validation_that_is_not_a_number_has_no_mean_without_it():
    key = "val-core/digits/acc/mean@4"
    runs = [run([0.1, 0.4], key=key), run([0.3, 0.6], key=key, seed=2)]
    assert final_validation(runs).value == pytest.approx(0.5)
    runs[1].metrics[2][key] = math.nan
    assert final_validation(runs) is None
    assert final_validation([run([1.0])]) is None


def test_charts_of_whole_runs(tmp_path):
    runs = make_runs(tmp_path, seeds=2)
    charts = charts_of(runs)
    assert list(charts) == ["reward", "validation", "entropy", "controlled_entropy", "coefficient", "response_length"]
    assert [line.place for line in charts["controlled_entropy"].lines] == [1]
    (level,) = charts["controlled_entropy"].levels
    assert (level.place, level.low, level.high) == (1, *AENT.band)
    assert charts["entropy"].levels == []
    assert charts["validation"].lines[0].x.tolist() == [0, 10, 20, 30, 40]
    last = [r.metrics[40]["aent/entropy_full"] for r in runs if r.method == "aent"]
    assert charts["entropy"].lines[1].mean[-1] == pytest.approx(np.mean(last))


def test_a_band_of_the_full_entropy_is_drawn_over_it():
    settings = {
        "entropy_control.functional.name": "full",
        "entropy_control.bonus.controller.low": "0.1",
        "entropy_control.bonus.controller.high": "0.2",
    }
    charts = charts_of([run([1, 2], key=key, settings=settings) for key in ["aent/entropy_full"]])
    assert [(level.low, level.high) for level in charts["entropy"].levels] == [(0.1, 0.2)]
    assert "controlled_entropy" not in charts


def test_bounds_of_settings():
    controller = "entropy_control.bonus.controller"
    assert bounds_of({}) is None
    assert (
        bounds_of({f"{controller}.low": "None", f"{controller}.high": "None", f"{controller}.target": "None"}) is None
    )
    assert bounds_of({f"{controller}.low": "${x.y}", f"{controller}.high": "1"}) is None
    assert bounds_of({f"{controller}.target": "0.2"}) == Bounds(0.2, 0.2, "full")


def test_stock_runs_have_verls_own_entropy():
    charts = charts_of([run([0.5, 0.4], key="actor/entropy")])
    assert charts["entropy"].lines[0].mean.tolist() == [0.5, 0.4]


def test_weights_are_drawn_only_where_they_are_used(tmp_path):
    par = run([1.0, 0.5], key="aent/advantages_coefficient", method="par")
    plain = run([1.0, 1.0], key="aent/advantages_coefficient")
    chart = charts_of([plain, par])["advantages_weight"]
    assert [line.place for line in chart.lines] == [1]
