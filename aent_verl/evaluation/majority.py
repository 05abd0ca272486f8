"""maj@n: the answer that most samples of a problem give, and how far its share of the votes can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Majority:
    """The majority vote of each problem.

    Attributes:
        correct: score of the elected answer, ``[...]``; the mean over the tied where several lead.
        share: its votes as a share of all n samples, ``[...]``.
    """

    correct: np.ndarray
    share: np.ndarray


def majority_vote(scores: np.ndarray, answers: Sequence | np.ndarray) -> Majority:
    """Let the samples of each problem vote, ``[..., n]`` and ``[..., n]`` -> ``[...]`` each.

    Two samples vote for the same answer if their extracted answers are equal strings: ``1/2`` and ``0.5`` are two
    answers unless the extraction made them one. An answer's score is the mean score of the samples that gave it,
    which matters only where a reward judged equal answers differently. A tie counts as its expected value under a
    random choice among the leaders: the mean of their scores. None is not a vote, but counts in the n of the share; a
    problem without any vote has score 0 and share 0.

    Raises:
        ValueError: scores and answers differ in shape.
    """
    scores = np.asarray(scores, dtype=float)
    votes = np.asarray(answers, dtype=object)
    if scores.shape != votes.shape:
        raise ValueError(
            f"maj@n needs one answer per score: scores have shape {scores.shape}, answers {votes.shape} (None for a "
            "sample without an answer)"
        )
    samples = scores.shape[-1]
    elected = [
        _vote(row.tolist(), given.tolist())
        for row, given in zip(scores.reshape(-1, samples), votes.reshape(-1, samples), strict=True)
    ]
    correct, share = np.array(elected, dtype=float).reshape(-1, 2).T
    return Majority(correct.reshape(scores.shape[:-1]), share.reshape(scores.shape[:-1]))


def calibration_error(share: np.ndarray, correct: np.ndarray) -> float:
    """Estimate the calibration error of the vote share as a confidence (Guo et al. 2017, arXiv 1706.04599).

    Problems fall into ten bins of equal width, (0, .1], ..., (.9, 1], with 0 in the first; the error is the mean over
    problems of |mean score - mean share| of their bin. With few problems a bin it is above 0 even for perfect
    calibration, so compare methods at the same number of problems and samples only.

    Args:
        share: votes of the elected answers as shares, any shape.
        correct: their scores, of the same shape.

    Raises:
        ValueError: the shapes differ, no problem, or a share outside [0, 1].
    """
    share, correct = np.asarray(share, dtype=float), np.asarray(correct, dtype=float)
    if share.shape != correct.shape or share.size == 0:
        raise ValueError(f"share has shape {share.shape}, correct {correct.shape}: expected one of each per problem")
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"share must be in [0, 1], found {share.min():g} to {share.max():g}")
    # Shares are fractions: rounded, so that 3 of 10 votes do not leave the bin whose end they are.
    bins = np.clip(np.ceil(np.round(share.ravel() * BINS, 9)).astype(int), 1, BINS) - 1
    gap = np.bincount(bins, weights=correct.ravel() - share.ravel(), minlength=BINS)
    return float(np.abs(gap).sum() / share.size)


def _vote(scores: list[float], answers: list[str | None]) -> tuple[float, float]:
    given: dict[str, list[float]] = {}
    for score, answer in zip(scores, answers, strict=True):
        if answer is not None:
            given.setdefault(answer, []).append(score)
    if not given:
        return 0.0, 0.0
    most = max(len(each) for each in given.values())
    leaders = [sum(each) / most for each in given.values() if len(each) == most]
    return sum(leaders) / len(leaders), most / len(scores)
