"""The files of a report: page, JSON and pictures; and the answer in a few lines."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aent_verl.comparison.report import page
from aent_verl.comparison.report.contents import Report, build
from aent_verl.comparison.stats.crossed import Target
from aent_verl.runs.run import Run
from aent_verl.viewing import palette
from aent_verl.viewing.charts import Chart, add_heading, draw, draw_intervals

PAGE = "report.html"
NUMBERS = "report.json"
FIGURES = "figures"
DIFFERENCES = "differences"
FORMAT = 1
# Of the PNGs.
DPI = 160


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
    (folder / NUMBERS).write_text(as_json(report), encoding="utf-8", newline="\n")
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
    return [found["headline"], *(f"- {page.plain(line)}" for line in lines)]


def as_json(report: Report) -> str:
    """The report's numbers; what is not known, or no finite number, is null."""
    groups, accuracy = report.groups, report.accuracy
    found = {key: value for key, value in vars(report).items() if key not in ("groups", "accuracy", "charts")}
    found |= {
        "format": FORMAT,
        "baseline": groups.baseline,
        "headline": page.headline(accuracy, groups.baseline),
        "differences_of_protocol": groups.differences,
        "notices": groups.notices,
        "verdicts": {} if accuracy is None else {m: _verdict(v) for m, v in accuracy.verdicts.items()},
        "accuracy": None if accuracy is None else {k: v for k, v in vars(accuracy).items() if k != "verdicts"},
        "charts": {chart.name: _chart(chart, groups.methods) for each in report.charts.values() for chart in each},
    }
    text = json.dumps(_plain(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A lone surrogate of a model's cannot be written.
    return text.encode("utf-8", "replace").decode()


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


def _verdict(verdict: Any) -> dict[str, Any]:
    found = {key: value for key, value in asdict(verdict).items() if key != "difference"}
    difference = verdict.difference
    if difference is not None:
        found |= {**asdict(difference.estimate), "p_value": difference.p_value, "seeds": difference.seeds}
    return found | {"sentence": verdict.sentence}


def _chart(chart: Chart, methods: list[str]) -> dict[str, Any]:
    lines = {
        methods[line.place]: {"x": line.x, "mean": line.mean, "low": line.low, "high": line.high}
        for line in chart.lines
    }
    levels = {methods[level.place]: [level.low, level.high] for level in chart.levels if level.place is not None}
    return {"title": chart.title, "x_label": chart.x_label, "note": chart.note, "lines": lines, "levels": levels}


def _plain(value: Any) -> Any:
    """Only what JSON has."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
