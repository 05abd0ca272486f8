"""What a report says: everything that its page shows and its JSON holds, computed from the runs."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aent_verl.comparison.report import curves
from aent_verl.comparison.report.accuracy import Accuracy, judge
from aent_verl.comparison.report.cost import cost_charts, cost_notes, costs, spent
from aent_verl.comparison.report.groups import Groups, group_runs
from aent_verl.comparison.report.samples import choose_samples
from aent_verl.comparison.stats import CONFIDENCE, Target
from aent_verl.comparison.stats.crossed import Estimate, check_target
from aent_verl.runs.metrics import STEP_SECONDS
from aent_verl.runs.protocol import NOT_RECORDED, by_value
from aent_verl.runs.run import Run
from aent_verl.viewing.charts import Chart, Interval, Line

# Where a run's files went does not affect its numbers, and any other folder would serve as well.
_PLACES = ("run.dir=", "trainer.validation_data_dir=")


@dataclass(frozen=True)
class Report:
    """All that the page shows; the names are those of the JSON.

    Attributes:
        title: heading.
        groups: the runs by method.
        confidence: level of all intervals.
        accuracy: after training; None if nothing of it is stored.
        end_of_training: by method, the last validation and means over the last tenth of training.
        baseline_best_validation: the baseline's best mean validation accuracy.
        costs: by method, see `aent_verl.comparison.report.cost.costs`.
        cost_notes: what of it is not known, in sentences.
        charts: by section of the page.
        samples: problems with sample responses, see `choose_samples`.
        settings: that differ: value by method, by key.
        protocol: runs by value, by key.
        runs: a row of facts about each.
        commands: that made this comparison.
    """

    title: str
    groups: Groups
    confidence: float
    accuracy: Accuracy | None
    end_of_training: dict[str, dict[str, Estimate | None]]
    baseline_best_validation: float | None
    costs: dict[str, dict[str, Any]]
    cost_notes: tuple[str, ...]
    charts: dict[str, list[Chart]]
    samples: list[dict[str, Any]]
    settings: dict[str, dict[str, str]]
    protocol: dict[str, dict[str, list[str]]]
    runs: list[dict[str, Any]]
    commands: tuple[str, ...]

    @property
    def differences(self) -> list[Interval]:
        """The differences to the baseline, for their chart."""
        return [
            Interval(self.groups.methods.index(method), estimate.value, estimate.low, estimate.high)
            for method, verdict in (self.accuracy.verdicts.items() if self.accuracy else ())
            if verdict.difference is not None and (estimate := verdict.difference.estimate)
        ]


def build(
    runs: Sequence[Run],
    *,
    baseline: str,
    title: str,
    allow_different: bool = False,
    commands: Sequence[str] = (),
    target: Target = "problems like these",
    failed: Sequence[str] = (),
) -> Report:
    """Compute everything that the page shows.

    Args:
        runs: finished runs, in any order.
        baseline: the method that the others are compared with.
        title: heading of the page.
        allow_different: compare runs whose protocols differ, or are not known, and say so at the top of the page.
        commands: that reproduce the comparison.
        target: what the intervals and verdicts are about, see `aent_verl.comparison.stats.crossed`.
        failed: about each run that is missing, a sentence without a full stop; the page's notices begin with them.

    Raises:
        ValueError: the runs cannot be compared, see `group_runs`; a damaged file of responses; no such target.
    """
    groups = group_runs(runs, baseline, allow_different, failed)
    accuracy = judge(groups, check_target(target))
    best, by_method = costs(groups)
    return Report(
        title=title,
        groups=groups,
        confidence=CONFIDENCE,
        accuracy=accuracy,
        end_of_training={
            method: {
                "reward": curves.end_of(group, curves.reward),
                "validation": curves.final_validation(group),
                "entropy": curves.end_of(group, curves.full_entropy),
                "response_length": curves.end_of(group, curves.response_length),
            }
            for method, group in groups.runs.items()
        },
        baseline_best_validation=best,
        costs=by_method,
        cost_notes=cost_notes(groups),
        charts={
            "curves": curves.learning_curves(groups),
            "samples": [] if accuracy is None else accuracy_charts(groups, accuracy),
            "cost": cost_charts(groups),
        },
        samples=choose_samples(groups),
        settings=differing_settings(groups),
        protocol=protocol_rows(groups),
        runs=[_row(run) for run in groups.all],
        commands=tuple(commands),
    )


def accuracy_charts(groups: Groups, accuracy: Accuracy) -> list[Chart]:
    """Chart pass@k and the performance profiles."""
    places = {method: groups.methods.index(method) for method in accuracy.methods}
    charts = []
    if accuracy.samples is not None and accuracy.samples > 1:
        ks = np.arange(1, accuracy.samples + 1)
        lines = [
            _line(places[method], ks, found.pass_at_k)
            for method, found in accuracy.methods.items()
            if found.pass_at_k is not None
        ]
        ticks = [2**power for power in range(int(np.log2(accuracy.samples)) + 1)]
        note = "Share of problems with at least one right response among k."
        charts.append(Chart("pass_at_k", "pass@k", "k", lines, note=note, log_x=True, x_ticks=ticks))
    note = "Share of runs and problems that score above the threshold; higher is better everywhere."
    lines = [_line(places[m], np.array(accuracy.thresholds), found.profile) for m, found in accuracy.methods.items()]
    charts.append(Chart("profiles", "Performance profile", f"{accuracy.metric} of a problem above", lines, note=note))
    return [chart for chart in charts if chart.lines]


def _line(place: int, x: np.ndarray, points: Sequence[Estimate]) -> Line:
    return curves.line(place, x, *np.array([(point.value, point.low, point.high) for point in points]).T)


def differing_settings(groups: Groups) -> dict[str, dict[str, str]]:
    """Return the settings that differ between methods whose config is known: value by method, by key."""
    firsts = {method: next((r.settings for r in group if r.settings), {}) for method, group in groups.runs.items()}
    known = {method: found for method, found in firsts.items() if found}
    keys = sorted(set().union(*known.values()))
    table = {key: {method: found.get(key, NOT_RECORDED) for method, found in known.items()} for key in keys}
    return {key: row for key, row in table.items() if len(set(row.values())) > 1}


def protocol_rows(groups: Groups) -> dict[str, dict[str, list[str]]]:
    """Return the protocol: for each key the runs by value."""
    protocols = {run.name: run.protocol for run in groups.all}
    return {key: by_value(protocols, key) for key in sorted(set().union(*protocols.values()))}


def _row(run: Run) -> dict[str, Any]:
    """Return what is known of a run; without seconds if any step lacks them."""
    record = run.record
    overrides = [text for text in map(str, record.get("overrides") or ()) if not text.startswith(_PLACES)]
    versions = record.get("versions")
    named = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, Mapping) else []
    return {
        "method": run.method,
        "seed": run.seed,
        "place": run.path.name,
        "last_step": run.last_step,
        "seconds": spent(run, STEP_SECONDS),
        "commit": str(record.get("commit") or NOT_RECORDED),
        "machine": str(record.get("machine") or NOT_RECORDED),
        "versions": ", ".join(named) or NOT_RECORDED,
        "command": shlex.join(["aent-verl", "train", *overrides]) if overrides else NOT_RECORDED,
    }
