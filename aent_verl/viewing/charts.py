"""One chart as data, and how it is drawn: lines over an axis, or differences with their intervals."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from aent_verl._util import printable, require
from aent_verl.viewing.palette import Theme, dash, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches; an SVG has 72 pixels an inch. As wide as a phone, so that it is drawn at its own size there.
SIZE = (5.1, 3.2)
FONT = 11.5
# Markers of a line; more would merge.
MARKERS = 9


@dataclass(frozen=True)
class Line:
    """One curve, of a method or a metric; values are NaN where it has none.

    Attributes:
        place: gives its look; of a method: 0 is the baseline.
        x: [T].
        mean: [T], over the seeds.
        low: [T], lower end of the interval; None where there is none, as of one seed.
        high: [T], upper end.
        seeds: [S, T], one line per seed, drawn thin; empty to draw none.
        label: in the legend of a picture of one run.
        marked: whether some values get a marker; those that stand alone always do.
        style: what its look differs in from that of its place, for matplotlib.
    """

    place: int
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    seeds: Sequence[np.ndarray] | np.ndarray = ()
    label: str = ""
    marked: bool = True
    style: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Level:
    """A band, which has both ends, or a target or bound, which is one value; with place None it belongs to no line.

    It reaches over all x, or from ``start`` to ``end``.
    """

    place: int | None
    low: float
    high: float
    label: str = ""
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Mark:
    """Something that happened at ``x``, with a text along its line."""

    x: float
    text: str = ""


@dataclass(frozen=True)
class Chart:
    """Lines over one axis.

    Attributes:
        name: of its files.
        title: heading.
        x_label: under the axis.
        lines: the curves.
        note: how to read it, under the chart.
        levels: bands and targets.
        marks: what happened on the way.
        log_x: whether x is drawn on a logarithm of base 2.
        x_ticks: where the ticks are; chosen if empty.
        whole_x: whether x has whole numbers only, as steps.
        y_label: left of the axis.
    """

    name: str
    title: str
    x_label: str
    lines: Sequence[Line]
    note: str = ""
    levels: Sequence[Level] = ()
    marks: Sequence[Mark] = ()
    log_x: bool = False
    x_ticks: Sequence[float] = ()
    whole_x: bool = False
    y_label: str = ""


@dataclass(frozen=True)
class Interval:
    """A difference to the baseline with its interval; NaN ends where there is none."""

    place: int
    value: float
    low: float
    high: float


def draw(chart: Chart, theme: Theme) -> "Figure":
    """Draw the chart in a theme's colours.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with new_figure(theme) as (figure, panel):
        draw_on(panel, chart, theme)
    return figure


