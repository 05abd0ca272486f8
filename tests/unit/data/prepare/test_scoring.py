import importlib.util

import pytest

from aent_verl.data.prepare import checks
from aent_verl.data.prepare.checks import refusals, unscorable
from aent_verl.data.tasks import math_reward

# math-verify accepts it as itself at once, and computes it for any other answer.
ENDLESS = "2^{3000000000} + 1"
NOTHING = "the reward can make nothing of it"
REFUSED = "the reward does not accept it"


@pytest.fixture
def two_seconds(monkeypatch):
    monkeypatch.setattr(math_reward, "SECONDS", 2)
    return "the reward takes more than 2 s"


def test_answers_are_scored_by_the_math_reward():
    jobs = [("1/2", "0.5"), ("1", "2"), ("\\frac{1}{2}", "\\frac12"), ("1", "2"), ("", "")]
    assert refusals(jobs) == {("1", "2"): REFUSED, ("", ""): NOTHING}
    assert refusals([]) == {}


def test_an_endless_answer_is_given_up_and_the_next_ones_are_scored(two_seconds):
    jobs = [("5", "5"), (ENDLESS, "1"), ("5", "6"), ("7", "7")]
    assert refusals(jobs) == {(ENDLESS, "1"): two_seconds, ("5", "6"): REFUSED}


def test_a_truth_must_be_its_own_answer_and_refuse_a_wrong_one_in_time(two_seconds):
    assert unscorable(["5", "}{", ENDLESS, "-98765.4321"]) == {"}{": NOTHING, ENDLESS: two_seconds}


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
