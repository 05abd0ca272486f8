"""Learning curves over seeds."""

import time

import numpy as np
import pytest
from scipy import stats

from aent_verl.comparison.stats.curves import best, binned, first_reaching, mean_curve, mean_over_last


def runs(seeds=5, steps=20, seed=0):
    rng = np.random.default_rng(seed)
    return [dict(enumerate(rng.random(steps).tolist(), start=1)) for _ in range(seeds)]


def test_mean_and_t_interval_at_each_step():
    given = runs()
    curve = mean_curve(given, confidence=0.9)
    values = np.array([list(run.values()) for run in given])
    np.testing.assert_array_equal(curve.steps, range(1, 21))
    np.testing.assert_array_equal(curve.values, values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose(curve.mean, values.mean(axis=0))
    np.testing.assert_allclose(curve.low, expected.low)
    np.testing.assert_allclose(curve.high, expected.high)
    assert curve.dropped == ()
    assert curve.note is None


def test_steps_that_a_seed_lacks_are_dropped_and_named():
    given = runs(3, 10)
    del given[0][10]
    given[1][4] = float("nan")
    curve = mean_curve(given)
    assert curve.steps.tolist() == [1, 2, 3, 5, 6, 7, 8, 9]
    assert curve.dropped == (4, 10)
    assert curve.note == "2 of 10 steps are left out, from 4 to 10: not all 3 seeds have a value there"


def test_steps_come_in_order():
    curve = mean_curve([{3: 0.3, 1: 0.1, 2: 0.2}])
    assert curve.steps.tolist() == [1, 2, 3]
    assert curve.mean.tolist() == [0.1, 0.2, 0.3]


@pytest.mark.filterwarnings("error")
def test_one_seed_has_a_curve_and_no_interval():
    curve = mean_curve(runs(1))
    assert np.isfinite(curve.mean).all()
    assert np.isnan(curve.low).all()
    assert np.isnan(curve.high).all()


def test_nothing_in_common_is_an_error():
    with pytest.raises(ValueError, match=r"the 2 runs share no step with a value \(they have 1, 2 steps\)"):
        mean_curve([{1: 0.0}, {2: 0.0, 3: 0.0}])
    with pytest.raises(ValueError, match="no run"):
        mean_curve([])


def test_mean_over_the_last_steps():
    curve = mean_curve([{step: float(step) for step in range(1, 11)}] * 2)
    np.testing.assert_allclose(mean_over_last(curve, 0.3, 10), [9, 9])
    np.testing.assert_allclose(mean_over_last(curve, 1.0, 10), [5.5, 5.5])
    np.testing.assert_allclose(mean_over_last(curve, 0.001, 10), [10, 10])
    for fraction in (0, 1.1):
        with pytest.raises(ValueError, match=f"fraction={fraction}"):
            mean_over_last(curve, fraction, 10)


def test_the_last_steps_are_those_of_training_and_not_those_of_the_curve():
    """A seed that turned NaN halfway has no end, and one that did so later has part of it."""
    curve = mean_curve([{step: float(step) for step in range(1, 51)}] * 2)
    assert mean_over_last(curve, 0.1, 100) is None
    np.testing.assert_allclose(mean_over_last(curve, 0.1, 52), [49, 49])
    sparse = mean_curve([{0: 1.0, 20: 2.0, 40: 3.0}])
    np.testing.assert_allclose(mean_over_last(sparse, 0.1, 40), [3])


def test_bins_are_spans_of_steps_at_the_mean_of_those_in_them():
    curve = mean_curve(
        [{step: float(step) for step in (0, 1, 3, 4, 9)}, {step: 2.0 * step for step in (0, 1, 3, 4, 9)}]
    )
    found = binned(curve, 4, confidence=0.9)
    assert found.steps.tolist() == [0, pytest.approx(8 / 3), 9]
    np.testing.assert_allclose(found.values, [[0, 8 / 3, 9], [0, 16 / 3, 18]])
    np.testing.assert_allclose(found.mean, [0, 4, 13.5])
    expected = stats.ttest_1samp(found.values, 0).confidence_interval(0.9)
    np.testing.assert_allclose((found.low[1:], found.high[1:]), (expected.low[1:], expected.high[1:]))


def test_first_step_that_reaches_a_level():
    curve = mean_curve([{10: 0.1, 20: 0.6, 30: 0.2, 40: 0.4, 50: 0.7}])
    assert best(curve) == pytest.approx(0.7)

    assert first_reaching(curve, 0.5) == 20

    assert first_reaching(curve, best(curve)) == 50
    assert first_reaching(curve, 0.8) is None
    assert first_reaching(curve, 0.5, at=np.cumsum([7.0, 8.0, 9.0, 9.0, 9.0])) == 15
    assert isinstance(first_reaching(curve, 0.5), int)


def test_reaching_counts_the_mean_of_the_seeds_and_not_the_first_of_them():
    curve = mean_curve([{1: 1.0, 2: 1.0}, {1: 0.0, 2: 0.8}])
    assert first_reaching(curve, 0.9) == 2


def test_another_axis_needs_a_value_for_each_step():
    with pytest.raises(ValueError, match="at has 3 values for 20 steps"):
        first_reaching(mean_curve(runs()), 0.5, at=np.arange(3))


def test_five_methods_of_five_seeds_and_a_thousand_steps_take_well_under_a_second():
    given = [runs(steps=1000, seed=seed) for seed in range(5)]
    # Processor time: the machine may be busy with other things.
    start = time.process_time()
    for method in given:
        curve = mean_curve(method)
        best(curve), first_reaching(curve, 2.0)
    assert time.process_time() - start < 0.5
