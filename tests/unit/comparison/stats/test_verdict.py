"""The verdict in words, and when there is none."""

import numpy as np
import pytest

from aent_verl.comparison.stats.power import plan
from aent_verl.comparison.stats.verdict import verdicts


def runs(shift=0.0, *, seeds=5, problems=200, seed_sd=0.01, seed=0):
    """Scores with effects of seeds; problems alike for all."""
    rng = np.random.default_rng(seed)
    hardness = np.random.default_rng(99).random((1, problems)) / 2 + 0.25
    noise = 0.05 * rng.standard_normal((seeds, problems))
    offsets = seed_sd * rng.standard_normal((seeds, 1))
    return hardness + shift + (offsets - offsets.mean()) + (noise - noise.mean())


def only(scores, **settings):
    (found,) = verdicts(scores, "grpo", **settings).values()
    return found


def test_better():
    found = only({"grpo": runs(seed=1), "aent": runs(0.05, seed=2)}, metric="mean@8")
    assert found.state == "better"
    assert found.sentence == (
        "resolved: aent is better than grpo by .050 [.030, .070] in mean@8 on problems like these "
        "(95%, 5 seeds each, 200 problems, p < .001)"
    )
    assert found.more is None


def test_worse_turns_the_interval_round():
    found = only({"grpo": runs(seed=1), "aent": runs(-0.05, seed=2, seeds=4)}, target="these problems", confidence=0.9)
    assert found.state == "worse"
    low, high = -found.difference.estimate.high, -found.difference.estimate.low
    assert 0 < low < 0.05 < high
    assert f"aent is worse than grpo by .050 [.{low * 1000:03.0f}, .{high * 1000:03.0f}] in score on" in found.sentence
    assert "these problems (90%, 4 and 5 seeds, 200 problems, p" in found.sentence


def test_not_resolved_says_how_many_more_seeds():
    found = only({"grpo": runs(seed=1, seed_sd=0.03), "aent": runs(0.02, seed=2, seed_sd=0.03)})
    assert found.state == "not resolved"
    assert found.sentence.startswith("not resolved: the difference of aent to grpo is +.020 [-.")
    more = found.more.more_seeds
    assert 5 < more < 60
    assert found.sentence.endswith(
        f"; if it is really that large, about {more} more seeds a method would resolve it (80% power)"
    )


def test_of_many_comparisons_a_weak_one_is_not_resolved():
    scores = {"grpo": runs(seed=1), "aent": runs(0.025, seed=2)}
    alone = only(scores)
    assert alone.state == "better"
    together = verdicts(scores | {f"other{i}": runs(seed=3 + i) for i in range(3)}, "grpo")
    found = together["aent"]
    assert found.p_adjusted == pytest.approx(4 * alone.p_adjusted)
    assert found.difference == alone.difference
    assert found.state == "not resolved"
    assert "after Holm for 4 comparisons" in found.sentence
    assert (
        f"alone it would be (p = .{alone.p_adjusted * 1000:03.0f}), as one of 4 comparisons it is not" in found.sentence
    )
    assert found.more == plan(found.difference, alpha=0.05 / 4) != plan(found.difference, alpha=0.05)
    assert {each.comparisons for each in together.values()} == {4}


def test_one_seed_claims_nothing_and_is_not_a_comparison():
    scores = {"grpo": runs(seed=1), "aent": runs(0.05, seed=2), "single": runs(0.5, seeds=1)}
    found = verdicts(scores, "grpo")
    assert found["single"].state == "refused"
    assert found["single"].sentence.startswith(
        "refused: one seed of single: nothing can be claimed about single against grpo"
    )
    assert found["single"].difference is None
    assert found["aent"].state == "better"
    assert found["aent"].comparisons == 1


def test_one_seed_of_the_baseline_refuses_all():
    scores = {"grpo": runs(seeds=1), "aent": runs(0.05), "other": runs(seeds=1)}
    found = verdicts(scores, "grpo")
    assert "one seed of grpo:" in found["aent"].sentence
    assert "one seed of other and of grpo:" in found["other"].sentence
    assert {each.state for each in found.values()} == {"refused"}


def test_few_problems_speak_of_themselves_only():
    scores = {"grpo": runs(seed=1, problems=10), "aent": runs(0.2, seed=2, problems=10)}
    assert only(scores).sentence.startswith(
        "refused: 10 problems are too few to speak of problems like these (at least"
    )
    assert only(scores, target="these problems").state == "better"


def test_the_same_scores_everywhere_are_no_difference():
    found = only({"grpo": np.ones((3, 30)), "aent": np.ones((5, 30))}, metric="pass@8")
    assert found.state == "not resolved"
    assert found.sentence == (
        "not resolved: aent and grpo have the same mean score in every run in pass@8 on problems like these"
    )
    assert found.notes == ()


@pytest.mark.parametrize("target", ["these problems", "problems like these"])
def test_constant_but_different_scores_are_refused(target):
    found = only({"grpo": np.zeros((3, 30)), "aent": np.ones((3, 30))}, target=target)
    assert found.sentence.startswith(
        "refused: all seeds of aent have the same mean score, and so have all of grpo (1.000 and .000): nothing varies"
    )


def copies(shift=0.0, **settings):
    """One run, counted three times."""
    return np.tile(runs(shift, seeds=1, **settings), (3, 1))


@pytest.mark.parametrize("target", ["these problems", "problems like these"])
def test_copies_of_one_run_each_are_refused(target):
    """However the problems differ: that says nothing about another seed."""
    found = only({"grpo": copies(seed=1), "aent": copies(0.05, seed=2)}, target=target)
    assert (found.state, found.difference) == ("refused", None)
    assert "nothing varies between seeds" in found.sentence


