"""What training costs: time and tokens, and how much of them a method needs to reach the baseline's best."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from aent_verl.metrics import STEP_SECONDS, validation_accuracy
from aent_verl.reporting.chart import Chart
from aent_verl.reporting.curves import curve_of, line
from aent_verl.reporting.groups import Groups
from aent_verl.results.run import Run
from aent_verl.statistics.curves import Curve, best, first_reaching

TOKENS = "perf/total_num_tokens"
# Largest first; an axis is in the largest that its values reach.
TOKEN_UNITS = (("billions", 1e9), ("millions", 1e6), ("thousands", 1e3))
TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


@dataclass(frozen=True)
class MethodCost:
    """One method; None is what was not measured.

    Attributes:
        seconds: of training in all, mean over seeds.
        tokens: trained on in all, prompts and responses, mean over seeds.
        best: highest mean validation accuracy.
        reached: whether the mean validation accuracy reaches the baseline's best; None without validations.
        steps: until then.
        seconds_to_reach: until then, mean over seeds.
        tokens_to_reach: until then, mean over seeds.
    """

    seconds: float | None
    tokens: float | None
    best: float | None
    reached: bool | None
    steps: float | None
    seconds_to_reach: float | None
    tokens_to_reach: float | None


def costs(groups: Groups, confidence: float) -> tuple[float | None, dict[str, MethodCost]]:
    """The baseline's best mean validation accuracy, None without one, and the costs by method."""
    curves = {m: curve_of(runs, validation_accuracy, confidence) for m, runs in groups.runs.items()}
    of_baseline = curves.get(groups.baseline) if groups.baseline is not None else None
    level = None if of_baseline is None else best(of_baseline)
    found = {}
    for method, runs in groups.runs.items():
        curve = curves[method]
        found[method] = MethodCost(
            seconds=_total(runs, STEP_SECONDS),
            tokens=_total(runs, TOKENS),
            best=None if curve is None else best(curve),
            reached=None if curve is None or level is None else first_reaching(curve, level) is not None,
            steps=_reach(curve, level, lambda steps: steps),
            seconds_to_reach=_reach(curve, level, partial(_cumulative, runs, STEP_SECONDS)),
            tokens_to_reach=_reach(curve, level, partial(_cumulative, runs, TOKENS)),
        )
    return level, found


def cost_charts(groups: Groups, confidence: float) -> list[Chart]:
    """Validation accuracy over tokens and over time of training."""
    charts = []
    for name, what, key, units in (
        ("accuracy_by_tokens", "tokens", TOKENS, TOKEN_UNITS),
        ("accuracy_by_time", "training time", STEP_SECONDS, TIME_UNITS),
    ):
        found = []
        for place, runs in enumerate(groups.runs.values()):
            curve = curve_of(runs, validation_accuracy, confidence)
            at = None if curve is None else _cumulative(runs, key, curve.steps)
            if curve is not None and at is not None:
                found.append((place, curve, at))
        if found:
            largest = max(float(at[-1]) for _, _, at in found)
            unit, size = next(((unit, size) for unit, size in units if largest >= size), units[-1])
            lines = [line(place, curve, x=at / size) for place, curve, at in found]
            charts.append(Chart(name, f"Validation accuracy by {what}", f"{what}, {unit}", lines))
    return charts


def _reach(
    curve: Curve | None, level: float | None, places_of: Callable[[np.ndarray], np.ndarray | None]
) -> float | None:
    """Where a curve first reaches a level, in what ``places_of`` says its steps stand for; None if it never does."""
    places = None if curve is None else places_of(curve.steps)
    return None if curve is None or level is None or places is None else first_reaching(curve, level, at=places)


def _total(runs: list[Run], key: str) -> float | None:
    places = _cumulative(runs, key, np.array([max(run.last_step for run in runs)]))
    return None if places is None else float(places[0])


def _cumulative(runs: list[Run], key: str, steps: np.ndarray) -> np.ndarray | None:
    """What the runs have spent up to and with each step, mean over seeds, ``[T]``; None if one did not measure it."""
    spent = []
    for run in runs:
        at = [(step, data[key]) for step, data in run.metrics.items() if math.isfinite(data.get(key, math.nan))]
        if not at:
            return None
        sums = np.concatenate([[0.0], np.cumsum([value for _, value in at])])
        spent.append(sums[np.searchsorted([step for step, _ in at], steps, side="right")])
    return np.mean(spent, axis=0)
