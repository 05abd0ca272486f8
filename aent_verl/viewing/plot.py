"""One picture of a run: reward and validation accuracy, entropy with its band, coefficient, over the training steps."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aent_verl import _util
from aent_verl.runs.metrics import (
    ADVANTAGES_COEFFICIENT,
    COEFFICIENT,
    ENTROPY,
    ENTROPY_FULL,
    INITIAL_ENTROPY,
    REWARD,
    Metrics,
    read_run,
    validation_accuracy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "plot.png"
# What Hydra wrote of the run's config, in the run's folder; the values may still be interpolations.
CONFIG = Path("hydra", "config.yaml")

WEIGHT = "weight of A > 0"
# Okabe and Ito's palette, told apart with any colour vision.
BLUE, VERMILION, GREEN, PURPLE, BLACK, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#222222", "#777777"

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
    """

    title: str
    functional: str | None = None
    target: float | None = None
    low: float | None = None
    high: float | None = None
    min: float | None = None
    max: float | None = None


def plot_run(
    folder: str | Path, output: str | Path | None = None, band: tuple[float | None, float | None] | None = None
) -> Path:
    """Draw the run in ``folder`` and return where the PNG is.

    Args:
        folder: the run's folder, with its ``metrics.jsonl``.
        output: the file to write; ``plot.png`` in the run's folder if not given.
        band: ends of the entropy band in nats; from the run's config if not given.

    Raises:
        ImportError: matplotlib is not installed.
        FileNotFoundError, ValueError: no metrics to draw (see `read_run`), or a band whose ends are not low <= high.
    """
    folder = Path(folder)
    setting = read_setting(folder)
    if band is not None:
        setting = replace(setting, low=band[0], high=band[1])
    picture = figure(read_run(folder), setting)
    output = folder / PICTURE if output is None else Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(output, format="png")
    return output


def read_setting(folder: Path) -> Setting:
    """The run's setting as its config has it; only the folder's name for a run without a config file."""
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

    method = value("entropy_control.method")
    name = value("trainer.experiment_name") or folder.resolve().name
    controller = "entropy_control.bonus.controller"
    return Setting(
        title=f"{method}: {name}" if method else name,
        functional=value("entropy_control.functional.name"),
        **{key: value(f"{controller}.{key}") for key in ("target", "low", "high", "min", "max")},
    )


