"""One chart as data, and how it is drawn: lines over an axis, or differences with their intervals."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from aent_verl import _util
from aent_verl._util import printable
from aent_verl.viewing import palette
from aent_verl.viewing.palette import Theme

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
    """One method's curve; values are NaN where it has none.

    Attributes:
        place: of its method: 0 is the baseline.
        x: [T].
        mean: [T], over the seeds.
        low: [T], lower end of the interval; None where there is none, as of one seed.
        high: [T], upper end.
        seeds: [S, T], one line a seed, drawn thin; empty to draw none.
    """

    place: int
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    seeds: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))


@dataclass(frozen=True)
class Level:
    """A method's entropy band or target, nats: a band has both ends, a target one value."""

    place: int
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """Lines of several methods.

    Attributes:
        name: of its files.
        title: heading.
        x_label: under the axis.
        lines: the curves.
        note: how to read it, under the chart.
        levels: bands and targets.
        log_x: whether x is drawn on a logarithm of base 2.
        x_ticks: where the ticks are; chosen if empty.
        whole_x: whether x has whole numbers only, as steps.
    """

    name: str
    title: str
    x_label: str
    lines: Sequence[Line]
    note: str = ""
    levels: Sequence[Level] = ()
    log_x: bool = False
    x_ticks: Sequence[float] = ()
    whole_x: bool = False


@dataclass(frozen=True)
class Interval:
    """A difference to the baseline with its interval; NaN ends where there is none."""

    place: int
    value: float
    low: float
    high: float


def draw(chart: Chart, theme: Theme) -> "Figure":
    """The chart in a theme's colours.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with _figure(theme) as (figure, panel):
        for level in chart.levels:
            _draw_level(panel, level, theme)
        for line in sorted(chart.lines, key=lambda line: line.place, reverse=True):
            _draw_line(panel, line, theme)
        if chart.log_x:
            panel.set_xscale("log", base=2)
        if len(chart.x_ticks):
            panel.set_xticks(chart.x_ticks, [f"{tick:g}" for tick in chart.x_ticks])
            panel.minorticks_off()
        if chart.whole_x:
            from matplotlib.ticker import MaxNLocator

            panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        panel.set_xlabel(chart.x_label)
        panel.margins(x=0.02)
        if chart.lines:
            panel.set_ylim(y_limits(chart))
    return figure


def y_limits(chart: Chart) -> tuple[float, float]:
    """Range of the axis: all lines and levels, and of the intervals as much as leaves the lines half of the height.

    The interval of two seeds can be a hundred times as wide as the curves are apart.
    """
    drawn = [each for line in chart.lines for each in (line.mean, line.seeds.ravel())]
    drawn += [np.array([level.low, level.high]) for level in chart.levels]
    values = np.concatenate(drawn)
    bounds = np.concatenate([e for line in chart.lines for e in (line.low, line.high) if e is not None] or [values])
    low, high = np.nanmin(values), np.nanmax(values)
    room = (high - low) / 2 or abs(high) / 20 or 0.05
    low, high = max(low - room, np.nanmin([low, *bounds])), min(high + room, np.nanmax([high, *bounds]))
    margin = 0.05 * (high - low) or room
    return float(low - margin), float(high + margin)


def draw_intervals(intervals: Sequence[Interval], methods: Sequence[str], x_label: str, theme: Theme) -> "Figure":
    """Differences to the baseline, one row a method, with a line at zero."""
    rows = len(intervals)
    with _figure(theme, height=0.75 + 0.33 * rows) as (figure, panel):
        panel.axvline(0, color=theme.ink, linewidth=1)
        for row, interval in enumerate(intervals):
            colour = theme.colour(interval.place)
            panel.plot([interval.low, interval.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
            for end in (interval.low, interval.high):
                panel.plot([end, end], [row - 0.13, row + 0.13], color=colour, linewidth=2.2)
            panel.plot([interval.value], [row], palette.marker(interval.place), color=colour, markersize=7)
        panel.set_yticks(range(rows), [_literal(methods[interval.place]) for interval in intervals])
        panel.tick_params(axis="y", length=0, labelcolor=theme.ink)
        panel.set_ylim(rows - 0.5, -0.5)
        panel.grid(visible=False, axis="y")
        panel.spines["left"].set_visible(False)
        panel.set_xlabel(x_label)
        panel.margins(x=0.06)
    return figure


def draw_key(place: int, theme: Theme) -> "Figure":
    """A piece of a method's line with its marker, for a legend."""
    with _figure(theme, height=0.18, width=0.5) as (figure, panel):
        panel.axis("off")
        style: dict[str, Any] = {"color": theme.colour(place), "clip_on": False}
        panel.plot([0, 1, 2], [0, 0, 0], linewidth=2.2, linestyle=palette.dash(place), **style)
        panel.plot([1], [0], palette.marker(place), markersize=6, **style)
    return figure


