"""Every number of the page as JSON, for other programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aent_verl.comparison.report import words
from aent_verl.viewing.charts import Chart

if TYPE_CHECKING:
    from aent_verl.comparison.report.report import Report

FORMAT = 1


def as_json(report: Report) -> str:
    """The report's numbers; what is not known, or no finite number, is null."""
    groups, accuracy = report.groups, report.accuracy
    found = {
        "format": FORMAT,
        "title": report.title,
        "baseline": groups.baseline,
        "confidence": report.confidence,
        "headline": words.headline(accuracy, groups.baseline),
        "runs": [asdict(fact) for fact in report.facts],
        "differences_of_protocol": groups.differences,
        "notices": groups.notices,
        "verdicts": {} if accuracy is None else {m: _verdict(v) for m, v in accuracy.verdicts.items()},
        "accuracy": None if accuracy is None else {k: v for k, v in vars(accuracy).items() if k != "verdicts"},
        "end_of_training": report.ends,
        "baseline_best_validation": report.best,
        "costs": report.costs,
        "cost_notes": report.cost_notes,
        "charts": {chart.name: _chart(chart, groups.methods) for each in report.charts.values() for chart in each},
        "settings": report.settings,
        "protocol": report.protocol,
        "samples": report.problems,
        "commands": report.commands,
    }
    return json.dumps(_plain(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _verdict(verdict: Any) -> dict[str, Any]:
    found = {key: value for key, value in asdict(verdict).items() if key != "difference"}
    difference = verdict.difference
    if difference is not None:
        found |= {**asdict(difference.estimate), "p_value": difference.p_value, "seeds": difference.seeds}
    return found | {"sentence": verdict.sentence}


def _chart(chart: Chart, methods: list[str]) -> dict[str, Any]:
    lines = {
        methods[line.place]: {"x": line.x, "mean": line.mean, "low": line.low, "high": line.high}
        for line in chart.lines
    }
    levels = {methods[level.place]: [level.low, level.high] for level in chart.levels if level.place is not None}
    return {"title": chart.title, "x_label": chart.x_label, "note": chart.note, "lines": lines, "levels": levels}


def _plain(value: Any) -> Any:
    """Only what JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(vars(value))
    if isinstance(value, dict):
        return {_text(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    # A lone surrogate of a model's cannot be written.
    return text.encode("utf-8", "replace").decode()
