"""Where each run of a grid stands, and how long the rest will take."""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aent_verl.comparison.grid.plan import GridRun
from aent_verl.comparison.grid.record import EVALUATE, TRAIN
from aent_verl.runs.metrics import REWARD, STEP_SECONDS, Metrics, MetricsTail, read_run, validation_accuracy
from aent_verl.runs.run import COMPLETE

WAITING, DONE, FAILED = "waiting", "done", "failed"
_RECENT_STEPS = 20


@dataclass
class Status:
    """The state of one run, according to its files.

    Attributes:
        run: the run.
        record: its ``run.json``, see `aent_verl.comparison.grid.record`.
        state: waiting, train, evaluate, done or failed.
        step: last step logged.
        reward: mean reward of that step.
        accuracy: of the last validation.
        reason: why it failed.
    """

    run: GridRun
    record: dict[str, Any]
    state: str = WAITING
    step: int = 0
    reward: float | None = None
    accuracy: float | None = None
    reason: str = ""
    _step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))

    def __post_init__(self) -> None:
        self._tail = MetricsTail(self.run.metrics_file)
        if self.record.get("state") == COMPLETE:
            self.state = DONE
        try:
            for step, data in read_run(self.run.folder).items():
                self._take(step, data)
        except (FileNotFoundError, ValueError):
            pass  # no start of it has logged a step

    def look(self) -> None:
        """Read what was logged since the last look."""
        for step, data in self._tail.read_new():
            self._take(step, data)

    @property
    def seconds(self) -> dict[str, float]:
        """How long each finished stage took."""
        return self.record["seconds"]

    @property
    def step_seconds(self) -> float | None:
        """Typical seconds of a recent step; None before the first."""
        return statistics.median(self._step_seconds) if self._step_seconds else None

    def _take(self, step: int, data: Metrics) -> None:
        self.step = step
        self.reward = data.get(REWARD, self.reward)
        accuracy = validation_accuracy(data)
        self.accuracy = self.accuracy if accuracy is None else accuracy
        if STEP_SECONDS in data:
            self._step_seconds.append(data[STEP_SECONDS])


def seconds_left(grid: Sequence[Status], parallel: int) -> float | None:
    """Estimate the seconds until the grid is done from what its runs took so far; None before the first step.

    A run's time is its steps, what finished runs spent outside their steps, and the evaluation. A step takes as long
    as in the same method's runs, or as in all where that method has none yet.
    """
    known: dict[str, list[float]] = {}
    for status in grid:
        if status.step_seconds:
            known.setdefault(status.run.method, []).append(status.step_seconds)
    if not known:
        return None
    pace = {method: statistics.median(seconds) for method, seconds in known.items()}
    usual = statistics.median(pace.values())
    trained = [status for status in grid if TRAIN in status.seconds and status.step]
    outside = [each.seconds[TRAIN] - each.step * pace.get(each.run.method, usual) for each in trained]
    start = max(0.0, statistics.mean(outside or [0.0]))
    evaluation = statistics.mean([each.seconds[EVALUATE] for each in grid if EVALUATE in each.seconds] or [0.0])
    left = 0.0
    for status in grid:
        if status.state in (WAITING, TRAIN):
            if status.run.total_steps is None:
                return None
            steps = max(0, status.run.total_steps - status.step)
            left += steps * pace.get(status.run.method, usual) + (start if status.state == WAITING else 0.0)
        if status.state in (WAITING, TRAIN, EVALUATE) and status.run.evaluation is not None:
            left += evaluation
    return left / parallel