def add_heading(figure: "Figure", chart: Chart, methods: Sequence[str], theme: Theme) -> None:
    """Title and legend, for a picture that stands alone."""
    from matplotlib.lines import Line2D

    keys = [
        Line2D(
            [],
            [],
            color=theme.colour(place),
            linestyle=palette.dash(place),
            linewidth=2,
            marker=palette.marker(place),
            label=_literal(methods[place]),
        )
        for place in sorted({line.place for line in chart.lines})
    ]
    figure.axes[0].set_title(_literal(chart.title), loc="left", fontweight="bold", fontsize=FONT + 1)
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=FONT - 1, handlelength=3)


@contextmanager
def _figure(theme: Theme, width: float = SIZE[0], height: float = SIZE[1]) -> Iterator[tuple["Figure", "Axes"]]:
    _util.require("compare", "the report", "matplotlib")
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings: Any = {
        "font.size": FONT,
        "text.color": theme.ink,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "axes.facecolor": theme.paper,
        "figure.facecolor": theme.paper,
        "grid.color": theme.grid,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.labelcolor": theme.ink,
        "axes.formatter.use_mathtext": False,
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(settings):
        # A Figure of its own, without pyplot: no backend is chosen and no global state touched in the caller's process.
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
        yield figure, figure.subplots()


def _draw_level(panel: "Axes", level: Level, theme: Theme) -> None:
    colour = theme.colour(level.place)
    if level.low < level.high:
        panel.axhspan(level.low, level.high, facecolor=colour, alpha=0.13, linewidth=0, zorder=0, gid=_gid(level.place))
    for end in {level.low, level.high}:
        panel.axhline(end, color=colour, linewidth=1, linestyle=(0, (2, 2)), zorder=0.5, gid=_gid(level.place))


def _draw_line(panel: "Axes", line: Line, theme: Theme) -> None:
    colour, gid = theme.colour(line.place), _gid(line.place)
    if line.low is not None and line.high is not None:
        panel.fill_between(line.x, line.low, line.high, color=colour, alpha=0.17, linewidth=0, gid=gid)
    for seed in line.seeds:
        panel.plot(line.x, seed, color=colour, linewidth=0.7, alpha=0.45, gid=gid)
    panel.plot(line.x, line.mean, color=colour, linewidth=2, linestyle=palette.dash(line.place), gid=gid)
    there = np.flatnonzero(np.isfinite(line.mean))
    if not len(there):
        return
    # Staggered, so that methods on the same curve are all seen; the last value always has one.
    stride = max(1, -(-len(there) // MARKERS))
    marked = sorted({*there[len(there) - 1 - (line.place * stride // 4) % stride :: -stride].tolist(), int(there[-1])})
    panel.plot(
        line.x[marked], line.mean[marked], palette.marker(line.place), color=colour, markersize=4.5, gid=gid, zorder=3
    )


def _literal(text: str) -> str:
    """Text as it is: a dollar sign would start a formula."""
    return printable(text).replace("$", r"\$")


def _gid(place: int) -> str:
    return f".s{place}"
