"""How accurate the methods are after training, and what can be said about the difference from the baseline."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from aent_verl._util import first_few
from aent_verl.comparison.report.curves import bare, final_validations, has_interval, mean_of
from aent_verl.comparison.report.groups import Groups
from aent_verl.comparison.stats import Target, aggregates
from aent_verl.comparison.stats.cross_checks import CrossChecks, cross_checks
from aent_verl.comparison.stats.crossed import MIN_PROBLEMS, Estimate
from aent_verl.comparison.stats.scores import score_matrices, shared_problems
from aent_verl.comparison.stats.verdict import Verdict, refusal, verdicts
from aent_verl.evaluation.majority import calibration_error, majority_vote
from aent_verl.evaluation.pass_at_k import pass_at_all_k
from aent_verl.runs.metrics import validation_sources
from aent_verl.runs.problems import ProblemScores
from aent_verl.runs.run import Run, by_method

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
        entropy: nats per token: of all tokens of the responses.
        calibration_error: of the vote share as a confidence, mean over seeds.
        checks: other tests against the baseline; None with fewer than two seeds of either.
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
        origin: where the scores come from, in words.
        target: what the intervals are about.
        verdicts: by method; empty where nothing can be compared.
        notes: what was left out and why, in sentences.
        samples: n responses per problem; None where only the mean of a validation is known.
        problems: how many; None likewise.
        methods: by method; empty likewise.
        thresholds: of the profiles; empty likewise.
    """

    metric: str
    origin: str
    target: Target
    verdicts: dict[str, Verdict]
    notes: tuple[str, ...]
    samples: int | None = None
    problems: int | None = None
    methods: dict[str, MethodAccuracy] = field(default_factory=dict)
    thresholds: tuple[float, ...] = ()


def judge(groups: Groups, target: Target) -> Accuracy | None:
    """Judge accuracy after training: over single problems where they are stored, else by the final validation.

    None if there is neither.
    """
    scored = by_method(run for run in groups.all if run.scores is not None)
    notes: list[str] = []
    several = groups.baseline is not None and len(groups.methods) > 1
    if scored and several and (groups.baseline not in scored or len(scored) < 2):
        notes.append(
            f"Scores of single problems exist for {', '.join(scored)} only, so methods are compared by their final "
            "validation: aent-verl evaluate the others."
        )
    elif scored:
        try:
            aligned = _align(scored, intersect=bool(groups.differences))
        except ValueError as error:
            notes.append(f"Methods are compared by their final validation, not over problems: {error}.")
        else:
            return _over_problems(groups, aligned, target)
    return _over_validations(groups, target, notes)


def _over_validations(groups: Groups, asked: Target, notes: list[str]) -> Accuracy | None:
    """Compare over the seeds alone: one number for each run."""
    finals = {method: found for method, group in groups.runs.items() if (found := final_validations(group))}
    if not finals:
        return None
    metric = "final validation accuracy"
    sources = max(len(validation_sources(run.metrics[run.last_step])) for run in groups.all)
    if sources > 1:
        metric += f", mean over {sources} data sources"
    given = _verdicts_over_validations(finals, groups.baseline, metric)
    target: Target = "these problems"
    if given and asked != target:
        notes.append(f"The verdicts are about {target}, not about {asked}: that would take scores of single problems.")
    return Accuracy(metric, "the last validation of each run", target, given, tuple(notes))


def _verdicts_over_validations(
    finals: Mapping[str, Mapping[str, float]], baseline: str | None, metric: str
) -> dict[str, Verdict]:
    """Judge every method but the baseline; refuse where a seed of either has a non-finite validation."""
    if baseline is None or baseline not in finals or len(finals) < 2:
        return {}
    lost = {method: [run for run, value in each.items() if not math.isfinite(value)] for method, each in finals.items()}
    sound = {method: np.array(list(each.values()))[:, None] for method, each in finals.items() if not lost[method]}
    given: dict[str, Verdict] = {}
    if baseline in sound and len(sound) > 1:
        given = verdicts(sound, baseline, metric=metric, target="these problems")
    comparisons = max((verdict.comparisons for verdict in given.values()), default=0)

    def refused(method: str) -> Verdict:
        reason = (
            f"the last validation of {first_few([*lost[method], *lost[baseline]])} is NaN or infinite, and no seed is "
            "left out for its result: find out why, and evaluate or train again"
        )
        return refusal(method, baseline, metric, reason, comparisons)

    return {method: given.get(method) or refused(method) for method in finals if method != baseline}


def _align(scored: Mapping[str, list[Run]], intersect: bool) -> dict[str, list[ProblemScores]]:
    """Return all runs' scores by method: the same problems in one order, and equally many responses to each.

    Raises:
        ValueError: runs share too few problems, or a score is not finite.
    """
    found = {run.name: run.scores for group in scored.values() for run in group if run.scores is not None}
    columns = shared_problems({name: scores.problems for name, scores in found.items()}, intersect=intersect)
    samples = min(scores.samples for scores in found.values())
    # The reward functions that tell what a response answered.
    telling = {_reward_of(scores) for scores in found.values() if any({*row} - {None} for row in scores.answers)}
    aligned = {
        method: [_select(found[run.name], columns[run.name], samples, telling) for run in group]
        for method, group in scored.items()
    }
    score_matrices({method: _stack(seeds, "scores") for method, seeds in aligned.items()})
    return aligned


