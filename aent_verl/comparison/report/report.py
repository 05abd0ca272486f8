"""The whole report: what is on the page, and the files it is written to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aent_verl.comparison.report import numbers, page, words
from aent_verl.comparison.report.accuracy import Accuracy, judge
from aent_verl.comparison.report.background import RunFacts, differing_settings, protocol_rows, run_facts
from aent_verl.comparison.report.cost import MethodCost, cost_charts, cost_notes, costs
from aent_verl.comparison.report.curves import (
    end_of,
    final_validation,
    full_entropy,
    learning_curves,
    response_length,
    reward,
)
from aent_verl.comparison.report.groups import Groups, group_runs
from aent_verl.comparison.report.samples import Problem, choose_samples
from aent_verl.comparison.stats.crossed import Estimate, Target, check_target
from aent_verl.runs.run import Run
from aent_verl.viewing import palette
from aent_verl.viewing.charts import Chart, Interval, Line, add_heading, draw, draw_intervals

PAGE = "report.html"
NUMBERS = "report.json"
FIGURES = "figures"
DIFFERENCES = "differences"
CONFIDENCE = 0.95
# Of the PNGs.
DPI = 160


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        title: heading.
        groups: the runs by method.
        confidence: level of all intervals.
        accuracy: after training; None if nothing of it is stored.
        differences: to the baseline, for their chart.
        ends: by method, the last validation and means over the last tenth of training.
        best: the baseline's best mean validation accuracy.
        costs: by method.
        cost_notes: what of it is not known, in sentences.
        charts: by section of the page.
        problems: with sample responses.
        settings: that differ: value by method, by key.
        protocol: runs by value, by key.
        facts: about each run.
        commands: that made this comparison.
    """

    title: str
    groups: Groups
    confidence: float
    accuracy: Accuracy | None
    differences: list[Interval]
    ends: dict[str, dict[str, Estimate | None]]
    best: float | None
    costs: dict[str, MethodCost]
    cost_notes: tuple[str, ...]
    charts: dict[str, list[Chart]]
    problems: list[Problem]
    settings: dict[str, dict[str, str]]
    protocol: dict[str, dict[str, list[str]]]
    facts: list[RunFacts]
    commands: tuple[str, ...]


def write_report(
    runs: Sequence[Run],
    folder: str | Path,
    *,
    baseline: str = "grpo",
    title: str = "Comparison",
    allow_different: bool = False,
    commands: Sequence[str] = (),
    target: Target = "problems like these",
    failed: Sequence[str] = (),
) -> Path:
    """Write ``report.html``, ``report.json`` and ``figures/*.png`` into a folder.

    Args:
        runs: finished runs, in any order.
        folder: made if need be; files of an earlier report in it are replaced.
        baseline: the method that the others are compared with.
        title: heading of the page.
        allow_different: compare runs whose protocols differ, or are not known, and say so at the top of the page.
        commands: that reproduce the comparison.
        target: what the intervals and verdicts are about, see `aent_verl.comparison.stats.crossed`.
        failed: about each run that is missing, a sentence without a full stop; the page's notices begin with them.

    Returns:
        The page's path.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the runs cannot be compared, see `group_runs`; a damaged file of responses; no such target.
    """
    report = build(runs, baseline, title, allow_different, commands, target, failed)
    folder = Path(folder)
    figures = folder / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    for name in _earlier_pictures(folder):
        (figures / name).unlink(missing_ok=True)
    _write_pictures(report, figures)
    (folder / NUMBERS).write_text(numbers.as_json(report), encoding="utf-8", newline="\n")
    (folder / PAGE).write_text(page.render(report), encoding="utf-8", newline="\n")
    return folder / PAGE


def answer(written: Path) -> list[str]:
    """What the report says that `write_report` wrote, line by line, for those who have no browser at hand."""
    found = json.loads((written.parent / NUMBERS).read_text(encoding="utf-8"))
    lines = [f"not made under the same protocol: {line}" for line in found["differences_of_protocol"]]
    lines += found["notices"]
    lines += found["accuracy"]["notes"] if found["accuracy"] else []
    for verdict in found["verdicts"].values():
        lines += [f"{verdict['sentence']}.", *verdict["notes"]]
    return [found["headline"], *(f"- {words.plain(line)}" for line in lines)]


def build(
    runs: Sequence[Run],
    baseline: str,
    title: str,
    allow_different: bool = False,
    commands: Sequence[str] = (),
    target: Target = "problems like these",
    failed: Sequence[str] = (),
) -> Report:
    """Compute all that the page shows; see `write_report`."""
    groups = group_runs(runs, baseline, allow_different, failed)
    accuracy = judge(groups, check_target(target), CONFIDENCE)
    best, by_method = costs(groups, CONFIDENCE)
    return Report(
        title=title,
        groups=groups,
        confidence=CONFIDENCE,
        accuracy=accuracy,
        differences=_differences(groups, accuracy),
        ends={
            method: {
                "reward": end_of(group, reward, CONFIDENCE),
                "validation": final_validation(group, CONFIDENCE),
                "entropy": end_of(group, full_entropy, CONFIDENCE),
                "response_length": end_of(group, response_length, CONFIDENCE),
            }
            for method, group in groups.runs.items()
        },
        best=best,
        costs=by_method,
        cost_notes=cost_notes(groups),
        charts={
            "curves": learning_curves(groups, CONFIDENCE),
            "samples": [] if accuracy is None else accuracy_charts(groups, accuracy),
            "cost": cost_charts(groups, CONFIDENCE),
        },
        problems=choose_samples(groups),
        settings=differing_settings(groups),
        protocol=protocol_rows(groups),
        facts=run_facts(groups),
        commands=tuple(commands),
    )


def accuracy_charts(groups: Groups, accuracy: Accuracy) -> list[Chart]:
    """pass@k and the performance profiles."""
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
    low, high = (np.array([getattr(point, end) for point in points]) for end in ("low", "high"))
    known = bool(np.isfinite(low).any())
    return Line(place, x, np.array([p.value for p in points]), low if known else None, high if known else None)


def _differences(groups: Groups, accuracy: Accuracy | None) -> list[Interval]:
    found = [] if accuracy is None else accuracy.verdicts.items()
    return [
        Interval(groups.methods.index(method), estimate.value, estimate.low, estimate.high)
        for method, verdict in found
        if verdict.difference is not None and (estimate := verdict.difference.estimate)
    ]


def _earlier_pictures(folder: Path) -> list[str]:
    """Names of the pictures that an earlier report in this folder wrote; there may be others, which are not ours."""
    try:
        charts = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))["charts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [f"{Path(name).name}.png" for name in (*charts, DIFFERENCES)]


def _write_pictures(report: Report, folder: Path) -> None:
    methods = report.groups.methods
    for charts in report.charts.values():
        for chart in charts:
            figure = draw(chart, palette.LIGHT)
            add_heading(figure, chart, methods, palette.LIGHT)
            figure.savefig(folder / f"{chart.name}.png", dpi=DPI)
    if report.differences:
        label = page.difference_label(report)
        figure = draw_intervals(report.differences, methods, label, palette.LIGHT)
        figure.savefig(folder / f"{DIFFERENCES}.png", dpi=DPI)