def figure(steps: dict[int, Metrics], setting: Setting) -> "Figure":
    """The picture of a run's steps: three panels that share the training step.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a band whose ends are not low <= high.
    """
    if setting.low is not None and setting.high is not None and not setting.low <= setting.high:
        raise ValueError(f"band=({setting.low!r}, {setting.high!r}) is not allowed: must be low <= high, in nats")
    _util.require("compare", "the plot", "matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    # A Figure of its own, without pyplot: no backend is chosen and no global state touched in the caller's process.
    picture = Figure(figsize=(8, 8.4), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    panels = picture.subplots(3, 1, sharex=True, height_ratios=(1.2, 1.2, 0.8))
    _draw_reward(panels[0], steps)
    _draw_entropy(panels[1], steps, setting)
    _draw_coefficient(panels[2], steps, setting)
    for panel in panels:
        _finish(panel)
    first, last = min(steps), max(steps)
    margin = max(0.5, 0.02 * (last - first))
    panels[2].set_xlim(first - margin, last + margin)
    panels[2].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panels[2].set_xlabel("training step", fontsize=12)
    picture.align_ylabels(panels)
    picture.suptitle(setting.title, fontsize=15, fontweight="bold", color=BLACK)
    return picture


def _draw_reward(panel: "Axes", steps: dict[int, Metrics]) -> None:
    panel.set_title("Reward")
    panel.set_ylabel("reward, accuracy")
    x, reward = _series(steps, REWARD)
    window = min(max(5, len(x) // 20), 25)
    if x:
        _line(panel, x, reward, color=BLUE, linewidth=1, alpha=0.45, label="reward")
    if len(x) >= window:
        _line(panel, x, _moving_mean(reward, window), color=BLUE, linewidth=2.4, label=f"mean of {window} steps")
    accuracy = [(step, value) for step, data in steps.items() if (value := validation_accuracy(data)) is not None]
    if accuracy:
        panel.plot(
            *zip(*accuracy, strict=True),
            color=VERMILION,
            linestyle=":",
            linewidth=1.2,
            marker="D",
            markersize=7,
            label="validation accuracy",
            # Also those on the frame, at the first and last step or at 0.
            clip_on=False,
            zorder=3,
        )


def _draw_entropy(panel: "Axes", steps: dict[int, Metrics], setting: Setting) -> None:
    panel.set_title("Entropy")
    panel.set_ylabel("entropy (nats)")
    x, entropy = _series(steps, ENTROPY)
    name = f"{setting.functional} entropy" if setting.functional else "controlled entropy"
    if x:
        _line(panel, x, entropy, color=BLUE, linewidth=2, label=name)
    # Where the configured functional is the full entropy, a second line would only hide the first.
    if setting.functional != "full":
        x, full = _series(steps, ENTROPY_FULL)
        if x:
            _line(panel, x, full, color=PURPLE, linewidth=1.8, linestyle="--", label="full entropy")
    if setting.low is not None and setting.high is not None:
        label = f"band {setting.low:g} to {setting.high:g} nats"
        panel.axhspan(setting.low, setting.high, facecolor=GREEN, alpha=0.18, edgecolor="none", label=label, zorder=0)
        for end in (setting.low, setting.high):
            panel.axhline(end, color=GREEN, linewidth=0.8, zorder=0)
    if setting.target is not None:
        panel.axhline(setting.target, color=GREEN, linewidth=1.4, label=f"target {setting.target:g} nats")
    _, initial = _series(steps, INITIAL_ENTROPY)
    if initial:
        panel.axhline(initial[-1], color=GREY, linewidth=1.4, linestyle=":", label="before training")


def _draw_coefficient(panel: "Axes", steps: dict[int, Metrics], setting: Setting) -> None:
    panel.set_title("Entropy coefficient")
    panel.set_ylabel("coefficient")
    x, coefficient = _series(steps, COEFFICIENT)
    weighted, weight = _series(steps, ADVANTAGES_COEFFICIENT)
    if any(value != 1 for value in weight):
        if any(coefficient):
            panel.set_title("Coefficients")
            # Two scales: the weight is of the order of 1, a coefficient of a hundredth.
            right = panel.twinx()
            right.set_ylim(-0.05, 1.05)
            right.set_ylabel("weight", color=PURPLE, fontsize=12)
            right.spines["top"].set_visible(False)
            right.tick_params(labelsize=11, color=GREY)
            _line(right, weighted, weight, color=PURPLE, linewidth=1.8, linestyle="--", drawstyle="steps-mid")
            panel.plot([], [], color=PURPLE, linewidth=1.8, linestyle="--", label=WEIGHT)
        else:
            panel.set_title("Weight of advantages")
            panel.set_ylabel("weight")
            _line(panel, weighted, weight, color=BLUE, linewidth=2, drawstyle="steps-mid", label=WEIGHT)
            return
    if not x:
        return
    _line(panel, x, coefficient, color=BLUE, linewidth=2, drawstyle="steps-mid", label="coefficient")
    bounds = [bound for bound in (setting.min, setting.max) if bound is not None]
    for bound in bounds:
        label = f"bounds {' and '.join(f'{b:g}' for b in bounds)}" if bound == bounds[0] else None
        panel.axhline(bound, color=GREY, linewidth=1.4, linestyle=":", label=label)


def _finish(panel: "Axes") -> None:
    title = panel.get_title()
    panel.set_title("")
    panel.set_title(title, loc="left", fontsize=13, fontweight="bold", color=BLACK)
    panel.yaxis.label.set_fontsize(12)
    panel.tick_params(labelsize=11, color=GREY)
    panel.grid(color="#DDDDDD", linewidth=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    if panel.get_legend_handles_labels()[0]:
        # On the line of the title, where it can hide no data.
        panel.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=3,
            frameon=False,
            fontsize=11,
            borderaxespad=0.1,
            handlelength=1.8,
            columnspacing=1.2,
        )
    else:
        panel.set_yticks([])
        panel.text(
            0.5, 0.5, "not in this run's metrics", transform=panel.transAxes, ha="center", color=GREY, fontsize=12
        )


def _series(steps: dict[int, Metrics], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of those steps that have the metric."""
    found = [(step, data[key]) for step, data in steps.items() if key in data]
    return [step for step, _ in found], [value for _, value in found]


def _line(panel: "Axes", x: Sequence[int], y: Sequence[float], **style: Any) -> None:
    """A line that breaks at NaN, with a dot for a value that stands alone and would otherwise not be seen."""
    (line,) = panel.plot(x, y, **style)
    padded = [math.nan, *y, math.nan]
    alone = [i for i in range(len(y)) if not (math.isfinite(padded[i]) or math.isfinite(padded[i + 2]))]
    if alone:
        # Not markers of the line itself: its sample in the legend would show one.
        panel.plot([x[i] for i in alone], [y[i] for i in alone], "o", markersize=5, color=line.get_color())


def _moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over a centred window, shorter at the ends, of what is finite in it."""
    means = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - window // 2) : i + (window + 1) // 2] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means
