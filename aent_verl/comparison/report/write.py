"""How a report is written: one self-contained HTML page, its numbers as JSON, its charts as pictures, and a few lines.

The page has no script, loads nothing, and suits light and dark, laptop and phone. Its charts are inline SVG in CSS
variables; the boxes of the legend show and hide methods by CSS alone.
"""

import datetime
import json
import math
from dataclasses import asdict, is_dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from aent_verl import __version__, _util
from aent_verl.comparison.report.accuracy import Accuracy
from aent_verl.comparison.report.contents import Report
from aent_verl.comparison.report.curves import MOST_THIN_LINES
from aent_verl.comparison.report.samples import RULE
from aent_verl.comparison.stats.crossed import Estimate
from aent_verl.viewing.charts import Chart, add_heading, draw, draw_intervals, draw_key
from aent_verl.viewing.pages import NOTHING, amount, decimal, inline_svg, p_value, template
from aent_verl.viewing.palette import DARK, LIGHT, STANDING_IN, variables

PAGE = "report.html"
NUMBERS = "report.json"
FIGURES = "figures"
DIFFERENCES = "differences"
FORMAT = 1
# Of the PNGs.
DPI = 160
_SAID = {
    "better": "{methods} {are} better than {baseline}",
    "worse": "{methods} {are} worse than {baseline}",
    "not resolved": "not resolved: {methods}",
    "refused": "no claim: {methods}",
}
SIGNS = {"better": "▲", "worse": "▼", "not resolved": "?", "refused": "○"}


