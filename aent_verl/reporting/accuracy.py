"""How right the methods are after training, and what can be said about the difference to the baseline."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aent_verl.reporting.curves import final_validations
from aent_verl.reporting.groups import Groups, some
from aent_verl.reporting.method_accuracy import Judge, MethodAccuracy, Parts
from aent_verl.results.problems import ProblemScores
from aent_verl.results.run import Run
from aent_verl.statistics.crossed import MIN_PROBLEMS, Target
from aent_verl.statistics.rliable_intervals import RliableInterval, rliable_aggregates
from aent_verl.statistics.scores import score_matrices, shared_problems
from aent_verl.statistics.verdict import Verdict, verdicts

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
    return _over_validations(groups, confidence, notes)


def _over_validations(groups: Groups, confidence: float, notes: list[str]) -> Accuracy | None:
    """Welch's test over the seeds: one number a run."""
    finals = {method: final_validations(group) for method, group in groups.runs.items()}
    known = {method: values for method, values in finals.items() if len(values)}
    if not known:
        return None
    metric = "final validation accuracy"
    target: Target = "these problems"
    given: dict[str, Verdict] = {}
    if groups.baseline in known and len(known) > 1:
        given = verdicts(known, groups.baseline, metric=metric, target=target, confidence=confidence)
    return Accuracy(metric, None, None, "the last validation of each run", target, given, {}, (), tuple(notes))


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
    )
    bootstraps = _rliable(matrices, numbers.thresholds, confidence)
    methods = {
        method: numbers.method(part, bootstraps.get(method, {}), is_baseline=method == groups.baseline)
        for method, part in parts.items()
    }
    notes = []
    if target == "problems like these" and problems < MIN_PROBLEMS:
        notes.append(f"{problems} problems are too few to stand for others like them: there are no intervals.")
    without = [run.name for run in groups.all if run.scores is None]
    if without:
        notes.append(f"No scores of single problems are stored of {some(without)}: left out of the accuracy.")
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


def _rliable(
    matrices: Mapping[str, np.ndarray], thresholds: np.ndarray, confidence: float
) -> dict[str, dict[str, RliableInterval]]:
    """Rliable's intervals of all methods with several seeds: those of one would have no width."""
    several = {method: matrix for method, matrix in matrices.items() if len(matrix) > 1}
    return rliable_aggregates(several, thresholds, confidence=confidence) if several else {}
