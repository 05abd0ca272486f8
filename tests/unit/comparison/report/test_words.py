import math
from dataclasses import replace

import pytest

from aent_verl.comparison.report import words
from aent_verl.comparison.report.accuracy import Accuracy
from aent_verl.comparison.report.estimates import bare
from aent_verl.comparison.stats.verdict import Verdict


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.1234, ".123"),
        (-0.1234, "-.123"),
        (-0.0001, ".000"),
        (1.0, "1.000"),
        (0.9999, "1.000"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (None, "—"),
        (math.nan, "—"),
    ],
)
def test_decimals(value, said):
    assert words.decimal(value) == said


def test_signs():
    assert words.decimal(0.1, signed=True) == "+.100"
    assert words.decimal(-0.00001, signed=True) == ".000"
    assert words.decimal(20, signed=True) == "+20.0"


def test_ends_of_an_interval():
    assert words.ends(bare(0.5, 0.4, 0.6)) == "[.400, .600]"
    assert words.ends(bare(0.5)) == ""
    assert words.ends(None) == ""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (12, "12"),
        (1234, "1.23 k"),
        (1.5e6, "1.5 M"),
        (2e9, "2 G"),
        (3e12, "3 T"),
        (999.7, "1 k"),
        (999_600, "1 M"),
        (None, "—"),
    ],
)
def test_amounts(value, said):
    assert words.amount(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(2.34, "2.34 s"), (60, "1 min"), (95, "1 min 35 s"), (3600, "1 h"), (3 * 3600 + 1230, "3 h 20 min"), (None, "—")],
)
def test_durations(seconds, said):
    assert words.duration(seconds) == said


def test_p_values():
    assert [words.p_value(p) for p in (0.0001, 0.0234, None)] == ["< .001", ".023", "—"]


def test_headline():
    verdict = Verdict("", "grpo", "mean@8", "better", None, None, None, 1, None, ())
    states = {"a": "better", "b": "better", "c": "worse", "d": "not resolved", "e": "refused"}
    accuracy = Accuracy("mean@8", 8, 40, "", "these problems", {}, {}, (), ())

    def said(methods):
        found = {m: replace(verdict, method=m, state=states[m]) for m in methods}
        return words.headline(replace(accuracy, verdicts=found), "grpo")

    assert said("abcde") == "a and b are better than grpo; c is worse than grpo; not resolved: d; no claim: e."
    assert said("d") == "Not resolved: d."
    assert said("e") == "No claim: e."
    assert said("").startswith("Nothing is compared")
    assert words.headline(None, "grpo").startswith("Nothing can be said about accuracy")
