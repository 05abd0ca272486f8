import importlib.util

import pytest

from aent_verl.data.prepare import checks
from aent_verl.data.prepare.checks import refusals, unscorable
from aent_verl.data.prepare.rows import Item, normalise
from aent_verl.data.tasks import math_reward

# math-verify accepts it as itself at once, and computes it for any other answer.
ENDLESS = "2^{3000000000} + 1"
NOTHING = "the reward can make nothing of it"
REFUSED = "the reward does not accept it"


def items(*pairs):
    return [Item(index, problem, answer, normalise(problem)) for index, (problem, answer) in enumerate(pairs)]


def check(found, split="train", held_out=None, keep_unscorable=False):
    kept, findings = checks.check(found, split=split, held_out=held_out or {}, keep_unscorable=keep_unscorable)
    return [item.index for item in kept], {one.what: (one.count, one.left_out) for one in findings}, findings


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find  $x$.", "find $x$."),
        ("Find $x + 1$.\n", "Find $x+1$."),
        (r"$\left( a,\, b \right)$", "$(a, b)$"),
        (r"$\dfrac{1}{2}\ \text{m}$", r"$\frac{1}{2} \text{m}$"),
        (r"$a \quad b$", "$a~b$"),
    ],
)
def test_spacing_and_case_do_not_make_another_problem(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("Add 1 2.", "Add 12."), ("$x-1$", "$x+1$"), (r"$\leftarrow a$", "$a$"), (r"\lefty", "y")]
)
def test_other_problems_stay_apart(one, other):
    assert normalise(one) != normalise(other)


def test_rows_without_problem_or_answer_are_left_out_and_counted():
    found = items(("", "1"), ("A?", ""), ("B?", "proof"), ("C?", "NotFound"), ("D?", "4"))
    kept, counts, findings = check(found)
    assert kept == [4]
    assert counts == {"no problem text": (1, True), "no answer": (3, True)}
    assert findings[1].examples == ["row 1: A?", "row 2: B?", "row 3: C?"]


def test_a_training_split_keeps_the_first_of_the_same_problems():
    kept, counts, _ = check(items(("Find $x$.", "1"), ("Find $x$.", "1"), ("find  $x$.", "1"), ("Find $y$.", "1")))
    assert kept == [0, 3]
    assert counts == {
        "the same problem again": (1, True),
        "the same problem again but for spacing or case": (1, True),
    }


def test_a_test_split_stays_as_published_but_repeats_and_conflicts_are_named():
    kept, counts, _ = check(items(("Find $x$.", "1"), ("Find $x$.", "1"), ("find $x$.", "2")), split="test")
    assert kept == [0, 1, 2]
    assert counts == {
        "the same problem with different answers": (3, False),
        "the same problem again": (1, False),
        "the same problem again but for spacing or case": (1, False),
    }


def test_all_copies_of_a_problem_with_different_answers_are_left_out():
    kept, counts, findings = check(items(("Find $x$.", "1"), ("Find $y$.", "3"), ("Find  $x$.", "2")))
    assert kept == [1]
    assert counts == {"the same problem with different answers": (2, True)}
    assert findings[0].examples == ["row 0: Find $x$. -> 1", "row 2: Find $x$. -> 2"]


def test_answers_that_the_reward_holds_equal_are_no_conflict():
    kept, counts, _ = check(items(("Find $x$.", "\\frac12"), ("Find $x$.", "0.5"), ("Find $x$.", "\\dfrac{1}{2}")))
    assert kept == [0]
    assert counts == {"the same problem again": (2, True)}


def test_what_is_held_out_is_not_trained_on_and_each_place_is_named():
    held_out = {normalise("Find $x$."): "math500-test", normalise("Find $y$."): "other.parquet"}
    found = items(("find  $x$ .", "1"), ("Find $y$.", "1"), ("Find $z$.", "1"))
    kept, counts, findings = check(found, held_out=held_out)
    assert kept == [2]
    assert counts == {
        "held out: it is in math500-test": (1, True),
        "held out: it is in other.parquet": (1, True),
    }
    assert findings[0].examples == ["row 0: find $x$ ."]
    assert check(found, split="test", held_out=held_out)[:2] == ([0, 1, 2], {})


def test_answers_that_the_reward_cannot_score_are_left_out_unless_asked_for():
    found = items(("A?", "}{"), ("B?", "1"))
    what = "the reward cannot score the ground truth"
    assert check(found)[:2] == ([1], {what: (1, True)})
    assert check(found, split="test")[:2] == ([1], {what: (1, True)})
    assert check(found, keep_unscorable=True)[:2] == ([0, 1], {what: (1, False)})
    assert check(found)[2][0].examples == ["'}{' (the reward can make nothing of it): row 0: A?"]


def test_a_sample_is_drawn_by_seed_keeps_the_order_and_counts_the_rest():
    found = items(*((f"{number}?", "1") for number in range(100)))
    first, (rest,) = checks.sample(found, 10, seed=0)
    assert [item.index for item in first] == sorted(item.index for item in first)
    assert (len(first), rest.count, rest.what) == (10, 90, "not drawn (--limit 10 --seed 0)")
    assert first == checks.sample(found, 10, seed=0)[0]
    assert first != checks.sample(found, 10, seed=1)[0]
    assert checks.sample(found, None, seed=0) == (found, [])
    with pytest.raises(ValueError, match=r"--limit 101: only 100 problems are left"):
        checks.sample(found, 101, seed=0)


def test_answers_are_scored_by_the_math_reward():
    pairs = [("1/2", "0.5"), ("1", "2"), ("\\frac{1}{2}", "\\frac12"), ("1", "2"), ("", "")]
    assert refusals(pairs) == {("1", "2"): REFUSED, ("", ""): NOTHING}
    assert refusals([]) == {}


@pytest.mark.slow
def test_a_truth_must_be_its_own_answer_and_refuse_a_wrong_one_in_time(monkeypatch):
    monkeypatch.setattr(math_reward, "SECONDS", 1)
    # The endless one is given up, and the next one is scored as any other.
    truths = ["5", "}{", ENDLESS, "7", "-98765.4321"]
    assert unscorable(truths) == {"}{": NOTHING, ENDLESS: "the reward takes more than 1 s"}


def test_a_truth_that_accepts_a_wrong_answer_is_unscorable(monkeypatch):
    monkeypatch.setattr(checks, "refusals", lambda jobs: {})
    assert unscorable(["5"]) == {"5": "the reward accepts -98765.4321 for it"}


def test_many_answers_are_spread_over_processes_and_come_back_in_order(monkeypatch):
    used = set()
    verify = math_reward.Verifier.verify
    monkeypatch.setattr(checks, "_PAIRS_PER_PROCESS", 4)
    monkeypatch.setattr(checks.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(math_reward.Verifier, "verify", lambda self, *pair: used.add(self) or verify(self, *pair))
    jobs = [(str(number), str(number + number % 2)) for number in range(9)]
    assert list(refusals(jobs)) == [(str(number), str(number + 1)) for number in (1, 3, 5, 7)]
    assert len(used) == 2


def test_without_math_verify_it_says_what_to_install(monkeypatch):
    checks._verifier.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"this reward needs math-verify, sympy: pip install .*\[math\]"):
        refusals([("1", "1")])
