"""Metrics of a run made by anyone: our folders, verl's ``file`` logger, or TensorBoard's event files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from aent_verl import _util
from aent_verl.runs import metrics
from aent_verl.runs.metrics import Metrics

_EVENTS = "*tfevents*"


def read_metrics(path: str | Path) -> dict[int, Metrics]:
    """Metrics by step, in ascending order.

    Args:
        path: a run's folder with ``metrics.jsonl`` in it, one such file of verl's ``file`` logger under any name, or a
            folder with TensorBoard's event files in it or below it.

    Raises:
        FileNotFoundError: there is nothing of that kind.
        ValueError: damaged, or no step in it.
    """
    path = Path(path)
    if path.is_file():
        steps = metrics.read_file(path)
        if not steps:
            raise ValueError(f"{path} holds no step: the run ended before its first one, see its log")
        return dict(sorted(steps.items()))
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not there: give the folder of a run, or its metrics file")
    try:
        return metrics.read_run(path)
    except FileNotFoundError:
        pass
    folders = sorted({file.parent for file in path.rglob(_EVENTS)})
    if not folders:
        raise FileNotFoundError(
            f"{path} has neither {metrics.METRICS_FILE} nor TensorBoard's event files: give the folder of a run whose "
            "trainer.logger includes 'file' or 'tensorboard', or the .jsonl file itself"
        )
    if len(folders) > 1:
        raise ValueError(
            f"{path} has TensorBoard's event files of {len(folders)} runs below it "
            f"({', '.join(str(folder.relative_to(path)) for folder in folders[:3])}, ...): give one of them"
        )
    return _read_tensorboard(folders[0])


def _read_tensorboard(folder: Path) -> dict[int, Metrics]:
    run: dict[int, Metrics] = {}
    for tag, step, value in _scalars(folder):
        # verl starts at step 0 or 1; of a step that was logged twice, by a run and its resumption, the later counts.
        run.setdefault(step, {})[tag] = value
    if not any(math.isfinite(value) for data in run.values() for value in data.values()):
        raise ValueError(f"{folder}: TensorBoard's event files hold no numbers")
    return dict(sorted(run.items()))


def _scalars(folder: Path) -> Iterator[tuple[str, int, float]]:
    _util.require("compare", f"{folder}, which holds TensorBoard's event files,", "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0, TENSORS: 0})
    accumulator.Reload()
    for tag in accumulator.Tags()[SCALARS]:
        for event in accumulator.Scalars(tag):
            yield tag, event.step, float(event.value)
