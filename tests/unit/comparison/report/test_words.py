from dataclasses import replace

import pytest

from aent_verl.comparison.report import words
from aent_verl.comparison.report.accuracy import Accuracy
from aent_verl.comparison.report.estimates import bare
from aent_verl.comparison.stats.verdict import Verdict


def test_ends_of_an_interval():
    assert words.ends(bare(0.5, 0.4, 0.6)) == "[.400, .600]"
    assert words.ends(bare(0.5)) == ""
    assert words.ends(None) == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(2.34, "2 s"), (60, "1 min"), (95, "1 min 35 s"), (3600, "1 h"), (3 * 3600 + 1230, "3 h 20 min"), (None, "—")],
)
def test_durations(seconds, said):
    assert words.duration(seconds) == said


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
