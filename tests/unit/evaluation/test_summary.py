import io

import pytest
from rich.console import Console

from aent_verl.evaluation import summary
from aent_verl.evaluation.records import Answered, Problem, Response


def answered(source: str, *responses: Response) -> Answered:
    return Answered(Problem(source, [{"role": "user", "content": str(len(responses))}], "", {}), responses)


def response(
    score: float, answer: str | None = None, tokens: int = 2, entropy: float = 0.5, truncated: bool = False,
    error: str | None = None,
) -> Response:  # fmt: skip
    return Response("", tokens, truncated, entropy, score, answer, error)


RIGHT, WRONG = response(1.0, "a"), response(0.0, "b", tokens=6, entropy=1.5, truncated=True)
HAND_MADE = [
    answered("x", RIGHT, RIGHT, WRONG, WRONG),  # a tie: half a vote
    answered("x", WRONG, WRONG, WRONG, WRONG),
    answered("y", RIGHT, RIGHT, RIGHT, WRONG),
]


def test_statistics_of_hand_made_responses() -> None:
    found = summary.summarize(HAND_MADE)
    assert list(found) == ["x", "y", "all"]
    x, y, both = found["x"], found["y"], found["all"]
    assert (x["problems"], y["problems"], both["problems"]) == (2, 1, 3)
    assert (x["mean@n"], y["mean@n"], both["mean@n"]) == (0.25, 0.75, pytest.approx(5 / 12))
    # Two of four right: 1 - C(2, k) / C(4, k).
    assert x["pass@k"] == pytest.approx({"1": 0.25, "2": (1 - 1 / 6) / 2, "3": 0.5, "4": 0.5})
    assert y["pass@k"] == {"1": 0.75, "2": 1.0, "3": 1.0, "4": 1.0}
    assert (x["maj@n"], y["maj@n"], both["maj@n"]) == (0.25, 1.0, 0.5)
    # Of x: shares 1/2 and 1, elected answers right by 1/2 and 0.
    assert x["calibration_error"] == pytest.approx(0.5)
    assert y["calibration_error"] == pytest.approx(0.25)
    assert x["response_tokens"] == (2 * 2 + 6 * 6) / 8
    assert x["truncated"] == 6 / 8
    assert [row["errors"] for row in found.values()] == [0, 0, 0]


def test_entropy_is_a_mean_over_tokens_and_not_over_responses() -> None:
    found = summary.summarize(
        [answered("x", response(1.0, tokens=1, entropy=4.0), response(0.0, tokens=9, entropy=1.0))]
    )
    assert found["all"]["entropy"] == (4.0 + 9.0) / 10


def test_responses_without_tokens_count_for_nothing_in_the_entropy() -> None:
    empty = response(0.0, tokens=0, entropy=0.0)
    assert summary.summarize([answered("x", empty, RIGHT)])["x"]["entropy"] == 0.5
    assert summary.summarize([answered("x", empty, empty)])["x"]["entropy"] == 0.0


def test_without_answers_there_is_no_majority() -> None:
    found = summary.summarize([answered("x", response(1.0), response(0.0))])["x"]
    assert (found["maj@n"], found["calibration_error"]) == (None, None)
    found = summary.summarize([answered("x", response(1.0), response(0.0), response(0.0, "b"))])["x"]
    assert found["maj@n"] == 0.0


def test_without_right_and_wrong_there_is_no_pass_at_k() -> None:
    graded = [answered("x", response(0.5), RIGHT)]
    assert summary.summarize(graded)["x"]["pass@k"] is None
    assert summary.summarize([answered("x", response(0.5, "a"), RIGHT)])["x"]["calibration_error"] is None
    assert summary.summarize([answered("x", response(0.5, "a"), RIGHT)])["x"]["maj@n"] == 0.75
    assert any("no pass@k" in warning for warning in summary.warnings_of(graded))


def test_what_a_reader_has_to_know() -> None:
    assert summary.warnings_of([answered("x", RIGHT, response(0.0))]) == []
    slow, broken = response(0.0, error="no score after 30 s"), response(0.0, error="KeyError: 'a'")
    failed = summary.warnings_of([answered("x", RIGHT, slow, slow, broken)])
    assert failed == [
        "3 of 4 responses have no score and count as 0: 2 x no score after 30 s; 1 x KeyError: 'a'",
    ]
    equal = summary.warnings_of([answered("x", response(0.0), response(0.0))])
    assert len(equal) == 1
    assert "all 2 responses have the score 0" in equal[0]
    cut = summary.warnings_of([answered("x", RIGHT, WRONG)])
    assert len(cut) == 1
    assert "1 of 2 responses were cut off" in cut[0]


def text(rows: list[Answered], samples: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120).print(summary.table(summary.summarize(rows), samples))
    return stream.getvalue()


def test_the_table_has_a_row_for_each_source_and_one_for_all() -> None:
    shown = text(HAND_MADE, 4)
    assert [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")] == ["x", "y", "all"]
    for part in ("mean@4", "pass@4", "maj@4", "0.750", "75.0%", "1.000"):
        assert part in shown
    assert "all" not in text(HAND_MADE[2:], 4)
    assert text([answered("x", response(0.5))], 1).count(" - ") == 3
