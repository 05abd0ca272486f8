"""The accuracy of one method, in all the ways that the report gives it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np

from aent_verl.comparison.report.estimates import bare, has_interval, mean_of
from aent_verl.comparison.stats.aggregates import (
    interquartile_mean,
    middle_half,
    performance_profile,
    probability_of_improvement,
    win_shares,
)
from aent_verl.comparison.stats.cross_checks import CrossChecks, cross_checks
from aent_verl.comparison.stats.crossed import Estimate, Target
from aent_verl.evaluation.majority import Majority, calibration_error, majority_vote
from aent_verl.evaluation.pass_at_k import pass_at_all_k
from aent_verl.runs.problems import ProblemScores


@dataclass(frozen=True)
class MethodAccuracy:
    """One method; None is what was not stored or has no meaning for it.

    Attributes:
        seeds: how many seeds are in it.
        mean: mean@n.
        interquartile_mean: of all scores.
        improvement: chance that a run beats one of the baseline's on a problem.
        pass_at_k: for k = 1, ..., n.
        majority: maj@n.
        profile: share of runs and problems with a score above each threshold.
        by_source: mean@n by data source.
        response_tokens: mean tokens of a response.
        truncated: share of responses cut off at the longest allowed.
        entropy: nats a token: of all tokens of the responses.
        calibration_error: of the vote share as a confidence, mean over seeds.
        checks: other tests against the baseline; None below two seeds of each.
    """

    seeds: int
    mean: Estimate
    interquartile_mean: Estimate
    improvement: Estimate | None
    pass_at_k: tuple[Estimate, ...] | None
    majority: Estimate | None
    profile: tuple[Estimate, ...]
    by_source: dict[str, Estimate]
    response_tokens: float | None
    truncated: float | None
    entropy: float | None
    calibration_error: float | None
    checks: CrossChecks | None


@dataclass(frozen=True)
class Parts:
    """What is stored of the seeds of one method, and which part of it is compared.

    Attributes:
        seeds: as stored.
        columns: of each seed, those of the problems compared, in their order.
        samples: how many of each problem's.
    """

    seeds: list[ProblemScores]
    columns: list[np.ndarray]
    samples: int

    def stack(self, name: str) -> np.ndarray:
        """[S, P, n] of an attribute that all seeds have."""
        both = zip(self.seeds, self.columns, strict=True)
        return np.stack([getattr(scores, name)[columns, : self.samples] for scores, columns in both])

    def average(self, name: str, weights: str | None = None) -> float | None:
        """Mean of an attribute, weighted by another, 0 if all weights are; None if a seed lacks one of them."""
        needed = [name] if weights is None else [name, weights]
        if any(getattr(scores, each) is None for scores in self.seeds for each in needed):
            return None
        if weights is None:
            return float(self.stack(name).mean())
        weight = self.stack(weights)
        return float(np.average(self.stack(name), weights=weight)) if weight.any() else 0.0

    def answers(self, telling: Collection[str]) -> np.ndarray | None:
        """[S, P, n] strings or None; None if a seed lacks them, or its reward is not among those that tell answers."""
        if not all(scores.answers and reward_of(scores) in telling for scores in self.seeds):
            return None
        both = zip(self.seeds, self.columns, strict=True)
        kept = [[scores.answers[column][: self.samples] for column in columns] for scores, columns in both]
        found = np.empty((len(kept), len(kept[0]), self.samples), dtype=object)
        found[:] = kept
        return found

    def sources(self) -> np.ndarray:
        """[P], the data set of each problem."""
        return np.array(self.seeds[0].data_sources)[self.columns[0]]


@dataclass(frozen=True)
class Judge:
    """What is the same for all methods.

    Attributes:
        baseline: scores of the baseline, ``[S, P, n]``; None if there is none.
        thresholds: of the profiles.
        target: what the intervals are about.
        confidence: their level.
        telling: reward functions that tell what a response answered, see `telling_rewards`.
    """

    baseline: np.ndarray | None
    thresholds: np.ndarray
    target: Target
    confidence: float
    telling: Collection[str]

    def method(self, parts: Parts, is_baseline: bool) -> MethodAccuracy:
        """All numbers of one method."""
        samples = parts.stack("scores")
        scores, sources, answers = samples.mean(axis=2), parts.sources(), parts.answers(self.telling)
        other = None if is_baseline or self.baseline is None else self.baseline.mean(axis=2)
        checked = other is not None and min(len(samples), len(other)) > 1
        vote = None if answers is None else majority_vote(samples, answers)
        binary = bool(np.isin(samples, (0, 1)).all())
        average = self._share if binary else self._mean
        return MethodAccuracy(
            seeds=len(scores),
            mean=average(scores),
            interquartile_mean=self._interquartile_mean(scores, cut=binary),
            improvement=None if other is None else self._improvement(scores, other),
            pass_at_k=tuple(map(self._share, np.moveaxis(pass_at_all_k(samples), 2, 0))) if binary else None,
            majority=None if vote is None else average(vote.correct),
            profile=self._profile(scores),
            by_source={str(source): average(scores[:, sources == source]) for source in np.unique(sources)},
            response_tokens=parts.average("response_tokens"),
            truncated=parts.average("truncated"),
            entropy=parts.average("entropy", weights="response_tokens"),
            calibration_error=None if vote is None or not binary else _calibration(vote),
            checks=cross_checks(scores, other, confidence=self.confidence) if checked and other is not None else None,
        )

    def _mean(self, scores: np.ndarray) -> Estimate:
        return mean_of(scores, self.target, self.confidence)

    def _share(self, scores: np.ndarray) -> Estimate:
        """A mean of what lies in [0, 1]: near its ends a t-interval would leave them."""
        return _cut(self._mean(scores))

    def _interquartile_mean(self, scores: np.ndarray, cut: bool) -> Estimate:
        if not has_interval(scores, self.target):
            return bare(middle_half(np.sort(scores, axis=None)).mean())
        found = interquartile_mean(scores, target=self.target, confidence=self.confidence)
        return _cut(found) if cut else found

    def _improvement(self, scores: np.ndarray, baseline: np.ndarray) -> Estimate:
        if not (has_interval(scores, self.target) and has_interval(baseline, self.target)):
            return bare(win_shares(scores, baseline).mean())
        return probability_of_improvement(scores, baseline, target=self.target, confidence=self.confidence)

    def _profile(self, scores: np.ndarray) -> tuple[Estimate, ...]:
        if not has_interval(scores, self.target):
            return tuple(bare((scores > threshold).mean()) for threshold in self.thresholds)
        points = performance_profile(scores, self.thresholds, target=self.target, confidence=self.confidence)
        return tuple(bare(*point) for point in zip(*points, strict=True))


def telling_rewards(seeds: Iterable[ProblemScores]) -> set[str]:
    """Reward functions that told some answer: where they told none, the responses gave none."""
    return {
        reward_of(scores) for scores in seeds if any(answer is not None for row in scores.answers for answer in row)
    }


def reward_of(scores: ProblemScores) -> str:
    """What the scores were given by, as far as it is known."""
    return scores.protocol.get("evaluation.reward", "")


def _cut(found: Estimate) -> Estimate:
    # numpy's, which keep NaN.
    return replace(found, low=float(np.maximum(found.low, 0)), high=float(np.minimum(found.high, 1)))


def _calibration(vote: Majority) -> float:
    both = zip(vote.share, vote.correct, strict=True)
    return float(np.mean([calibration_error(share, correct) for share, correct in both]))
