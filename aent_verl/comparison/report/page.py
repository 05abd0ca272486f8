"""The report as one self-contained HTML page: no script, nothing loaded, light and dark, laptop and phone.

Charts are inline SVG in CSS variables. The boxes of the legend show and hide methods by CSS alone.
"""

import datetime
import math
from collections.abc import Callable
from functools import partial

from markupsafe import Markup

from aent_verl import __version__, _util
from aent_verl.comparison.report.accuracy import Accuracy
from aent_verl.comparison.report.contents import Report
from aent_verl.comparison.report.curves import MOST_THIN_LINES
from aent_verl.comparison.report.samples import RULE
from aent_verl.comparison.stats.crossed import Estimate
from aent_verl.viewing.charts import Chart, draw, draw_intervals, draw_key
from aent_verl.viewing.pages import NOTHING, amount, decimal, inline_svg, p_value, template
from aent_verl.viewing.palette import DARK, LIGHT, STANDING_IN, variables

SIGNS = {"better": "▲", "worse": "▼", "not resolved": "?", "refused": "○"}


def render(report: Report) -> str:
    """The page."""
    written: dict[str, Callable[..., str]] = {
        "decimal": decimal,
        "p_value": p_value,
        "amount": amount,
        "ends": ends,
        "duration": duration,
    }
    page = template(__package__, **written, plain=plain, dotted=_dotted)
    methods = report.groups.methods
    return page.render(
        report=report,
        groups=report.groups,
        accuracy=report.accuracy,
        methods=methods,
        headline=headline(report.accuracy, report.groups.baseline),
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


def ends(found: Estimate | None, signed: bool = False) -> str:
    """The interval of an estimate in brackets; empty where it has none, as of one seed."""
    if found is None or math.isnan(found.low):
        return ""
    return f"[{decimal(found.low, signed)}, {decimal(found.high, signed)}]"


def duration(seconds: float | None) -> str:
    """Two units of time, as "3 h 20 min"; a dash for None and NaN."""
    return NOTHING if seconds is None or math.isnan(seconds) else _util.duration(seconds)


def plain(text: object) -> str:
    """Text that others wrote, with a sign for every character that is not seen."""
    return _util.printable(str(text))


def enumerated(items: list[str]) -> str:
    """Items as in "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def headline(accuracy: Accuracy | None, baseline: str | None) -> str:
    """The whole answer in one line."""
    if accuracy is None:
        return "Nothing can be said about accuracy: no run holds an evaluation or validation of its final model."
    if not accuracy.verdicts:
        return "Nothing is compared: that takes a baseline, another method, and several seeds of each."
    by_state: dict[str, list[str]] = {}
    for method, verdict in accuracy.verdicts.items():
        by_state.setdefault(verdict.state, []).append(plain(method))
    parts = [
        f"{enumerated(by_state[state])} {'is' if len(by_state[state]) == 1 else 'are'} {state} than {plain(baseline)}"
        for state in ("better", "worse")
        if state in by_state
    ]
    if "not resolved" in by_state:
        parts.append(f"not resolved: {enumerated(by_state['not resolved'])}")
    if "refused" in by_state:
        parts.append(f"no claim: {enumerated(by_state['refused'])}")
    said = "; ".join(parts)
    return f"{said[0].upper() if parts[0].startswith(('not', 'no ')) else said[0]}{said[1:]}."


def difference_label(report: Report) -> str:
    """What the chart of the differences shows."""
    assert report.accuracy is not None
    return f"difference to {report.groups.baseline} in {report.accuracy.metric}"


def _svg(chart: Chart, methods: list[str]) -> Markup:
    shown = ", ".join(plain(methods[line.place]) for line in chart.lines)
    return inline_svg(draw(chart, STANDING_IN), chart.name, f"{chart.title} over {chart.x_label}: {shown}")


def _forest(report: Report) -> Markup | None:
    if not report.differences:
        return None
    label = difference_label(report)
    figure = draw_intervals(report.differences, report.groups.methods, label, STANDING_IN)
    return inline_svg(figure, "differences", f"{plain(label)}, with {report.confidence:.0%} intervals")


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
    return Markup(".<wbr>").join(plain(key).split("."))


def _range(values: list[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
