"""The reward of the math experiments, called as verl calls it: from a thread."""

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest

pytest.importorskip("math_verify")

from aent_verl.data.tasks import math_reward


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def score(threads: ThreadPoolExecutor, solution: str, truth: str = "\\frac{1}{2}") -> dict[str, object]:
    return threads.submit(math_reward.compute_score, "math", solution, truth).result()


@pytest.mark.parametrize(
    ("solution", "right", "answer"),
    [
        ("So it is \\boxed{\\frac{1}{2}}.", 1.0, "1/2"),
        ("The answer is 0.5", 1.0, "1/2"),
        ("\\boxed{2/4}", 1.0, "1/2"),
        ("$x=\\frac{1}{2}$", 1.0, "1/2"),
        ("\\boxed{1,234}", 0.0, "1234"),
        ("1234.0", 0.0, "1234"),
        ("0.0", 0.0, "0"),
        ("-0.25", 0.0, "-1/4"),
        ("no idea", 0.0, ""),
        ("", 0.0, ""),
        ("\ud800 \\boxed{1/2}", 1.0, "1/2"),
    ],
)
def test_answers_off_the_main_thread(threads: ThreadPoolExecutor, solution: str, right: float, answer: str) -> None:
    assert score(threads, solution) == {"score": right, "acc": right, "pred": answer}


@pytest.mark.slow
@pytest.mark.parametrize("solution", ["\\boxed{9^{9^{9^9}}}", "\\boxed{2.0^{10^{10^{10}}}}"])
def test_an_answer_that_never_ends_is_wrong_and_the_next_one_is_scored(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, solution: str
) -> None:
    monkeypatch.setattr(math_reward, "SECONDS", 1)
    assert score(threads, solution) == {"score": 0.0, "acc": 0.0, "pred": ""}
    assert "no result in 1 s of CPU time" in caplog.text
    assert score(threads, "\\boxed{1/2}")["score"] == 1.0


def test_an_answer_with_more_digits_than_python_prints_is_an_answer(threads: ThreadPoolExecutor) -> None:
    found = score(threads, f"\\boxed{{{'9' * 5000}}}")
    assert found["score"] == 0.0
    assert found["pred"] == "9" * 5000


@pytest.mark.slow
def test_a_call_that_is_interrupted_leaves_no_reply_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = math_reward.Verifier()
    for error in (KeyboardInterrupt, TimeoutError):
        assert verifier.verify("\\boxed{1}", "1") == (1.0, "1")
        process = verifier._process
        assert process is not None
        with monkeypatch.context() as interrupted:
            interrupted.setattr(process, "stdout", Mock(readline=Mock(side_effect=error)))
            with pytest.raises(error):
                verifier.verify("\\boxed{2}", "1")
        assert verifier.verify("\\boxed{3}", "3") == (1.0, "3")
        assert process.poll() is not None


def test_a_process_that_cannot_start_is_an_error_and_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_reward.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with status 1"):
        math_reward.Verifier().verify("1", "1")


def test_without_math_verify_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"this reward needs math-verify, sympy: pip install .*\[math\]"):
        math_reward.Verifier().verify("1", "1")
