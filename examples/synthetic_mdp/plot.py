"""The picture: reward and entropy over the steps, and the final reward against the coefficient."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from aent_verl.viewing.palette import LIGHT
from examples.synthetic_mdp.experiment import AENT_INIT, CLAMP_P, COEFFICIENT, COEFFICIENTS
from examples.synthetic_mdp.mdp import ACTIONS, largest_useful_coefficient
from examples.synthetic_mdp.tables import interval

BLACK, GREY = LIGHT.ink, LIGHT.muted
BLUE, VERMILION, GREEN, PURPLE, *_ = LIGHT.series
# Colour and line style, or marker: each alone tells the lines apart.
LINES: dict[str, tuple[str, Any, str]] = {
    "none": (BLACK, ":", "no bonus"),
    "full": (BLUE, "--", f"full entropy, λ = {COEFFICIENT}"),
    "clamped": (VERMILION, "-", f"clamped entropy, p = {CLAMP_P}, λ = {COEFFICIENT}"),
    "AEnt": (GREEN, "-.", f"AEnt: clamped, λ adapts from {AENT_INIT}"),
}
SWEEPS = {
    "0.0": (BLUE, "o", "full entropy"),
    "0.9": (PURPLE, "s", "clamped, p = 0.9"),
    "0.99": (VERMILION, "^", "clamped, p = 0.99"),
}


def figure(results: dict[str, Any]) -> Figure:
    """A column for each number of optimal actions."""
    numbers = sorted(results["curves"], key=int, reverse=True)
    picture = Figure(figsize=(11, 8.6), dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.04))
    upper: SubFigure
    upper, lower = picture.subfigures(2, 1, height_ratios=(2, 1.15))  # type: ignore[misc]
    top = upper.subplots(2, len(numbers), sharex=True, sharey="row", squeeze=False)
    bottom = lower.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for column, optimal in enumerate(numbers):
        _curves(top[:, column], results["curves"][optimal], results["made"]["steps"])
        _sweep(bottom[column], results["grid"][optimal], int(optimal))
        none, _ = interval(np.array(results["curves"][optimal]["none"]["reward"])[:, -1])
        bottom[column].axhline(none, color=BLACK, linestyle=":", lw=2)
        top[0, column].set_title(f"{optimal} optimal action{'s' * (optimal != '1')}", fontsize=12)
        top[1, column].set_xlabel("step", fontsize=11)
        bottom[column].set_xlabel("coefficient λ", fontsize=11)
    top[0, 0].set_ylabel("reward", fontsize=11)
    top[1, 0].set_ylabel("entropy, nats", fontsize=11)
    bottom[0].set_ylabel("reward at the end", fontsize=11)
    top[0, 0].set_ylim(-0.03, 1.03)
    top[1, 0].set_ylim(bottom=-0.3)
    for panel in [*top.flat, *bottom]:
        panel.grid(color=GREY, alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    lines = [Line2D([], [], color=colour, linestyle=style, label=name, lw=2) for colour, style, name in LINES.values()]
    sweeps = [
        Line2D([], [], color=colour, marker=marker, label=name, lw=1.6) for colour, marker, name in SWEEPS.values()
    ]
    theory = Line2D([], [], color=GREY, linestyle=":", label="theory: half of the probability is lost")
    legend: dict[str, Any] = {"loc": "outside upper center", "ncols": 4, "frameon": False, "fontsize": 10.5}
    upper.legend(handles=lines, handlelength=3, **legend)
    lower.legend(handles=[*sweeps, theory], **legend)
    return picture


def _curves(panels: "np.ndarray[Any, Any]", lines: dict[str, Any], last: int) -> None:
    for name, (colour, style, _) in LINES.items():
        for panel, quantity, highest in zip(panels, ("reward", "entropy"), (1.0, np.inf), strict=True):
            mean, half = interval(np.array(lines[name][quantity]))
            steps = np.linspace(0, last, len(mean))
            panel.plot(steps, mean, color=colour, linestyle=style, lw=2)
            low, high = (mean - half).clip(0), (mean + half).clip(None, highest)
            panel.fill_between(steps, low, high, color=colour, alpha=0.16, lw=0)


def _sweep(panel: Axes, by_clamp: dict[str, list[float]], optimal: int) -> None:
    for clamp_p, (colour, marker, _) in SWEEPS.items():
        panel.plot(COEFFICIENTS, by_clamp[clamp_p], color=colour, marker=marker, lw=1.6, ms=5)
        limit = largest_useful_coefficient(optimal, ACTIONS - int(ACTIONS * float(clamp_p)))
        panel.axvline(limit, color=colour, linestyle=":", lw=1.4)
    panel.set_ylim(-0.03, 1.03)
    panel.set_xlim(0, 0.25)
