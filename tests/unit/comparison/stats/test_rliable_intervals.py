"""rliable's intervals: its own numbers, reproducible; its absence has a remedy."""

import sys

import numpy as np
import pytest

from aent_verl.comparison.stats import aggregates
from aent_verl.comparison.stats.rliable_intervals import rliable_aggregates, rliable_probability_of_improvement
from tests.unit.comparison.stats.simulation import problems_as_runs_bootstrap

THRESHOLDS = np.linspace(0, 1, 5)


@pytest.fixture
def scores():
    pytest.importorskip("rliable")
    rng = np.random.default_rng(0)
    return {"aent": rng.integers(9, size=(5, 30)) / 8, "grpo": rng.integers(9, size=(4, 30)) / 8}


def test_are_those_of_rliable_with_its_own_functions(scores):
    from rliable import library, metrics

    found = rliable_aggregates(scores, THRESHOLDS, reps=50, seed=3)["aent"]
    for name, function in {
        "mean": lambda matrix: np.array([metrics.aggregate_mean(matrix)]),
        "interquartile mean": lambda matrix: np.array([metrics.aggregate_iqm(matrix)]),
        "performance profile": lambda matrix: library.score_distributions(matrix, THRESHOLDS),
    }.items():
        np.random.seed(3)  # noqa: NPY002
        values, intervals = library.get_interval_estimates({"aent": scores["aent"]}, function, reps=50)
        np.testing.assert_allclose(found[name].value, np.squeeze(values["aent"]))
        np.testing.assert_allclose([found[name].low, found[name].high], np.squeeze(intervals["aent"]))


def test_probability_of_improvement_is_that_of_rliable(scores):
    from rliable import library, metrics

    found = rliable_probability_of_improvement(scores["aent"], scores["grpo"], reps=20, seed=3)
    np.random.seed(3)  # noqa: NPY002
    values, intervals = library.get_interval_estimates(
        {"pair": list(scores.values())}, lambda *pair: np.array([metrics.probability_of_improvement(*pair)]), reps=20
    )
    assert found.value == pytest.approx(values["pair"][0])
    assert [found.low, found.high] == pytest.approx(intervals["pair"].ravel().tolist())


def test_a_seed_repeats_them_and_leaves_numpys_generator_alone(scores):
    np.random.seed(11)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(11)  # noqa: NPY002
    found = [rliable_aggregates(scores, THRESHOLDS, reps=20, seed=seed)["aent"]["mean"] for seed in (1, 1, 2)]
    assert np.random.random() == expected  # noqa: NPY002
    assert found[0] == found[1]
    assert found[0].low != found[2].low


def test_without_rliable_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rliable", None)
    with pytest.raises(ImportError, match=r"needs rliable: pip install .*\[compare\]"):
        rliable_aggregates({"aent": np.ones((3, 4))}, THRESHOLDS)


def test_a_bad_seed_is_invisible_to_rliable(scores):
    """Its interval is that of the naive bootstrap, and far too narrow where a seed shifts all of its problems."""
    rng = np.random.default_rng(0)
    shifted = 0.5 + 0.1 * rng.standard_normal((5, 1)) + 0.05 * rng.standard_normal((5, 60))
    theirs = rliable_aggregates({"aent": shifted}, THRESHOLDS, reps=2000)["aent"]["mean"]
    ours = aggregates.mean(shifted, target="these problems")
    assert (theirs.high - theirs.low) < 0.15 * (ours.high - ours.low)
    low, high = problems_as_runs_bootstrap(shifted, np.zeros((5, 60)), reps=2000)
    assert [theirs.low, theirs.high] == pytest.approx([low, high], abs=0.1 * (high - low))
