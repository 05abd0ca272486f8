"""Where each run of a grid stands, and how long the rest will take."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aent_verl.comparison.grid.plan import Cell
from aent_verl.runs.metrics import REWARD, STEP_SECONDS, MetricsTail, read_run, validation_accuracy

TRAIN, EVALUATE = "train", "evaluate"
WAITING, DONE, FAILED = "waiting", "done", "failed"
_RECENT_STEPS = 20


@dataclass
class Status:
    """One run, as far as its files tell.

    Attributes:
        cell: the run.
        state: waiting, train, evaluate, done or failed.
        step: last step logged.
        reward: mean reward of that step.
        accuracy: of the last validation.
        seconds: how long each finished stage took.
        reason: why it failed.
    """

    cell: Cell
    state: str = WAITING
    step: int = 0
    reward: float | None = None
    accuracy: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    _step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))

    def __post_init__(self) -> None:
        self._tail = MetricsTail(self.cell.metrics_file)

    def read_finished(self) -> None:
        """Take in the metrics of earlier starts; there may be none."""
        try:
            steps = read_run(self.cell.folder)
        except (FileNotFoundError, ValueError):
            return
        for step, data in steps.items():
            self._take(step, data)

    def look(self) -> None:
        """Take in what was logged since the last look."""
        for step, data in self._tail.read_new():
            self._take(step, data)

    @property
    def step_seconds(self) -> float | None:
        """Typical seconds of a recent step; None before the first."""
        return statistics.median(self._step_seconds) if self._step_seconds else None

    def _take(self, step: int, data: dict[str, Any]) -> None:
        self.step = step
        self.reward = data.get(REWARD, self.reward)
        accuracy = validation_accuracy(data)
        self.accuracy = self.accuracy if accuracy is None else accuracy
        if STEP_SECONDS in data:
            self._step_seconds.append(data[STEP_SECONDS])


def seconds_left(grid: Sequence[Status], parallel: int) -> float | None:
    """Seconds until the grid is done, from what its runs took so far; None as long as nothing tells.

    A run's time is its steps, what its finished runs spent beside their steps, and the evaluation. A step takes as long
    as in the same method's runs, or as in all where that method has none yet.
    """
    pace = {
        method: statistics.median(known)
        for method in {item.cell.method for item in grid}
        if (known := [item.step_seconds for item in grid if item.cell.method == method and item.step_seconds])
    }
    if not pace:
        return None
    usual = statistics.median(pace.values())
    finished = [item for item in grid if TRAIN in item.seconds and item.step]
    beside = [item.seconds[TRAIN] - item.step * pace.get(item.cell.method, usual) for item in finished]
    start = max(0.0, statistics.mean(beside)) if beside else 0.0
    evaluations = [item.seconds[EVALUATE] for item in grid if EVALUATE in item.seconds]
    evaluation = statistics.mean(evaluations) if evaluations else 0.0
    left = 0.0
    for item in grid:
        if item.state in (WAITING, TRAIN):
            if item.cell.total_steps is None:
                return None
            steps = max(0, item.cell.total_steps - item.step)
            left += steps * pace.get(item.cell.method, usual) + (start if item.state == WAITING else 0.0)
        if item.state in (WAITING, TRAIN, EVALUATE) and item.cell.evaluation is not None:
            left += evaluation
    return left / parallel
