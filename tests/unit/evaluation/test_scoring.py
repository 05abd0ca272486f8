import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from aent_verl.evaluation.scoring import Scored, Scorer, ScorerError
from tests.unit.evaluation import rewards

# Nothing here takes a second, but the machine may be busy.
SECONDS = 120.0


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(rewards.load, processes=2, seconds=SECONDS) as scorer:
        yield scorer


def score(scorer: Scorer, solution: str, truth: str = "5") -> Scored:
    return scorer.score(data_source="s", solution_str=solution, ground_truth=truth, extra_info={})


def test_scores_and_answers(scorer: Scorer) -> None:
    assert score(scorer, "5") == Scored(1.0)
    assert score(scorer, "6") == Scored(0.0)


def test_the_accuracy_counts_before_the_score_and_the_answer_before_verls_own_name_for_it(scorer: Scorer) -> None:
    assert score(scorer, "answer 5") == Scored(1.0, "5")
    assert score(scorer, "answer 6") == Scored(0.0, "6")
    assert score(scorer, "answer ") == Scored(0.0, None)
    assert score(scorer, "both") == Scored(0.5, "7")


@pytest.mark.parametrize(
    ("solution", "error"),
    [("raise", "KeyError: 'no such thing'"), ("nan", "ValueError: the score is nan"), ("tuple", "TypeError: .*")],
)
def test_an_error_is_a_score_of_0_that_says_so(scorer: Scorer, solution: str, error: str) -> None:
    found = score(scorer, solution)
    assert found.score == 0.0
    assert re.fullmatch(error, found.error or "")


@pytest.mark.slow
@pytest.mark.parametrize("solution", ["loop", "compute"])
def test_a_score_that_never_comes_is_0_and_the_next_one_is_right(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, solution: str
) -> None:
    with monkeypatch.context() as hurry:
        hurry.setattr(scorer, "_seconds", 0.5)
        assert score(scorer, solution) == Scored(0.0, error="no score after 0.5 s")
    assert [score(scorer, "5").score for _ in range(3)] == [1.0, 1.0, 1.0]


def test_a_process_that_dies_is_replaced(scorer: Scorer) -> None:
    assert score(scorer, "die") == Scored(0.0, error="its process died (exit status 3)")
    assert score(scorer, "5") == Scored(1.0)


def test_functions_run_in_main_threads_where_signals_work(scorer: Scorer) -> None:
    """Called from a thread here, as an evaluation does: where verl calls them, both would fail."""
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(score, scorer, "thread").result() == Scored(1.0)
        assert threads.submit(score, scorer, "signal").result() == Scored(1.0)


def test_calls_from_many_threads_keep_their_own_results(scorer: Scorer) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: score(scorer, f"answer {i}", truth=str(i % 3)), range(60)))
    assert found == [Scored(float(i < 3), str(i)) for i in range(60)]


def test_coroutines_are_waited_for() -> None:
    with Scorer(rewards.load_later, processes=1, seconds=SECONDS) as scorer:
        assert score(scorer, "5") == Scored(1.0)


@pytest.mark.parametrize(
    ("load", "message"),
    [(rewards.load_nothing, "ImportError: no module named algebra"), (rewards.load_and_die, "its process died")],
)
def test_a_function_that_cannot_be_loaded_stops_the_evaluation(load: object, message: str) -> None:
    with pytest.raises(ScorerError, match=message), Scorer(load, processes=1, seconds=SECONDS):  # type: ignore[arg-type]
        pass


def test_no_process_is_left_behind() -> None:
    before = set(multiprocessing.active_children())
    with Scorer(rewards.load, processes=2, seconds=0.2) as scorer:
        score(scorer, "loop")
        assert len(set(multiprocessing.active_children()) - before) == 2
    assert set(multiprocessing.active_children()) == before
