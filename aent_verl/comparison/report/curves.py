"""Learning curves: each metric over training steps, the mean over seeds with its interval."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import methodcaller

import numpy as np

from aent_verl.comparison.report.groups import Groups
from aent_verl.comparison.stats import Target, aggregates
from aent_verl.comparison.stats.crossed import MIN_PROBLEMS, Estimate
from aent_verl.comparison.stats.curves import Curve, binned, mean_curve, mean_over_last
from aent_verl.runs import metrics
from aent_verl.runs.metrics import Metrics, validation_accuracy
from aent_verl.runs.run import Run
from aent_verl.viewing.charts import Chart, Level, Line

# verl's own, the same quantity as ENTROPY_FULL where a run without our plug-in has no other.
STOCK_ENTROPY = "actor/entropy"
# A phone has no more pixels across.
POINTS = 200
# More single seeds in one chart would hide its means.
MOST_THIN_LINES = 12
# Of training, for values at its end.
LAST = 0.1

Value = Callable[[Metrics], float | None]
# Means over a step's rollouts; the second in tokens.
reward: Value = methodcaller("get", metrics.REWARD)
response_length: Value = methodcaller("get", metrics.RESPONSE_LENGTH)


@dataclass(frozen=True)
class Bounds:
    """What a method's controller aims at, nats: a band, or twice its target."""

    low: float
    high: float
    functional: str


def learning_curves(groups: Groups) -> list[Chart]:
    """Chart all metrics that some run has, in the order of the page."""
    aims = {method: bound for method, group in groups.runs.items() if (bound := bounds_of(group[0].settings))}
    full = {method: bound for method, bound in aims.items() if bound.functional == "full"}
    others = {method: bound for method, bound in aims.items() if method not in full}
    functionals = " and ".join(sorted({bound.functional for bound in others.values()})).capitalize()
    controlled: Value = methodcaller("get", metrics.ENTROPY)
    weight: Value = methodcaller("get", metrics.ADVANTAGES_COEFFICIENT)
    weighted = {run.method for run in groups.all if any(weight(data) not in (None, 1) for data in run.metrics.values())}
    chart = partial(_chart, groups)
    charts = [
        chart("reward", "Training reward", reward),
        chart("validation", "Validation accuracy", validation_accuracy),
        chart("entropy", "Entropy, nats", full_entropy, aims=full),
        chart("controlled_entropy", f"{functionals} entropy, nats", controlled, aims=others, only=others),
        chart("coefficient", "Entropy coefficient", methodcaller("get", metrics.COEFFICIENT)),
        chart("advantages_weight", "Weight of positive advantages", weight, only=weighted),
        chart("response_length", "Response length, tokens", response_length),
    ]
    return [chart for chart in charts if chart.lines]


def full_entropy(data: Metrics) -> float | None:
    """Return the entropy of the whole next-token distribution, nats: the same quantity for every method."""
    return data.get(metrics.ENTROPY_FULL, data.get(STOCK_ENTROPY))


def having(runs: Sequence[Run], value: Value) -> list[Run]:
    """Return the runs whose metric is finite at some step."""
    return [run for run in runs if any(map(math.isfinite, _series(run, value).values()))]


def curve_of(runs: Sequence[Run], value: Value) -> Curve | None:
    """Average the curves of the runs that have the metric; None if there is none, or no step that all share.

    Args:
        runs: seeds of one method.
        value: the metric in a step's data.
    """
    try:
        return mean_curve([_series(run, value) for run in having(runs, value)])
    except ValueError:
        return None


def end_of(runs: Sequence[Run], value: Value) -> Estimate | None:
    """Average over the last tenth of training and seeds; None if a seed that has the metric lacks it there."""
    curve = curve_of(runs, value)
    if curve is None:
        return None
    found = mean_over_last(curve, LAST, max(run.last_step for run in having(runs, value)))
    return None if found is None else mean_of(found[:, None], "these problems")


