"""Runs the grid: each run's stages in order, so many at a time, and what a killed comparison left is gone on with."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aent_verl.comparison.grid import record as records
from aent_verl.comparison.grid.plan import Cell
from aent_verl.comparison.grid.status import DONE, EVALUATE, FAILED, TRAIN, Status
from aent_verl.launch.processes import Handle
from aent_verl.runs import provenance
from aent_verl.runs.metrics import read_run
from aent_verl.runs.problems import EVALUATION
from aent_verl.runs.run import COMPLETE, LOG

Start = Callable[[Sequence[str], Path], Handle]

# What `aent-verl evaluate` logs to, in its folder.
EVALUATION_LOG = "evaluation.log"
_POLL_SECONDS = 0.5
_LAST_LINES = 3


@dataclass
class _Running:
    status: Status
    record: dict[str, Any]
    stage: str
    handle: Handle
    log: Path
    started: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)


class Schedule:
    """The grid while it runs.

    Args:
        grid: all runs.
        start: starts an interpreter with these arguments and that log file.
        parallel: most runs at a time.
        stall_seconds: a stage whose files do not change for so long is stopped; 0: never.

    Raises:
        ValueError: a run's folder holds something else.
    """

    def __init__(self, grid: Sequence[Cell], start: Start, *, parallel: int, stall_seconds: float) -> None:
        versions, commit = provenance.versions(), provenance.commit()
        for cell in grid:  # all of them, before the first is changed
            records.check(cell)
        self.statuses = [Status(cell) for cell in grid]
        self._records = {cell.folder: records.begin(cell, versions=versions, commit=commit) for cell in grid}
        self._start = start
        self._parallel = parallel
        self._stall_seconds = stall_seconds
        self._running: list[_Running] = []
        self._waiting: deque[Status] = deque()
        for status in self.statuses:
            record = self._records[status.cell.folder]
            status.read_finished()
            status.seconds.update(record["seconds"])
            if record["state"] == COMPLETE:
                status.state = DONE
            else:
                self._waiting.append(status)

    def run(self, show: Callable[[Sequence[Status]], None]) -> list[Status]:
        """Run until all runs are done or failed.

        Args:
            show: is given the state of all runs twice a second.

        Returns:
            The runs that failed; the others are complete.
        """
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self._parallel:
                    self._begin(self._waiting.popleft())
                time.sleep(_POLL_SECONDS)
                for running in list(self._running):
                    running.status.look()
                    self._poll(running)
                show(self.statuses)
        finally:
            with ExitStack() as stack:  # one that cannot be stopped must not keep the others running
                for running in self._running:
                    stack.callback(running.handle.stop)
        return [status for status in self.statuses if status.state == FAILED]

    def _begin(self, status: Status) -> None:
        cell = status.cell
        record = self._records[cell.folder]
        stage = EVALUATE if record["state"] == records.TRAINED else TRAIN
        try:
            arguments = self._arguments(cell, stage)
        except ValueError as error:
            self._fail(status, str(error))
            return
        records.stage_begins(cell, record, stage)
        log = cell.folder / f"{stage}.console.log"
        status.state = stage
        self._running.append(_Running(status, record, stage, self._start(arguments, log), log))

    def _arguments(self, cell: Cell, stage: str) -> list[str]:
        if stage == TRAIN:
            return cell.train_command
        newest = records.checkpoint(cell)
        return cell.evaluate_command(newest)

    def _poll(self, running: _Running) -> None:
        succeeded = running.handle.poll()
        if succeeded is None and self._stalled(running):
            running.handle.stop()
            reason = f"logged nothing for {self._stall_seconds / 60:.0f} minutes and was stopped (stall_minutes)"
        elif succeeded is None:
            return
        else:
            reason = "" if succeeded else _last_lines(running.log)
        self._running.remove(running)
        status, cell = running.status, running.status.cell
        if succeeded and running.stage == TRAIN:
            reason = _shortfall(cell)
        succeeded = not reason
        seconds = time.monotonic() - running.started
        records.stage_ends(cell, running.record, running.stage, seconds, succeeded=succeeded)
        status.seconds.update(running.record["seconds"])
        if not succeeded:
            self._fail(status, reason)
        elif running.record["state"] == COMPLETE:
            status.state = DONE
        else:
            self._begin(status)

    def _stalled(self, running: _Running) -> bool:
        if not self._stall_seconds:
            return False
        folder = running.status.cell.folder
        logs = (folder / LOG, folder / EVALUATION.parent / EVALUATION_LOG)
        files = (running.log, running.status.cell.metrics_file, *logs)
        signs = [file.stat().st_mtime for file in files if file.exists()]
        return time.time() - max([running.started_at, *signs]) > self._stall_seconds

    def _fail(self, status: Status, reason: str) -> None:
        status.state, status.reason = FAILED, reason


def _shortfall(cell: Cell) -> str:
    """Why a run that ended well is not what was asked for; empty if it is."""
    try:
        last = max(read_run(cell.folder))
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    if cell.total_steps is not None and last < cell.total_steps:
        # verl saves the last step before it logs it; a kill in between loses its metrics unless a start validates.
        if not cell.config.trainer.val_before_train and records.saved_step(cell) >= cell.total_steps:
            return ""
        return f"ended at step {last} of {cell.total_steps}, see {cell.folder / LOG}"
    return ""


def _last_lines(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-_LAST_LINES:]) or f"ended without a word, see {log}"
