"""What training costs: time and tokens, and how much of each a method needs to reach the baseline's best."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from aent_verl.comparison.report.curves import curve_of, having, line
from aent_verl.comparison.report.groups import Groups, sentences
from aent_verl.comparison.stats.curves import best, first_reaching
from aent_verl.runs.metrics import STEP_SECONDS, validation_accuracy
from aent_verl.runs.run import Run
from aent_verl.viewing.charts import Chart

TOKENS = "perf/total_num_tokens"
# What is said of a run without.
_NONE_OF = {TOKENS: "no tokens are", STEP_SECONDS: "no step time is"}
# Largest first; an axis is in the largest that its values reach.
TOKEN_UNITS = (("billions", 1e9), ("millions", 1e6), ("thousands", 1e3))
TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def costs(groups: Groups) -> tuple[float | None, dict[str, dict[str, Any]]]:
    """Compute what each method costs, and until its mean validation accuracy reaches the baseline's best.

    Returns:
        The baseline's best mean validation accuracy, None without one; and by method, None where it was not measured,
        even if at one step of one seed only, see `cost_notes`: "seconds" of training in all and "tokens" trained on,
        prompts and responses, means over seeds; its own "best"; whether it "reached" the baseline's; and until then its
        "steps", "seconds_to_reach" and "tokens_to_reach", means over seeds.
    """
    curves = {method: curve_of(runs, validation_accuracy) for method, runs in groups.runs.items()}
    of_baseline = curves.get(groups.baseline or "")
    level = None if of_baseline is None else best(of_baseline)
    found = {}
    for method, runs in groups.runs.items():
        curve, validated = curves[method], having(runs, validation_accuracy)
        until: dict[str, float | None] = dict.fromkeys(("steps", "seconds_to_reach", "tokens_to_reach"))
        if curve is not None and level is not None:
            places = [curve.steps, *(_cumulative(validated, key, curve.steps) for key in (STEP_SECONDS, TOKENS))]
            until = {name: first_reaching(curve, level, at=at) for name, at in zip(until, places, strict=True)}
        found[method] = {
            "seconds": _total(runs, STEP_SECONDS),
            "tokens": _total(runs, TOKENS),
            "best": None if curve is None else best(curve),
            "reached": None if curve is None or level is None else until["steps"] is not None,
            **{name: None if at is None or math.isnan(at) else at for name, at in until.items()},
        }
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
            if (curve := curve_of(runs, validation_accuracy)) is None:
                continue
            at = _cumulative(having(runs, validation_accuracy), key, curve.steps)
            if np.nansum(at) > 0:
                known = np.isfinite(at)
                found.append(line(place, at[known], curve.mean[known], curve.low[known], curve.high[known]))
        if found:
            largest = max(each.x[-1] for each in found)
            unit, size = next(((unit, size) for unit, size in units if largest >= size), units[-1])
            lines = [replace(each, x=each.x / size) for each in found]
            charts.append(Chart(name, f"Validation accuracy by {what}", f"{what}, {unit}", lines))
    return charts


def cost_notes(groups: Groups) -> tuple[str, ...]:
    """Name, in sentences, the runs whose cost is not fully known because their log lacks something."""
    return tuple(sentences((run.name, reason) for run in groups.all for reason in _gaps(run)))


def spent(run: Run, key: str) -> float | None:
    """Sum what a run has spent; None if a step does not record it."""
    values = _by_step(run, key)
    return sum(values) if all(map(math.isfinite, values)) else None


def _gaps(run: Run) -> Iterator[str]:
    for key, words in _NONE_OF.items():
        if gaps := [step for step, cost in enumerate(_by_step(run, key), start=1) if not math.isfinite(cost)]:
            yield (
                f"{words} recorded at {len(gaps):,} of {run.last_step:,} steps, first at step {gaps[0]:,}, so what "
                "its method costs from there on is not known"
            )


def _total(runs: list[Run], key: str) -> float | None:
    each: list[Any] = [spent(run, key) for run in runs]
    return None if None in each else float(np.mean(each))


def _cumulative(runs: list[Run], key: str, steps: np.ndarray) -> np.ndarray:
    """Average over seeds what was spent up to and with each step, ``[T]``; NaN from a step on that lacks it."""
    # A sum with NaN or infinity in it stays one.
    mean = np.mean([np.cumsum([0.0, *_by_step(run, key)])[steps] for run in runs], axis=0)
    return np.where(np.isfinite(mean), mean, math.nan)


def _by_step(run: Run, key: str) -> list[float]:
    """List what each step of a run cost, from the first on; NaN where it does not say."""
    return [run.metrics.get(step, {}).get(key, math.nan) for step in range(1, run.last_step + 1)]
