"""The results of an evaluation, by data source and over all problems, as numbers and as a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Column, Table

from aent_verl.evaluation.majority import calibration_error, majority_vote
from aent_verl.evaluation.pass_at_k import pass_at_all_k
from aent_verl.evaluation.records import Answered
from aent_verl.viewing.progress import fixed

ALL = "all"


def summarize(answered: Sequence[Answered]) -> dict[str, dict[str, Any]]:
    """Compute statistics of each data source, in the order of the data, and of all problems under "all".

    ``pass@k`` and ``calibration_error`` are None where a score is neither 0 nor 1; ``maj@n`` and ``calibration_error``
    where the reward function says of no response what it answered. ``response_tokens`` and ``truncated`` are means over
    responses, ``entropy`` is the mean over tokens.
    """
    sources: dict[str, list[Answered]] = {}
    for one in answered:
        sources.setdefault(one.problem.data_source, []).append(one)
    return {source: _statistics(group) for source, group in sources.items()} | {ALL: _statistics(answered)}


def _statistics(answered: Sequence[Answered]) -> dict[str, Any]:
    responses = [response for one in answered for response in one.responses]
    scores = np.array([[response.score for response in one.responses] for one in answered])
    answers = [[response.answer for response in one.responses] for one in answered]
    tokens = np.array([response.tokens for response in responses], dtype=float)
    surprise = sum(response.entropy * response.tokens for response in responses)
    binary = bool(np.isin(scores, (0, 1)).all())
    pass_at = pass_at_all_k(scores).mean(axis=0) if binary else None
    vote = majority_vote(scores, answers) if any(answer for row in answers for answer in row) else None
    return {
        "problems": len(answered),
        "mean@n": float(scores.mean()),
        "pass@k": None if pass_at is None else {str(k): float(value) for k, value in enumerate(pass_at, start=1)},
        "maj@n": None if vote is None else float(vote.correct.mean()),
        "response_tokens": float(tokens.mean()),
        "truncated": float(np.mean([response.truncated for response in responses])),
        "entropy": float(surprise / tokens.sum()) if tokens.sum() else 0.0,
        "calibration_error": None if vote is None or not binary else calibration_error(vote.share, vote.correct),
        "errors": sum(response.error is not None for response in responses),
    }


def warnings_of(answered: Sequence[Answered]) -> list[str]:
    """Name what a reader of the numbers must know about them."""
    responses = [response for one in answered for response in one.responses]
    found = []
    failed = Counter(response.error for response in responses if response.error is not None)
    if failed:
        causes = sorted(failed.items(), key=lambda cause: (-cause[1], cause[0]))
        found.append(
            f"{failed.total()} of {len(responses)} responses have no score and count as 0: "
            + "; ".join(f"{count} x {text:.200}" for text, count in causes[:3])
            + (f"; {len(causes) - 3} other causes" if len(causes) > 3 else "")
        )
    scores = {response.score for response in responses}
    if len(scores) == 1 and len(responses) > 1:
        found.append(
            f"all {len(responses)} responses have the score {scores.pop():g}: check that the reward function expects "
            "the form of answer that this model gives (see responses.jsonl)"
        )
    elif not scores <= {0.0, 1.0}:
        found.append(
            f"scores are not 0 or 1 (from {min(scores):g} to {max(scores):g}): there is no pass@k; let the reward "
            "function return 'acc' as well"
        )
    truncated = sum(response.truncated for response in responses)
    if truncated > 0.1 * len(responses):
        found.append(
            f"{truncated} of {len(responses)} responses were cut off: raise max_response_length unless training "
            "had the same limit"
        )
    return found


def table(summary: Mapping[str, Mapping[str, Any]], samples: int) -> Table:
    """Lay out the summary for a terminal: a row for each data source, and one for all if there are several."""
    shown = {name: row for name, row in summary.items() if name != ALL or len(summary) > 2}
    columns = ("problems", f"mean@{samples}", f"pass@{samples}", f"maj@{samples}", "tokens", "cut off", "entropy")
    numbers = (Column(name, justify="right") for name in (*columns, "calibration\nerror"))
    result = Table(Column("data source", overflow="fold"), *numbers)
    for name, row in shown.items():
        result.add_row(
            name,
            str(row["problems"]),
            fixed(row["mean@n"]),
            fixed(row["pass@k"] and row["pass@k"][str(samples)]),
            fixed(row["maj@n"]),
            fixed(row["response_tokens"], 1),
            f"{row['truncated']:.1%}",
            fixed(row["entropy"]),
            fixed(row["calibration_error"]),
        )
    return result
