"""The runs of a cluster as text: where each one's coefficient and entropy are, with the last steps as small curves."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aent_verl._util import duration

WIDTH = 28
_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.:-=+*#"
# Steps whose median time is the run's.
_RECENT = 10


def sparkline(values: Sequence[float | None], signs: str = _BLOCKS) -> str:
    """Write values as signs of growing height, averaged where there are more than fit; a space where none is finite.

    Args:
        values: in the order of time; None or NaN where there is none.
        signs: from the lowest to the highest.
    """
    count = min(WIDTH, len(values))
    parts = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [_mean([value for value in part if value is not None and math.isfinite(value)]) for part in parts]
    finite = [mean for mean in means if mean is not None]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    # One that never moves is drawn in the middle.
    scale = (len(signs) - 1) / (high - low) if high > low else 0.0
    middle = 0 if scale else len(signs) // 2
    return "".join(" " if mean is None else signs[middle + round((mean - low) * scale)] for mean in means)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def render(runs: Sequence[Mapping[str, Any]], address: str, *, ascii_only: bool = False) -> RenderableType:
    """Draw the runs, one block each.

    Args:
        runs: as `plugin.coefficients.Coefficients.status` describes them.
        address: the cluster's.
        ascii_only: whether the terminal shows nothing else.
    """
    if not runs:
        return Text(f"no run with entropy control on the Ray cluster at {address}")
    return Group(*(part for run in runs for part in _block(run, _ASCII if ascii_only else _BLOCKS)))


def _block(run: Mapping[str, Any], signs: str) -> list[RenderableType]:
    head = Text.assemble(
        (run["run"], "bold"), f"  {run['method']}, {run['functional']}, {run['trainer_mode']}, job {run['job']}"
    )
    rows = Table.grid(padding=(0, 2))
    for overflow in ("crop", "crop", "crop", "fold"):
        rows.add_column(no_wrap=overflow == "crop", overflow=overflow)
    for axis, about in run["axes"].items():
        curves = {
            key: sparkline([step[axis][key] for step in run["history"]], signs) for key in ("coefficient", "entropy")
        }
        names = ("coefficient", "entropy") if axis == "bonus" else ("advantages", "full entropy")
        coefficient, entropy = about["state"]["coefficient"], about["state"]["entropy"]
        rows.add_row(f"  {names[0]}", f"{coefficient:.4g}", curves["coefficient"], _room(about))
        rows.add_row(f"  {names[1]}", "-" if entropy is None else f"{entropy:.4g}", curves["entropy"], aim(about))
    changed = [
        Text(f"  changed: {change['key']} {change['old']} -> {change['new']}, step {change['step']}, by {change['by']}")
        for change in run["changes"]
    ]
    return [head, Text(f"  {progress(run)}"), rows, *changed]


def progress(run: Mapping[str, Any]) -> str:
    """Say how far the run is, how long its steps take, and how long ago the last one ended."""
    if not run["history"]:
        return f"{'first step' if run['begun'] else 'starting'}, after step {run['step']} of {run['total_steps']}"
    times = [step["time"] for step in run["history"]][-_RECENT - 1 :]
    said = f"step {run['step']} of {run['total_steps']}, {duration(run['seconds_since_step'])} ago"
    if len(times) < 2:
        return said
    return f"{said}, {duration(statistics.median(b - a for a, b in itertools.pairwise(times)))} a step"


def _room(about: Mapping[str, Any]) -> str:
    """Say how the coefficient moves and what bounds it."""
    settings = about["settings"]
    low, high = settings.get("min"), settings.get("max")
    where = "" if low is None or high is None else f" in [{low:g}, {high:g}]"
    return f"{about['controller']}{where}{', at a bound' if about['state']['at_bound'] else ''}"


def aim(about: Mapping[str, Any]) -> str:
    """Say where the controller wants the entropy, and on which side of that it is."""
    settings, state = about["settings"], about["state"]
    if settings.get("low") is not None and settings.get("high") is not None:
        wanted = f"{settings['low']:g} to {settings['high']:g} nats"
    elif settings.get("target") is not None:
        wanted = f"{settings['target']:g} nats"
    elif settings.get("tau") is not None and state["initial_entropy"] is not None:
        wanted = f"{settings['tau'] * state['initial_entropy']:.4g} nats"
    else:
        return "nats"
    return f"{ {-1: 'below', 0: 'in', 1: 'above'}[state['band_side']] } {wanted}"
