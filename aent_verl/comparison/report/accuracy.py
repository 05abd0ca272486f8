"""How right the methods are after training, and what can be said about the difference to the baseline."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from aent_verl._util import first_few
from aent_verl.comparison.report.curves import bare, final_validations, has_interval, mean_of
from aent_verl.comparison.report.groups import Groups
from aent_verl.comparison.stats import aggregates
from aent_verl.comparison.stats.cross_checks import CrossChecks, cross_checks
from aent_verl.comparison.stats.crossed import MIN_PROBLEMS, Estimate, Target
from aent_verl.comparison.stats.scores import score_matrices, shared_problems
from aent_verl.comparison.stats.verdict import Verdict, refusal, verdicts
from aent_verl.evaluation.majority import Majority, calibration_error, majority_vote
from aent_verl.evaluation.pass_at_k import pass_at_all_k
from aent_verl.runs.metrics import validation_sources
from aent_verl.runs.problems import ProblemScores
from aent_verl.runs.run import Run

PROFILE_POINTS = 41


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
class Accuracy:
    """Of all methods.

    Attributes:
        metric: what the verdicts are about, in words.
        samples: n responses a problem; None where only the mean of a validation is known.
        problems: how many; None likewise.
        origin: where the scores come from, in words.
        target: what the intervals are about.
        verdicts: by method; empty where nothing can be compared.
        methods: by method; empty where only the mean of a validation is known.
        thresholds: of the profiles.
        notes: what was left out and why, in sentences.
    """

    metric: str
    samples: int | None
    problems: int | None
    origin: str
    target: Target
    verdicts: dict[str, Verdict]
    methods: dict[str, MethodAccuracy]
    thresholds: tuple[float, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Parts:
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
        if not all(scores.answers and _reward_of(scores) in telling for scores in self.seeds):
            return None
        both = zip(self.seeds, self.columns, strict=True)
        kept = [[scores.answers[column][: self.samples] for column in columns] for scores, columns in both]
        found = np.empty((len(kept), len(kept[0]), self.samples), dtype=object)
        found[:] = kept
        return found

    def sources(self) -> np.ndarray:
        """[P], the data set of each problem."""
        return np.array(self.seeds[0].data_sources)[self.columns[0]]


def judge(groups: Groups, target: Target, confidence: float) -> Accuracy | None:
    """Accuracy after training: over single problems where they are stored, else the final validation's mean.

    None if there is neither.
    """
    scored = {method: [run for run in group if run.scores is not None] for method, group in groups.runs.items()}
    scored = {method: group for method, group in scored.items() if group}
    notes: list[str] = []
    several = groups.baseline is not None and len(groups.methods) > 1
    if scored and several and (groups.baseline not in scored or len(scored) < 2):
        notes.append(
            f"Scores of single problems are stored of {', '.join(scored)} only, so methods are compared by their final "
            "validation: aent-verl evaluate the others."
        )
        scored = {}
    if scored:
        try:
            parts = _align(scored, intersect=bool(groups.differences))
        except ValueError as error:
            notes.append(f"Methods are compared by their final validation, not over problems: {error}.")
        else:
            return _over_problems(groups, parts, target, confidence)
    return _over_validations(groups, target, confidence, notes)


def _over_validations(groups: Groups, asked: Target, confidence: float, notes: list[str]) -> Accuracy | None:
    """The verdicts over the seeds alone: one number a run."""
    finals = {method: final_validations(group) for method, group in groups.runs.items()}
    finals = {method: values for method, values in finals.items() if values}
    if not finals:
        return None
    metric = "final validation accuracy"
    sources = max(len(validation_sources(run.metrics[run.last_step])) for run in groups.all)
    if sources > 1:
        metric += f", mean over {sources} data sources"
    given = _verdicts_over_validations(finals, groups.baseline, metric, confidence)
    target: Target = "these problems"
    if given and asked != target:
        notes.append(f"The verdicts are about {target}, not about {asked}: that would take scores of single problems.")
    return Accuracy(metric, None, None, "the last validation of each run", target, given, {}, (), tuple(notes))


def _verdicts_over_validations(
    finals: Mapping[str, Mapping[str, float]], baseline: str | None, metric: str, confidence: float
) -> dict[str, Verdict]:
    """Of all methods but the baseline; refused where a seed of either has a validation that is no finite number."""
    if baseline is None or baseline not in finals or len(finals) < 2:
        return {}
    lost = {method: [run for run, value in each.items() if not math.isfinite(value)] for method, each in finals.items()}
    sound = {method: np.array(list(each.values()))[:, None] for method, each in finals.items() if not lost[method]}
    given: dict[str, Verdict] = {}
    if baseline in sound and len(sound) > 1:
        given = verdicts(sound, baseline, metric=metric, target="these problems", confidence=confidence)
    comparisons = max((verdict.comparisons for verdict in given.values()), default=0)

    def refused(method: str) -> Verdict:
        reason = (
            f"the last validation of {first_few([*lost[method], *lost[baseline]])} is NaN or infinite, and no seed is "
            "left out for its result: find out why, and evaluate or train again"
        )
        return refusal(method, baseline, metric, reason, comparisons)

    return {method: given.get(method) or refused(method) for method in finals if method != baseline}


def _align(scored: Mapping[str, list[Run]], intersect: bool) -> dict[str, _Parts]:
    """Bring the scores of all runs into one order of problems.

    Raises:
        ValueError: runs share too few problems, or a score is no finite number.
    """
    found = {run.name: run.scores for group in scored.values() for run in group if run.scores is not None}
    columns = shared_problems({name: scores.problems for name, scores in found.items()}, intersect=intersect)
    samples = min(scores.samples for scores in found.values())
    parts = {
        method: _Parts([found[run.name] for run in group], [columns[run.name] for run in group], samples)
        for method, group in scored.items()
    }
    score_matrices({method: part.stack("scores") for method, part in parts.items()})
    return parts


def _over_problems(groups: Groups, parts: dict[str, _Parts], target: Target, confidence: float) -> Accuracy:
    matrices = {method: part.stack("scores") for method, part in parts.items()}
    _, problems, samples = next(iter(matrices.values())).shape
    metric, given = f"mean@{samples}", {}
    if groups.baseline is not None and len(matrices) > 1:
        given = verdicts(matrices, groups.baseline, metric=metric, target=target, confidence=confidence)
    extremes = [float(end(matrix)) for matrix in matrices.values() for end in (np.min, np.max)]
    thresholds = np.linspace(min(0, *extremes), max(1, *extremes), PROFILE_POINTS)
    telling = _telling_rewards(scores for part in parts.values() for scores in part.seeds)
    judge = _Judge(thresholds, target, confidence, telling)
    methods = {
        method: judge.method(part, None if method == groups.baseline else matrices.get(groups.baseline or ""))
        for method, part in parts.items()
    }
    notes = []
    if target == "problems like these" and problems < MIN_PROBLEMS:
        notes.append(f"{problems} problems are too few to stand for others like them: there are no intervals.")
    without = [run.name for run in groups.all if run.scores is None]
    if without:
        notes.append(f"No scores of single problems are stored of {first_few(without)}: left out of the accuracy.")
    if any(method.pass_at_k is None for method in methods.values()):
        notes.append("No pass@k where scores are other than 0 and 1: it asks whether a response is right.")
    return Accuracy(
        metric=metric,
        samples=samples,
        problems=problems,
        origin=next(iter(parts.values())).seeds[0].origin,
        target=target,
        verdicts=given,
        methods=methods,
        thresholds=tuple(thresholds.tolist()),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Judge:
    """What is the same for all methods.

    Attributes:
        thresholds: of the profiles.
        target: what the intervals are about.
        confidence: their level.
        telling: reward functions that tell what a response answered, see `_telling_rewards`.
    """

    thresholds: np.ndarray
    target: Target
    confidence: float
    telling: Collection[str]

    def method(self, parts: _Parts, baseline: np.ndarray | None) -> MethodAccuracy:
        """All numbers of one method; the baseline's scores, ``[S, P, n]``, unless there is none or it is this one."""
        samples = parts.stack("scores")
        scores, sources, answers = samples.mean(axis=2), parts.sources(), parts.answers(self.telling)
        improvement = checks = None
        if baseline is not None:
            other = baseline.mean(axis=2)
            improvement = self._estimate(aggregates.probability_of_improvement, aggregates.win_shares, scores, other)
            if min(len(scores), len(other)) > 1:
                checks = cross_checks(scores, other, confidence=self.confidence)
        vote = None if answers is None else majority_vote(samples, answers)
        binary = bool(np.isin(samples, (0, 1)).all())
        average = self._share if binary else self._mean
        middle = self._estimate(aggregates.interquartile_mean, _middle_half, scores)
        return MethodAccuracy(
            seeds=len(scores),
            mean=average(scores),
            interquartile_mean=_cut(middle) if binary else middle,
            improvement=improvement,
            pass_at_k=tuple(map(self._share, np.moveaxis(pass_at_all_k(samples), 2, 0))) if binary else None,
            majority=None if vote is None else average(vote.correct),
            profile=self._profile(scores),
            by_source={str(source): average(scores[:, sources == source]) for source in np.unique(sources)},
            response_tokens=parts.average("response_tokens"),
            truncated=parts.average("truncated"),
            entropy=parts.average("entropy", weights="response_tokens"),
            calibration_error=None if vote is None or not binary else _calibration(vote),
            checks=checks,
        )

    def _mean(self, scores: np.ndarray) -> Estimate:
        return mean_of(scores, self.target, self.confidence)

    def _share(self, scores: np.ndarray) -> Estimate:
        """A mean of what lies in [0, 1]: near its ends a t-interval would leave them."""
        return _cut(self._mean(scores))

    def _estimate(
        self, estimator: Callable[..., Estimate], parts_of: Callable[..., np.ndarray], *scores: np.ndarray
    ) -> Estimate:
        """The estimator's number with its interval; where there is none, the mean of the parts that make it up."""
        if not all(has_interval(each, self.target) for each in scores):
            return bare(parts_of(*scores).mean())
        return estimator(*scores, target=self.target, confidence=self.confidence)

    def _profile(self, scores: np.ndarray) -> tuple[Estimate, ...]:
        if not has_interval(scores, self.target):
            return tuple(bare((scores > threshold).mean()) for threshold in self.thresholds)
        points = aggregates.performance_profile(scores, self.thresholds, target=self.target, confidence=self.confidence)
        return tuple(bare(*point) for point in zip(*points, strict=True))


def _middle_half(scores: np.ndarray) -> np.ndarray:
    return aggregates.middle_half(np.sort(scores, axis=None))


def _telling_rewards(seeds: Iterable[ProblemScores]) -> set[str]:
    """Reward functions that told some answer: where they told none, the responses gave none."""
    return {
        _reward_of(scores) for scores in seeds if any(answer is not None for row in scores.answers for answer in row)
    }


def _reward_of(scores: ProblemScores) -> str:
    """What the scores were given by, as far as it is known."""
    return scores.protocol.get("evaluation.reward", "")


def _cut(found: Estimate) -> Estimate:
    # numpy's, which keep NaN.
    return replace(found, low=float(np.maximum(found.low, 0)), high=float(np.minimum(found.high, 1)))


def _calibration(vote: Majority) -> float:
    both = zip(vote.share, vote.correct, strict=True)
    return float(np.mean([calibration_error(share, correct) for share, correct in both]))
