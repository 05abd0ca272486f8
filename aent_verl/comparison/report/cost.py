"""What training costs: time and tokens, and how much of each a method needs to reach the baseline's best."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from aent_verl.comparison.report.curves import curve_of, having, line
from aent_verl.comparison.report.groups import Groups, sentences
from aent_verl.comparison.stats.curves import Curve, best, first_reaching
from aent_verl.runs.metrics import STEP_SECONDS, validation_accuracy
from aent_verl.runs.run import Run
from aent_verl.viewing.charts import Chart

TOKENS = "perf/total_num_tokens"
# What is said of a run without.
_NONE_OF = {TOKENS: "no tokens are", STEP_SECONDS: "no step time is"}
# Largest first; an axis is in the largest that its values reach.
TOKEN_UNITS = (("billions", 1e9), ("millions", 1e6), ("thousands", 1e3))
TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


@dataclass(frozen=True)
class MethodCost:
    """One method; None is what was not measured, be it at a single step of a single seed, see `cost_notes`.

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


def costs(groups: Groups) -> tuple[float | None, dict[str, MethodCost]]:
    """Return the baseline's best mean validation accuracy, None without one, and the costs by method."""
    curves = {m: curve_of(runs, validation_accuracy) for m, runs in groups.runs.items()}
    of_baseline = curves.get(groups.baseline) if groups.baseline is not None else None
    level = None if of_baseline is None else best(of_baseline)
    found = {}
    for method, runs in groups.runs.items():
        curve, validated = curves[method], having(runs, validation_accuracy)
        found[method] = MethodCost(
            seconds=_total(runs, STEP_SECONDS),
            tokens=_total(runs, TOKENS),
            best=None if curve is None else best(curve),
            reached=None if curve is None or level is None else first_reaching(curve, level) is not None,
            steps=_reach(curve, level, lambda steps: steps),
            seconds_to_reach=_reach(curve, level, partial(_cumulative, validated, STEP_SECONDS)),
            tokens_to_reach=_reach(curve, level, partial(_cumulative, validated, TOKENS)),
        )
    return level, found


def cost_charts(groups: Groups) -> list[Chart]:
    """Chart validation accuracy over tokens and over training time."""
    charts = []
    for name, what, key, units in (
        ("accuracy_by_tokens", "tokens", TOKENS, TOKEN_UNITS),
        ("accuracy_by_time", "training time", STEP_SECONDS, TIME_UNITS),
    ):
        found = []
        for place, runs in enumerate(groups.runs.values()):
            curve = curve_of(runs, validation_accuracy)
            if curve is None:
                continue
            at = _cumulative(having(runs, validation_accuracy), key, curve.steps)
            if np.nansum(at) > 0:
                found.append((place, *_known(curve, at)))
        if found:
            largest = max(float(at[-1]) for _, _, at in found)
            unit, size = next(((unit, size) for unit, size in units if largest >= size), units[-1])
            lines = [line(place, curve, x=at / size) for place, curve, at in found]
            charts.append(Chart(name, f"Validation accuracy by {what}", f"{what}, {unit}", lines))
    return charts


def cost_notes(groups: Groups) -> tuple[str, ...]:
    """Name, in sentences, the runs whose cost is not fully known because their log lacks something."""
    found = []
    for run in groups.all:
        for key, words in _NONE_OF.items():
            if gaps := _gaps(run, key):
                reason = (
                    f"{words} recorded at {len(gaps):,} of {run.last_step:,} steps, first at step {gaps[0]:,}, so what "
                    "its method costs from there on is not known"
                )
                found.append((run.name, reason))
    return tuple(sentences(found))


def spent(run: Run, key: str) -> float | None:
    """Sum what a run has spent; None if a step does not say."""
    return None if _gaps(run, key) else sum(run.metrics[step][key] for step in range(1, run.last_step + 1))


def _reach(curve: Curve | None, level: float | None, places_of: Callable[[np.ndarray], np.ndarray]) -> float | None:
    """Find where a curve first reaches a level, in what ``places_of`` makes of its steps; None if it never does.

    Also None if that place is not known.
    """
    if curve is None or level is None:
        return None
    place = first_reaching(curve, level, at=places_of(curve.steps))
    return None if place is None or math.isnan(place) else place


def _total(runs: list[Run], key: str) -> float | None:
    each = [spent(run, key) for run in runs]
    known = [value for value in each if value is not None]
    return float(np.mean(known)) if len(known) == len(each) else None


def _cumulative(runs: list[Run], key: str, steps: np.ndarray) -> np.ndarray:
    """Average over seeds what was spent up to and with each step, ``[T]``; NaN from a step on that lacks it."""
    found = []
    for run in runs:
        values = [run.metrics.get(step, {}).get(key, math.nan) for step in range(1, int(steps[-1]) + 1)]
        # A sum with NaN or infinity in it stays one.
        found.append(np.concatenate([[0.0], np.cumsum(values)])[steps])
    mean = np.mean(found, axis=0)
    return np.where(np.isfinite(mean), mean, math.nan)


def _known(curve: Curve, at: np.ndarray) -> tuple[Curve, np.ndarray]:
    """Cut a curve to the part whose places are known."""
    known = np.isfinite(at)
    parts = {name: getattr(curve, name)[..., known] for name in ("steps", "values", "mean", "low", "high")}
    return replace(curve, **parts), at[known]


def _gaps(run: Run, key: str) -> list[int]:
    """List the steps of a run that do not say what they cost."""
    steps = range(1, run.last_step + 1)
    return [step for step in steps if not math.isfinite(run.metrics.get(step, {}).get(key, math.nan))]
