"""One picture of a run: reward and validation accuracy, entropy with its band, coefficient, over the training steps."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aent_verl.runs import live_changes, metrics
from aent_verl.runs.live_changes import Change
from aent_verl.viewing.charts import FONT, Chart, Level, Line, Mark, draw_line, draw_on, new_figure, set_title
from aent_verl.viewing.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "plot.png"
# What Hydra wrote of the run's config, in the run's folder; the values may still be interpolations.
CONFIG = Path("hydra", "config.yaml")
# Places in the palette: of the main curve, validation, band or target, and a second curve.
_MAIN, _VALIDATION, _AIM, _SECOND = 1, 2, 3, 4

_CONTROLLER = "entropy_control.bonus.controller"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What the picture says about a run beyond its metrics; None where it is not known or does not apply.

    Attributes:
        title: heading of the picture.
        functional: name of the entropy that the controller sees.
        target: entropy that the controller steps towards, nats.
        low: lower end of the entropy band, nats.
        high: upper end of the entropy band, nats.
        min: lower bound of the coefficient.
        max: upper bound of the coefficient.
        changes: what `aent-verl set` changed while the run trained, of these settings or others.
    """

    title: str
    functional: str | None = None
    target: float | None = None
    low: float | None = None
    high: float | None = None
    min: float | None = None
    max: float | None = None
    changes: Sequence[Change] = ()

    def over(self, steps: Sequence[int]) -> list[tuple[float | None, float | None, "Setting"]]:
        """Return the settings over the steps: where each is in force from and to, None where it always is."""
        pieces: list[tuple[float | None, float | None, Setting]] = [(None, None, self)]
        for change in self.changes:
            block, _, name = change.key.rpartition(".")
            if block != _CONTROLLER or name not in (field.name for field in fields(self)):
                continue
            start, _, before = pieces.pop()
            start, at = min(steps) - 0.5 if start is None else start, change.step - 0.5
            # Two settings that were changed at the same step have no piece between them.
            pieces += [(start, at, before)] if start < at else []
            pieces.append((at, max(steps) + 0.5, replace(before, **{name: change.new})))
        return pieces


def plot_run(folder: str | Path, output: str | Path | None = None) -> Path:
    """Draw the run in ``folder`` and return where the PNG is.

    Args:
        folder: the run's folder, with its ``metrics.jsonl``.
        output: the file to write; ``plot.png`` in the run's folder if not given.

    Raises:
        ImportError: matplotlib is not installed.
        FileNotFoundError, ValueError: no metrics to draw (see `read_run`), or a band whose ends are not low <= high.
    """
    folder = Path(folder)
    picture = figure(metrics.read_run(folder), read_setting(folder))
    output = folder / PICTURE if output is None else Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(output, format="png", dpi=150)
    return output