def draw_on(panel: "Axes", chart: Chart, theme: Theme) -> None:
    """Draw the chart on a panel of a figure."""
    for level in chart.levels:
        _draw_level(panel, level, theme)
    for line in sorted(chart.lines, key=lambda line: line.place, reverse=True):
        draw_line(panel, line, theme)
    if chart.log_x:
        panel.set_xscale("log", base=2)
    if len(chart.x_ticks):
        panel.set_xticks(chart.x_ticks, [f"{tick:g}" for tick in chart.x_ticks])
        panel.minorticks_off()
    if chart.whole_x:
        from matplotlib.ticker import MaxNLocator

        panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    panel.set_xlabel(chart.x_label)
    panel.set_ylabel(chart.y_label)
    panel.margins(x=0.02)
    panel.set_ylim(y_limits(chart))
    for mark in chart.marks:
        panel.axvline(mark.x, color=theme.muted, linewidth=1, linestyle=":", zorder=0.7)
        place: dict[str, Any] = {"xy": (mark.x, 1), "xycoords": ("data", "axes fraction"), "xytext": (3, -3)}
        look: dict[str, Any] = {"color": theme.muted, "fontsize": FONT - 2.5, "rotation": 90, "ha": "left", "va": "top"}
        look["bbox"] = {"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        panel.annotate(_literal(mark.text), textcoords="offset points", **place, **look)


def y_limits(chart: Chart) -> tuple[float, float]:
    """Fit the axis to all lines and levels, and to as much of the intervals as leaves the lines half of the height.

    The interval of two seeds can be a hundred times as wide as the curves are apart. Without a finite value: 0 to 1.
    """
    values = [np.ravel(each) for line in chart.lines for each in (line.mean, line.seeds)]
    values += [np.array([level.low, level.high]) for level in chart.levels]
    ends = [end for line in chart.lines for end in (line.low, line.high) if end is not None]
    drawn, bounds = _finite(values), _finite([*values, *ends])
    if not len(drawn):
        return 0.0, 1.0
    low, high = drawn.min(), drawn.max()
    room = (high - low) / 2 or abs(high) / 20 or 0.05
    low, high = max(low - room, bounds.min()), min(high + room, bounds.max())
    margin = 0.05 * (high - low) or room
    return float(low - margin), float(high + margin)


def draw_intervals(intervals: Sequence[Interval], methods: Sequence[str], x_label: str, theme: Theme) -> "Figure":
    """Draw differences to the baseline, one row for each method, with a line at zero."""
    rows = len(intervals)
    with new_figure(theme, height=0.75 + 0.33 * rows) as (figure, panel):
        panel.axvline(0, color=theme.ink, linewidth=1)
        for row, one in enumerate(intervals):
            look: dict[str, Any] = {"color": theme.colour(one.place), "fmt": marker(one.place)}
            widths = [[one.value - one.low], [one.high - one.value]]
            panel.errorbar(one.value, row, xerr=widths, markersize=7, elinewidth=2.2, capsize=4.5, capthick=2.2, **look)
        panel.set_yticks(range(rows), [_literal(methods[interval.place]) for interval in intervals])
        panel.tick_params(axis="y", length=0, labelcolor=theme.ink)
        panel.set_ylim(rows - 0.5, -0.5)
        panel.grid(visible=False, axis="y")
        panel.spines["left"].set_visible(False)
        panel.set_xlabel(x_label)
        panel.margins(x=0.06)
    return figure


def draw_key(place: int, theme: Theme) -> "Figure":
    """Draw a piece of a method's line with its marker, for a legend."""
    with new_figure(theme, height=0.18, width=0.5) as (figure, panel):
        panel.axis("off")
        style: dict[str, Any] = {"color": theme.colour(place), "clip_on": False}
        panel.plot([0, 1, 2], [0, 0, 0], linewidth=2.2, linestyle=dash(place), **style)
        panel.plot([1], [0], marker(place), markersize=6, **style)
    return figure


def add_heading(figure: "Figure", chart: Chart, methods: Sequence[str], theme: Theme) -> None:
    """Add title and legend, for a picture that stands alone."""
    from matplotlib.lines import Line2D

    places = sorted({line.place for line in chart.lines})
    looks = [{"color": theme.colour(place), "linestyle": dash(place), "marker": marker(place)} for place in places]
    keys = [Line2D([], [], linewidth=2, **look) for look in looks]
    names = [_literal(methods[place]) for place in places]
    set_title(figure.axes[0], chart.title)
    figure.legend(keys, names, loc="outside lower center", ncols=3, frameon=False, fontsize=FONT - 1, handlelength=3)


def set_title(panel: "Axes", title: str) -> None:
    """Set a title over the left end of a panel."""
    panel.set_title(_literal(title), loc="left", fontweight="bold", fontsize=FONT + 1)


@contextmanager
def new_figure(
    theme: Theme, width: float = SIZE[0], height: float = SIZE[1], pad: float = 0.03, **panels: Any
) -> Iterator[tuple["Figure", Any]]:
    """Yield a figure and its panel, or panels; everything drawn inside the block has the theme's colours.

    Args:
        theme: the colours.
        width: inches.
        height: inches.
        pad: inches around each panel.
        panels: for `matplotlib.figure.Figure.subplots`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require("compare", "the plot", "matplotlib")
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings: Any = {"font.size": FONT, "grid.color": theme.grid}
    settings |= dict.fromkeys(("text.color", "axes.titlecolor", "legend.labelcolor"), theme.ink)
    settings |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), theme.muted)
    settings |= dict.fromkeys(("axes.facecolor", "figure.facecolor"), theme.paper)
    settings |= dict.fromkeys(("axes.grid", "axes.axisbelow", "axes.unicode_minus"), True)
    settings |= dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.formatter.use_mathtext"), False)
    with matplotlib.rc_context(settings):
        # A Figure of its own, without pyplot: no backend is chosen and no global state touched in the caller's process.
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=pad, h_pad=pad))
        yield figure, figure.subplots(**panels)


def draw_line(panel: "Axes", line: Line, theme: Theme) -> None:
    """Draw one curve: interval, single seeds, mean and markers."""
    look: dict[str, Any] = {"color": theme.colour(line.place), "gid": _gid(line.place)}
    if line.low is not None and line.high is not None:
        panel.fill_between(line.x, line.low, line.high, alpha=0.17, linewidth=0, **look)
    for seed in line.seeds:
        panel.plot(line.x, seed, linewidth=0.7, alpha=0.45, **look)
    style = {"linewidth": 2, "linestyle": dash(line.place), "label": line.label} | look | dict(line.style)
    panel.plot(line.x, line.mean, **style)
    marked = _marked(line)
    if len(marked):
        panel.plot(line.x[marked], line.mean[marked], marker(line.place), markersize=4.5, zorder=3, **look)


def _marked(line: Line) -> list[int]:
    """Choose the values that get a marker: those that stand alone, which no line shows, and others if asked for."""
    finite = np.pad(np.isfinite(line.mean), 1)
    alone = np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:]).tolist()
    there = np.flatnonzero(finite[1:-1]).tolist()
    if not line.marked or not there:
        return alone
    # Staggered, so that methods on the same curve are all seen; the last value always has one.
    stride = max(1, -(-len(there) // MARKERS))
    return sorted({*alone, *there[len(there) - 1 - (line.place * stride // 4) % stride :: -stride], there[-1]})


def _draw_level(panel: "Axes", level: Level, theme: Theme) -> None:
    colour, gid = (theme.muted, None) if level.place is None else (theme.colour(level.place), _gid(level.place))
    look: dict[str, Any] = {"gid": gid, "label": level.label}
    if level.low < level.high:
        area: dict[str, Any] = {"facecolor": colour, "alpha": 0.13, "linewidth": 0, "zorder": 0}
        if level.start is None or level.end is None:
            panel.axhspan(level.low, level.high, **area, **look)
        else:
            panel.fill_between([level.start, level.end], level.low, level.high, **area, **look)
        look["label"] = ""
    for end in {level.low, level.high}:
        line: dict[str, Any] = {"color": colour, "linewidth": 1, "linestyle": (0, (2, 2)), "zorder": 0.6}
        if level.start is None or level.end is None:
            panel.axhline(end, **line, **look)
        else:
            panel.plot([level.start, level.end], [end, end], **line, **look)


def _finite(parts: Sequence[np.ndarray]) -> np.ndarray:
    values = np.concatenate([[], *parts])
    return values[np.isfinite(values)]


def _literal(text: str) -> str:
    """Keep text as it is: a dollar sign would start a formula."""
    return printable(text).replace("$", r"\$")


def _gid(place: int) -> str:
    return f".s{place}"