def final_validations(runs: Sequence[Run]) -> dict[str, float]:
    """Return the accuracy after the last step by run, of those that were validated then; NaN is kept."""
    values = {run.name: validation_accuracy(run.metrics[run.last_step]) for run in runs}
    return {name: value for name, value in values.items() if value is not None}


def final_validation(runs: Sequence[Run]) -> Estimate | None:
    """Average `final_validations`; None if there are none, or one of them is not finite."""
    values = np.array(list(final_validations(runs).values()))
    known = len(values) > 0 and bool(np.isfinite(values).all())
    return mean_of(values[:, None], "these problems") if known else None


def bounds_of(settings: Mapping[str, str]) -> Bounds | None:
    """Return the band or target of a method's controller; None if it has neither, or its config is not known."""
    controller = "entropy_control.bonus.controller"
    functional = settings.get("entropy_control.functional.name", "full")
    low, high, target = (_float(settings.get(f"{controller}.{name}")) for name in ("low", "high", "target"))
    if low is None or high is None:
        low = high = target
    return None if low is None or high is None else Bounds(low, high, functional)


def bare(value: float, low: float = math.nan, high: float = math.nan) -> Estimate:
    """Wrap a number, with the ends of its interval if it has one."""
    return Estimate(float(value), float(low), float(high), math.nan, math.nan)


def has_interval(scores: np.ndarray, target: Target) -> bool:
    """Return whether ``[S, P]`` support an interval: two seeds, and enough problems to stand for others like them."""
    return len(scores) > 1 and (target == "these problems" or scores.shape[1] >= MIN_PROBLEMS)


def mean_of(scores: np.ndarray, target: Target) -> Estimate:
    """Average ``[S, P]``, with an interval if they support one."""
    if not has_interval(scores, target):
        return bare(scores.mean())
    return aggregates.mean(scores, target=target)


def _chart(
    groups: Groups,
    name: str,
    title: str,
    value: Value,
    *,
    aims: Mapping[str, Bounds] | None = None,
    only: Collection[str] | None = None,
) -> Chart:
    chosen = {method: runs for method, runs in groups.runs.items() if only is None or method in only}
    width = _width([list(_series(run, value)) for runs in chosen.values() for run in runs])
    thin = len(groups.all) <= MOST_THIN_LINES
    lines, notes = [], []
    for method, runs in chosen.items():
        curve = curve_of(runs, value)
        if curve is None:
            continue
        drawn = curve if width == 1 else binned(curve, width)
        seeds = [*drawn.values] if thin and len(drawn.values) > 1 else []
        lines.append(line(groups.methods.index(method), drawn.steps, drawn.mean, drawn.low, drawn.high, seeds))
        if curve.note:
            notes.append(f"{method}: {curve.note}.")
        if len(curve.values) < len(runs):
            notes.append(f"{method}: {len(curve.values)} of {len(runs)} seeds have this metric.")
    if width > 1:
        notes.append(f"Points: means over {width} steps.")
    levels = [Level(groups.methods.index(method), bound.low, bound.high) for method, bound in (aims or {}).items()]
    if levels:
        notes.append("The entropy that a controller sees, and the band (shaded) or target (dotted) that it aims at.")
    return Chart(name, title, "training step", lines, note=" ".join(notes), levels=levels, whole_x=True)


def line(
    place: int, x: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray, seeds: Sequence[np.ndarray] = ()
) -> Line:
    """Make a line of a chart; without an interval where all of its ends are NaN, as of one seed."""
    known = bool(np.isfinite(low).any())
    return Line(place, x, mean, low if known else None, high if known else None, seeds)


def _series(run: Run, value: Value) -> dict[int, float]:
    return {step: found for step, data in run.metrics.items() if (found := value(data)) is not None}


def _width(steps: Sequence[Sequence[int]]) -> int:
    """Return how many steps a point must span so that all points fit; 1 where they fit as they are."""
    long = [each for each in steps if len(each) > POINTS]
    apart = [(each[-1] - each[0]) / (len(each) - 1) for each in long]
    return max((math.ceil(math.ceil(len(e) / POINTS) * gap) for e, gap in zip(long, apart, strict=True)), default=1)


def _float(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