def test_copies_with_one_mean_have_no_interval_either():
    scores = copies(seed=1)
    found = only({"grpo": scores, "aent": scores[:, ::-1]})
    assert found.sentence.startswith("not resolved: aent and grpo have the same mean score in every run in score")


@pytest.mark.parametrize("target", ["these problems", "problems like these"])
def test_seeds_that_solve_as_many_problems_by_chance_are_no_certainty(target):
    """And do not count as a comparison."""
    rows = {
        name: np.array([np.roll(np.arange(30) < solved, shift) for shift in range(3)]).astype(float)
        for name, solved in (("grpo", 12), ("aent", 15))
    }
    found = verdicts(rows | {"other": 30 * runs(seeds=3, problems=30)}, "grpo", target=target)
    assert found["aent"].state == "refused"
    assert found["aent"].difference is None
    assert found["other"].comparisons == 1


def test_one_saturated_method_still_compares_with_a_varying_one():
    found = only({"grpo": runs(seed=1), "aent": np.ones((5, 200))})
    assert found.state == "better"
    assert found.notes == ()


def test_one_number_a_seed_has_no_problems_to_count():
    lengths = {"grpo": np.array([[20.0], [21.0], [22.0]]), "aent": np.array([[30.0], [31.0], [32.0]])}
    found = verdicts(lengths, "grpo", metric="length", target="these problems")["aent"]
    assert found.sentence.startswith("resolved: aent is better than grpo by 10 [")
    assert "in length (95%, 3 seeds each, p" in found.sentence


def test_one_number_a_seed_may_be_the_same_in_two_seeds():
    """One of few possible numbers: no sign of a run that was counted twice."""
    accuracies = {"grpo": np.array([[0.4], [0.4], [0.5]]), "aent": np.array([[0.6], [0.7], [0.7]])}
    assert only(accuracies, target="these problems").notes == ()


def test_a_difference_of_exactly_0_names_no_number_of_seeds():
    scores = runs(seed=1)
    found = only({"grpo": scores, "aent": scores[:, ::-1]})
    assert found.state == "not resolved"
    assert found.more is None
    assert "is +.000 [-." in found.sentence
    assert found.sentence.endswith("a difference of 0 gives no number of seeds that would resolve it")


def test_more_than_a_hundred_seeds_are_not_counted():
    found = only({"grpo": runs(seed=1, seed_sd=0.05), "aent": runs(0.001, seed=2, seed_sd=0.05)})
    assert found.sentence.endswith("even if it is really that large, more than 100 more seeds a method would be needed")


def test_where_seeds_cannot_help_more_problems_are_asked_for():
    some = np.random.default_rng(5).standard_normal(40) * 0.2
    shift = 0.02 + some - some.mean()
    scores = {"grpo": runs(seed=1, problems=40), "aent": runs(seed=2, problems=40) + shift}
    found = only(scores)
    assert found.more.problems > 300
    assert found.sentence.endswith(
        f"the problems differ too much: at least {found.more.problems:,} problems like these are needed, 40 were used "
        "(80% power)"
    )
    assert only(scores, target="these problems").more is None or only(scores, target="these problems").more.more_seeds


def test_where_neither_seeds_nor_problems_help_it_is_not_called_a_matter_of_many_seeds():
    some = np.random.default_rng(5).standard_normal(40) * 0.2
    shift = 1e-5 + some - some.mean()
    found = only({"grpo": runs(seed=1, problems=40), "aent": runs(seed=2, problems=40) + shift})
    assert found.sentence.endswith(
        "; no number of seeds would resolve a difference of that size, nor would 1,000,000 problems like these"
    )


def test_a_run_that_was_counted_twice_is_noted():
    scores = runs(seed=1)
    scores[3] = scores[1]
    found = only({"grpo": scores, "aent": runs(0.05, seed=2)})
    assert found.notes[0].startswith("grpo: only 4 of 5 seeds differ in any score.")


def test_samples_are_averaged_first():
    scores = {name: np.random.default_rng(len(name)).random((5, 30, 4)) for name in ("grpo", "method")}
    assert only(scores) == only({name: values.mean(axis=2) for name, values in scores.items()})


def test_large_scores_are_written_in_full():
    found = only({"grpo": 1000 * runs(seed=1), "aent": 1000 * runs(0.05, seed=2)})
    assert "is better than grpo by 50 [" in found.sentence


def test_missing_scores_are_an_error_and_not_a_verdict():
    scores = runs()
    scores[2, 7] = np.nan
    with pytest.raises(ValueError, match=r"'aent'\] hold 1 values .* seed 2, problem 7"):
        verdicts({"grpo": runs(), "aent": scores}, "grpo")


def test_other_problems_are_an_error_and_not_a_verdict():
    with pytest.raises(ValueError, match="grpo: 200, aent: 100"):
        verdicts({"grpo": runs(), "aent": runs(problems=100)}, "grpo")


@pytest.mark.parametrize("names", [["aent", "other"], ["grpo"], []])
def test_without_a_baseline_and_another_method_there_is_nothing_to_compare(names):
    with pytest.raises(ValueError, match=r"baseline='grpo': must be one of \["):
        verdicts({name: runs() for name in names}, "grpo")


def test_another_target_or_confidence_is_refused():
    scores = {"grpo": runs(), "aent": runs(seed=1)}
    with pytest.raises(ValueError, match="target='all'"):
        verdicts(scores, "grpo", target="all")
    with pytest.raises(ValueError, match="confidence=1"):
        verdicts(scores, "grpo", confidence=1)