def read_setting(folder: Path) -> Setting:
    """Read the run's setting from its config; only the folder's name for a run without a config file."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = folder / CONFIG
    if not path.is_file():
        return Setting(title=folder.resolve().name)
    config = OmegaConf.load(path)

    def value(key: str) -> Any:
        try:
            return OmegaConf.select(config, key)
        except OmegaConfBaseException as error:
            logger.warning("%s: %s is left out of the plot: %s", path, key, error)
            return None

    changes: Sequence[Change] = ()
    for place in (folder / "checkpoints", Path(str(value("trainer.default_local_dir")))):
        try:
            changes = changes or tuple(live_changes.read(place))
        except ValueError as error:
            logger.warning("changes are left out of the plot: %s", error)
    method = value("entropy_control.method")
    name = value("trainer.experiment_name") or folder.resolve().name
    return Setting(
        title=f"{method}: {name}" if method else name,
        functional=value("entropy_control.functional.name"),
        **{key: value(f"{_CONTROLLER}.{key}") for key in ("target", "low", "high", "min", "max")},
        changes=changes,
    )


def figure(steps: dict[int, metrics.Metrics], setting: Setting) -> "Figure":
    """Draw a run's steps: three panels that share the training step.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a band whose ends are not low <= high.
    """
    if setting.low is not None and setting.high is not None and not setting.low <= setting.high:
        raise ValueError(f"band=({setting.low!r}, {setting.high!r}) is not allowed: must be low <= high, in nats")
    last_chart, weight = _coefficient(steps, setting)
    charts = (_reward(steps), _entropy(steps, setting), last_chart)
    layout: Any = {"pad": 0.1, "nrows": len(charts), "sharex": True, "height_ratios": (1.2, 1.2, 0.8)}
    with new_figure(LIGHT, 8, 8.4, **layout) as (picture, panels):
        for panel, chart in zip(panels, charts, strict=True):
            draw_on(panel, chart, LIGHT)
            set_title(panel, chart.title)
            _add_legend(panel, chart)
        for line in weight:
            right = panels[2].twinx()
            draw_line(right, line, LIGHT)
            right.set_ylim(-0.05, 1.05)
            right.set_ylabel("weight", color=LIGHT.colour(line.place))
        margin = max(0.5, 0.02 * (max(steps) - min(steps)))
        panels[2].set_xlim(min(steps) - margin, max(steps) + margin)
        picture.align_ylabels(panels)
        picture.suptitle(setting.title, fontsize=15, fontweight="bold")
    return picture


def _reward(steps: dict[int, metrics.Metrics]) -> Chart:
    reward = _values(steps, metrics.REWARD)
    window = min(max(5, len(reward) // 20), 25)
    lines = _line(_MAIN, "reward", reward, linewidth=1, alpha=0.45)
    if len(reward) >= window:
        means = dict(zip(reward, _moving_mean([*reward.values()], window), strict=True))
        lines += _line(_MAIN, f"mean of {window} steps", means, linewidth=2.4)
    accuracy = {step: value for step, data in steps.items() if (value := metrics.validation_accuracy(data)) is not None}
    # Its markers are not clipped: also at the first and last step, and at 0, they are whole.
    look = {"linestyle": ":", "linewidth": 1.2, "marker": "D", "markersize": 7, "clip_on": False, "zorder": 3}
    lines += _line(_VALIDATION, "validation accuracy", accuracy, **look)
    return Chart("reward", "Reward", "", lines, y_label="reward, accuracy")


def _entropy(steps: dict[int, metrics.Metrics], setting: Setting) -> Chart:
    name = f"{setting.functional} entropy" if setting.functional else "controlled entropy"
    lines = _line(_MAIN, name, _values(steps, metrics.ENTROPY))
    # Where the configured functional is the full entropy, a second line would only hide the first.
    if setting.functional != "full":
        lines += _line(_SECOND, "full entropy", _values(steps, metrics.ENTROPY_FULL), linestyle="--")
    levels = []
    for start, end, one in setting.over([*steps]):
        if one.low is not None and one.high is not None:
            levels.append(Level(_AIM, one.low, one.high, f"band {one.low:g} to {one.high:g} nats", start, end))
        if one.target is not None:
            levels.append(Level(_AIM, one.target, one.target, f"target {one.target:g} nats", start, end))
    # What it was changed to stands beside the mark.
    levels[1:] = [replace(level, label="") for level in levels[1:]]
    if initial := [*_values(steps, metrics.INITIAL_ENTROPY).values()]:
        levels.append(Level(None, initial[-1], initial[-1], "before training"))
    marks = [Mark(step - 0.5, text) for step, text in _changes(setting).items()]
    return Chart("entropy", "Entropy", "", lines, levels=levels, marks=marks, y_label="entropy (nats)")


def _changes(setting: Setting) -> dict[int, str]:
    """Write what was changed while the run trained, by the first step that it is in force for."""
    texts: dict[int, list[str]] = {}
    for change in setting.changes:
        words = [word for word in change.key.split(".")[1:] if word not in ("bonus", "controller")]
        value = f"{change.new:g}" if isinstance(change.new, float) else str(change.new)
        texts.setdefault(change.step, []).append(f"{'.'.join(words)}={value}")
    return {step: ", ".join(each) for step, each in texts.items()}


def _coefficient(steps: dict[int, metrics.Metrics], setting: Setting) -> tuple[Chart, list[Line]]:
    """Make the chart, and a line with its own scale: a weight is of the order of 1, a coefficient of a hundredth."""
    coefficient, weights = _values(steps, metrics.COEFFICIENT), _values(steps, metrics.ADVANTAGES_COEFFICIENT)
    title, label = "Entropy coefficient", "coefficient"
    levels: list[Level] = []
    lines = _line(_MAIN, label, coefficient, drawstyle="steps-mid")
    weight = _line(_SECOND, "weight of A > 0", weights, linestyle="--", drawstyle="steps-mid")
    if all(value == 1 for value in weights.values()):
        weight = []
    elif any(coefficient.values()):
        title = "Coefficients"
        # In the legend of the panel below.
        lines = [replace(line, x=np.empty(0), mean=np.empty(0)) for line in weight] + lines
    else:
        title, label = "Weight of advantages", "weight"
        lines, coefficient, weight = _line(_MAIN, weight[0].label, weights, drawstyle="steps-mid"), {}, []
    if coefficient:
        for start, end, one in setting.over([*steps]):
            bounds = [bound for bound in (one.min, one.max) if bound is not None]
            text = f"bounds {' and '.join(f'{bound:g}' for bound in bounds)}"
            levels += [Level(None, bound, bound, text, start, end) for bound in bounds]
        levels[1:] = [replace(level, label="") for level in levels[1:]]
    look: dict[str, Any] = {"whole_x": True, "y_label": label}
    marks = [Mark(step - 0.5) for step in _changes(setting)]
    return Chart(label, title, "training step", lines, levels=levels, marks=marks, **look), weight


def _add_legend(panel: "Axes", chart: Chart) -> None:
    """Say what the curves are, on the line of the title, where it can hide no data."""
    if not (chart.lines or chart.levels):
        panel.set_yticks([])
        panel.text(0.5, 0.5, "not in this run's metrics", transform=panel.transAxes, ha="center", color=LIGHT.muted)
        return
    found = {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    labelled: list[Line | Level] = [*chart.lines, *chart.levels]
    shown = [each.label for each in labelled if each.label]
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.1}
    look: dict[str, Any] = {"frameon": False, "fontsize": FONT - 0.5, "handlelength": 1.8, "columnspacing": 1.2}
    panel.legend([found[label] for label in shown], shown, ncols=3, **place, **look)


def _values(steps: dict[int, metrics.Metrics], key: str) -> dict[int, float]:
    """Return the metric by step, of those steps that have it."""
    return {step: data[key] for step, data in steps.items() if key in data}


def _line(place: int, label: str, values: dict[int, float], **style: Any) -> list[Line]:
    """Make a curve, if there is any value; solid unless its style says otherwise."""
    x, y = np.array([*values]), np.array([*values.values()], dtype=float)
    return [Line(place, x, y, label=label, marked=False, style={"linestyle": "-"} | style)] if values else []


def _moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Average over a centred window, shorter at the ends, what is finite in it."""
    means = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - window // 2) : i + (window + 1) // 2] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means