def _select(scores: ProblemScores, columns: np.ndarray, samples: int, telling: Collection[str]) -> ProblemScores:
    """Select the scores of some problems, in this order, and of the first responses to each.

    Answers stay only where the reward function is one that tells them.
    """
    rows = scores.answers if _reward_of(scores) in telling else ()
    matrices = ("scores", "response_tokens", "truncated", "entropy")
    stored = {name: matrix for name in matrices if (matrix := getattr(scores, name)) is not None}
    return replace(
        scores,
        problems=tuple(scores.problems[column] for column in columns),
        data_sources=tuple(scores.data_sources[column] for column in columns),
        answers=tuple(rows[column][:samples] for column in columns) if rows else (),
        **{name: matrix[columns, :samples] for name, matrix in stored.items()},
    )


def _over_problems(groups: Groups, aligned: Mapping[str, list[ProblemScores]], target: Target) -> Accuracy:
    matrices = {method: _stack(seeds, "scores") for method, seeds in aligned.items()}
    _, problems, samples = next(iter(matrices.values())).shape
    metric, given = f"mean@{samples}", {}
    if groups.baseline is not None and len(matrices) > 1:
        given = verdicts(matrices, groups.baseline, metric=metric, target=target)
    extremes = [float(end(matrix)) for matrix in matrices.values() for end in (np.min, np.max)]
    thresholds = np.linspace(min(0, *extremes), max(1, *extremes), PROFILE_POINTS)
    theirs = matrices.get(groups.baseline or "")
    methods = {
        method: _method_accuracy(seeds, None if method == groups.baseline else theirs, thresholds, target)
        for method, seeds in aligned.items()
    }
    notes = []
    if target == "problems like these" and problems < MIN_PROBLEMS:
        notes.append(f"{problems} problems are too few to stand for others like them: there are no intervals.")
    without = [run.name for run in groups.all if run.scores is None]
    if without:
        notes.append(f"No scores of single problems exist for {first_few(without)}: left out of the accuracy.")
    if any(method.pass_at_k is None for method in methods.values()):
        notes.append("No pass@k where scores are other than 0 and 1: it asks whether a response is right.")
    origin = next(iter(aligned.values()))[0].origin
    levels = tuple(thresholds.tolist())
    return Accuracy(metric, origin, target, given, tuple(notes), samples, problems, methods, levels)


def _method_accuracy(
    seeds: list[ProblemScores], baseline: np.ndarray | None, thresholds: np.ndarray, target: Target
) -> MethodAccuracy:
    """Compute all numbers of one method.

    Args:
        seeds: its scores.
        baseline: the baseline's, ``[S, P, n]``; None if there is none, or it is this method.
        thresholds: of the profile.
        target: what the intervals are about.
    """
    samples = _stack(seeds, "scores")
    scores, sources = samples.mean(axis=2), np.array(seeds[0].data_sources)
    told = all(seed.answers for seed in seeds)
    vote = majority_vote(samples, [seed.answers for seed in seeds]) if told else None
    binary = bool(np.isin(samples, (0, 1)).all())
    known = has_interval(scores, target)

    def shown(found: Estimate) -> Estimate:
        # Near the ends of [0, 1] a t-interval would leave it; numpy's minimum and maximum keep NaN.
        ends = {"low": float(np.maximum(found.low, 0)), "high": float(np.minimum(found.high, 1))}
        return replace(found, **ends) if binary else found

    def average(values: np.ndarray) -> Estimate:
        return shown(mean_of(values, target))

    middle = bare(aggregates.middle_half(np.sort(scores, axis=None)).mean())
    profile = [bare((scores > threshold).mean()) for threshold in thresholds]
    if known:
        middle = aggregates.interquartile_mean(scores, target=target)
        points = aggregates.performance_profile(scores, thresholds, target=target)
        profile = [bare(*point) for point in zip(*points, strict=True)]
    improvement = checks = None
    if baseline is not None:
        other = baseline.mean(axis=2)
        improvement = bare(aggregates.win_shares(scores, other).mean())
        if known and has_interval(other, target):
            improvement = aggregates.probability_of_improvement(scores, other, target=target)
        if min(len(scores), len(other)) > 1:
            checks = cross_checks(scores, other)
    calibration = None
    if vote is not None and binary:
        calibration = float(np.mean([*map(calibration_error, vote.share, vote.correct)]))
    return MethodAccuracy(
        seeds=len(seeds),
        mean=average(scores),
        interquartile_mean=shown(middle),
        improvement=improvement,
        pass_at_k=tuple(map(average, np.moveaxis(pass_at_all_k(samples), 2, 0))) if binary else None,
        majority=None if vote is None else average(vote.correct),
        profile=tuple(profile),
        by_source={str(source): average(scores[:, sources == source]) for source in np.unique(sources)},
        response_tokens=_average(seeds, "response_tokens"),
        truncated=_average(seeds, "truncated"),
        entropy=_average(seeds, "entropy", weights="response_tokens"),
        calibration_error=calibration,
        checks=checks,
    )


def _stack(seeds: Iterable[ProblemScores], name: str) -> np.ndarray:
    """Stack an attribute that all seeds have, ``[S, P, n]``."""
    return np.stack([getattr(scores, name) for scores in seeds])


def _average(seeds: list[ProblemScores], name: str, weights: str | None = None) -> float | None:
    """Average an attribute, weighted by another; 0 if all weights are 0, None if a seed lacks either."""
    if any(getattr(scores, each) is None for scores in seeds for each in (name, weights or name)):
        return None
    weight = None if weights is None else _stack(seeds, weights)
    if weight is not None and not weight.any():
        return 0.0
    return float(np.average(_stack(seeds, name), weights=weight))


def _reward_of(scores: ProblemScores) -> str:
    """Return which reward function gave the scores, as far as it is known."""
    return scores.protocol.get("evaluation.reward", "")