def write_report(report: Report, folder: str | Path) -> Path:
    """Write ``report.html``, ``report.json`` and ``figures/*.png`` into a folder.

    Args:
        report: what `aent_verl.comparison.report.build` made.
        folder: made if missing; files of an earlier report in it are replaced.

    Returns:
        The page's path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder = Path(folder)
    figures = folder / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    for name in _earlier_pictures(folder):
        (figures / name).unlink(missing_ok=True)
    methods = report.groups.methods
    for chart in chain.from_iterable(report.charts.values()):
        figure = draw(chart, LIGHT)
        add_heading(figure, chart, methods, LIGHT)
        figure.savefig(figures / f"{chart.name}.png", dpi=DPI)
    if report.differences:
        figure = draw_intervals(report.differences, methods, _difference_label(report), LIGHT)
        figure.savefig(figures / f"{DIFFERENCES}.png", dpi=DPI)
    (folder / NUMBERS).write_text(as_json(report), encoding="utf-8", newline="\n")
    (folder / PAGE).write_text(render(report), encoding="utf-8", newline="\n")
    return folder / PAGE


def answer(written: Path) -> list[str]:
    """Read back, line by line, what a report that `write_report` wrote says, for those without a browser."""
    found = json.loads((written.parent / NUMBERS).read_text(encoding="utf-8"))
    lines = [f"not made under the same protocol: {line}" for line in found["differences_of_protocol"]]
    lines += found["notices"]
    lines += found["accuracy"]["notes"] if found["accuracy"] else []
    for verdict in found["verdicts"].values():
        lines += [f"{verdict['sentence']}.", *verdict["notes"]]
    return [found["headline"], *(f"- {plain(line)}" for line in lines)]


def render(report: Report) -> str:
    """Render the page."""
    page = template(__package__, decimal, p_value, amount, ends, duration, plain, _dotted)
    methods = report.groups.methods
    return page.render(
        report=report,
        groups=report.groups,
        accuracy=report.accuracy,
        methods=methods,
        headline=headline(report.accuracy, report.groups.baseline),
        place={method: place for place, method in enumerate(methods)},
        keys=[inline_svg(draw_key(place, STANDING_IN), f"line{place}", "") for place in range(len(methods))],
        svg=partial(_svg, methods=methods),
        forest=_forest(report),
        signs=SIGNS,
        passes=_passes(report),
        rule=RULE,
        most_thin=MOST_THIN_LINES,
        themes={"light": variables(LIGHT), "dark": variables(DARK)},
        version=__version__,
        today=datetime.date.today().isoformat(),
    )


def ends(found: Estimate | None, signed: bool = False) -> str:
    """Write the interval of an estimate in brackets; empty where it has none, as of one seed."""
    if found is None or math.isnan(found.low):
        return ""
    return f"[{decimal(found.low, signed)}, {decimal(found.high, signed)}]"


def duration(seconds: float | None) -> str:
    """Write two units of time, as "3 h 20 min"; a dash for None and NaN."""
    return NOTHING if seconds is None or math.isnan(seconds) else _util.duration(seconds)


def plain(text: object) -> str:
    """Replace every invisible character of a foreign text with a sign."""
    return _util.printable(str(text))


def headline(accuracy: Accuracy | None, baseline: str | None) -> str:
    """Write the whole answer in one line."""
    if accuracy is None:
        return "Nothing can be said about accuracy: no run holds an evaluation or validation of its final model."
    if not accuracy.verdicts:
        return "Nothing is compared: that takes a baseline, another method, and several seeds of each."
    parts = []
    for state, form in _SAID.items():
        named = [plain(method) for method, verdict in accuracy.verdicts.items() if verdict.state == state]
        if named:
            methods = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
            are = "are" if len(named) > 1 else "is"
            parts.append(form.format(methods=methods, are=are, baseline=plain(baseline)))
    said = "; ".join(parts)
    return f"{said[0].upper() if said.startswith(('not resolved: ', 'no claim: ')) else said[0]}{said[1:]}."


def as_json(report: Report) -> str:
    """Write the report's numbers; what is not known or not finite is null."""
    groups, accuracy = report.groups, report.accuracy
    found = {key: value for key, value in vars(report).items() if key not in ("groups", "accuracy", "charts")}
    found |= {
        "format": FORMAT,
        "baseline": groups.baseline,
        "headline": headline(accuracy, groups.baseline),
        "differences_of_protocol": groups.differences,
        "notices": groups.notices,
        "verdicts": {} if accuracy is None else {m: _verdict(v) for m, v in accuracy.verdicts.items()},
        "accuracy": None if accuracy is None else {k: v for k, v in vars(accuracy).items() if k != "verdicts"},
        "charts": {chart.name: _chart(chart, groups.methods) for chart in chain.from_iterable(report.charts.values())},
    }
    text = json.dumps(_plain(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A lone surrogate of a model's cannot be written.
    return text.encode("utf-8", "replace").decode()


def _earlier_pictures(folder: Path) -> list[str]:
    """List the pictures that an earlier report wrote into this folder; any others are not ours."""
    try:
        charts = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))["charts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [f"{Path(name).name}.png" for name in (*charts, DIFFERENCES)]


def _difference_label(report: Report) -> str:
    """Say what the chart of the differences shows."""
    assert report.accuracy is not None
    return f"difference to {report.groups.baseline} in {report.accuracy.metric}"


def _svg(chart: Chart, methods: list[str]) -> Markup:
    shown = ", ".join(plain(methods[line.place]) for line in chart.lines)
    return inline_svg(draw(chart, STANDING_IN), chart.name, f"{chart.title} over {chart.x_label}: {shown}")


def _forest(report: Report) -> Markup | None:
    if not report.differences:
        return None
    label = _difference_label(report)
    figure = draw_intervals(report.differences, report.groups.methods, label, STANDING_IN)
    return inline_svg(figure, "differences", f"{plain(label)}, with {report.confidence:.0%} intervals")


def _passes(report: Report) -> list[int]:
    """Return the k of pass@k that tables show: powers of two, and n."""
    samples = 1 if report.accuracy is None else report.accuracy.samples or 1
    return sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})


def _dotted(key: str) -> Markup:
    """Let a setting's key break after its dots."""
    return Markup(".<wbr>").join(plain(key).split("."))


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
    """Reduce to JSON's types."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
