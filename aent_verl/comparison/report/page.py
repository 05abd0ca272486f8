"""The report as one self-contained HTML page: no script, nothing loaded, light and dark, laptop and phone.

Charts are inline SVG in CSS variables. The boxes of the legend show and hide methods by CSS alone.
"""

from __future__ import annotations

import datetime
from functools import partial
from typing import TYPE_CHECKING

from markupsafe import Markup

from aent_verl import __version__
from aent_verl.comparison.report import words
from aent_verl.comparison.report.curves import MOST_THIN_LINES
from aent_verl.comparison.report.samples import RULE
from aent_verl.viewing.charts import Chart, draw, draw_intervals, draw_key
from aent_verl.viewing.pages import amount, decimal, inline_svg, p_value, template
from aent_verl.viewing.palette import DARK, LIGHT, STANDING_IN, variables

if TYPE_CHECKING:
    from aent_verl.comparison.report.report import Report

SIGNS = {"better": "▲", "worse": "▼", "not resolved": "?", "refused": "○"}


def render(report: Report) -> str:
    """The page."""
    page = template(
        __package__,
        decimal=decimal,
        p_value=p_value,
        amount=amount,
        ends=words.ends,
        duration=words.duration,
        plain=words.plain,
        dotted=_dotted,
    )
    methods = report.groups.methods
    seeds = {method: [run.seed for run in runs] for method, runs in report.groups.runs.items()}
    return page.render(
        report=report,
        groups=report.groups,
        accuracy=report.accuracy,
        methods=methods,
        seeds=seeds,
        headline=words.headline(report.accuracy, report.groups.baseline),
        size=_size(report),
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


def difference_label(report: Report) -> str:
    """What the chart of the differences shows."""
    assert report.accuracy is not None
    return f"difference to {report.groups.baseline} in {report.accuracy.metric}"


def _svg(chart: Chart, methods: list[str]) -> Markup:
    shown = ", ".join(words.plain(methods[line.place]) for line in chart.lines)
    return inline_svg(draw(chart, STANDING_IN), chart.name, f"{chart.title} over {chart.x_label}: {shown}")


def _forest(report: Report) -> Markup | None:
    if not report.differences:
        return None
    label = difference_label(report)
    figure = draw_intervals(report.differences, report.groups.methods, label, STANDING_IN)
    return inline_svg(figure, "differences", f"{words.plain(label)}, with {report.confidence:.0%} intervals")


def _size(report: Report) -> str:
    """How much the comparison is, in a line."""
    runs, accuracy = report.groups.all, report.accuracy
    seeds = sorted({len(group) for group in report.groups.runs.values()})
    steps = sorted({run.last_step for run in runs})
    methods = len(report.groups.methods)
    parts = [
        f"{methods} method{'s' if methods > 1 else ''}",
        f"{_range(seeds)} seed{'s' if seeds != [1] else ''}{' each' if methods > 1 else ''}",
        f"{_range(steps)} step{'s' if steps != [1] else ''}",
    ]
    if accuracy is not None and accuracy.problems is not None:
        parts.append(f"{accuracy.problems:,} problems, {accuracy.samples} responses each")
    return " · ".join(parts)


def _passes(report: Report) -> list[int]:
    """The k of pass@k that tables show: powers of two, and n."""
    samples = 1 if report.accuracy is None else report.accuracy.samples or 1
    return sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})


def _dotted(key: str) -> Markup:
    """A setting's key, which may be broken after its dots."""
    return Markup(".<wbr>").join(words.plain(key).split("."))


def _range(values: list[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
