"""How right the methods are after training, and what can be said about the difference to the baseline."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aent_verl._util import first_few
from aent_verl.comparison.report.curves import final_validations
from aent_verl.comparison.report.groups import Groups
from aent_verl.comparison.report.method_accuracy import Judge, MethodAccuracy, Parts, telling_rewards
from aent_verl.comparison.stats.crossed import MIN_PROBLEMS, Target
from aent_verl.comparison.stats.scores import score_matrices, shared_problems
from aent_verl.comparison.stats.verdict import Verdict, refusal, verdicts
from aent_verl.runs.metrics import validation_sources
from aent_verl.runs.problems import ProblemScores
from aent_verl.runs.run import Run

PROFILE_POINTS = 41


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


def _align(scored: Mapping[str, list[Run]], intersect: bool) -> dict[str, Parts]:
    """Bring the scores of all runs into one order of problems.

    Raises:
        ValueError: runs share too few problems, or a score is no finite number.
    """
    runs = [run for group in scored.values() for run in group]
    columns = shared_problems({run.name: _scores(run).problems for run in runs}, intersect=intersect)
    samples = min(_scores(run).samples for run in runs)
    parts = {
        method: Parts([_scores(run) for run in group], [columns[run.name] for run in group], samples)
        for method, group in scored.items()
    }
    score_matrices({method: part.stack("scores") for method, part in parts.items()})
    return parts


def _over_problems(groups: Groups, parts: dict[str, Parts], target: Target, confidence: float) -> Accuracy:
    matrices = {method: part.stack("scores") for method, part in parts.items()}
    _, problems, samples = next(iter(matrices.values())).shape
    metric, given = f"mean@{samples}", {}
    if groups.baseline is not None and len(matrices) > 1:
        given = verdicts(matrices, groups.baseline, metric=metric, target=target, confidence=confidence)
    extremes = [float(end(matrix)) for matrix in matrices.values() for end in (np.min, np.max)]
    numbers = Judge(
        None if groups.baseline is None else matrices[groups.baseline],
        np.linspace(min(0, *extremes), max(1, *extremes), PROFILE_POINTS),
        target,
        confidence,
        telling_rewards(scores for part in parts.values() for scores in part.seeds),
    )
    methods = {method: numbers.method(part, is_baseline=method == groups.baseline) for method, part in parts.items()}
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
        thresholds=tuple(numbers.thresholds.tolist()),
        notes=tuple(notes),
    )


def _scores(run: Run) -> ProblemScores:
    assert run.scores is not None
    return run.scores
