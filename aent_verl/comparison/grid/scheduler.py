"""Runs a grid: the stages of each run in order, several runs at a time; a grid that was killed resumes."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from aent_verl.comparison.grid import record as records
from aent_verl.comparison.grid.plan import GridRun
from aent_verl.comparison.grid.record import EVALUATE, TRAIN
from aent_verl.comparison.grid.status import DONE, FAILED, Status
from aent_verl.launch.processes import Handle
from aent_verl.runs import provenance
from aent_verl.runs.checkpoints import latest_step
from aent_verl.runs.metrics import read_run
from aent_verl.runs.problems import EVALUATION
from aent_verl.runs.run import COMPLETE, LOG

Start = Callable[[Sequence[str], Path], Handle]

# What `aent-verl evaluate` logs to, in its folder.
EVALUATION_LOG = "evaluation.log"
POLL_SECONDS = 0.5
_LAST_LINES = 3


@dataclass
class _Stage:
    """A stage of a run at work; which one is the run's state."""

    status: Status
    handle: Handle
    log: Path
    started: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)


class Scheduler:
    """Runs a grid.

    Args:
        grid: all runs.
        start: starts an interpreter with these arguments and that log file.
        parallel: most runs at a time.
        stall_seconds: a stage whose files do not change for so long is stopped; 0: never.
        poll_seconds: between two looks at the runs.

    Raises:
        ValueError: a run's folder holds something else.
    """

    def __init__(
        self,
        grid: Sequence[GridRun],
        start: Start,
        *,
        parallel: int,
        stall_seconds: float,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        versions, commit = provenance.versions(), provenance.commit()
        for run in grid:  # all of them, before the first is changed
            records.check(run)
        self.statuses = [Status(run, records.begin(run, versions=versions, commit=commit)) for run in grid]
        self._start = start
        self._parallel = parallel
        self._stall_seconds = stall_seconds
        self._poll_seconds = poll_seconds
        self._stages: list[_Stage] = []
        self._waiting = deque(status for status in self.statuses if status.state != DONE)

    def run(self, show: Callable[[Sequence[Status]], None]) -> list[Status]:
        """Run until all runs are done or failed.

        Args:
            show: is given the state of all runs at each look.

        Returns:
            The runs that failed; the others are complete.
        """
        try:
            while self._waiting or self._stages:
                while self._waiting and len(self._stages) < self._parallel:
                    self._begin(self._waiting.popleft())
                time.sleep(self._poll_seconds)
                for stage in list(self._stages):
                    stage.status.look()
                    self._poll(stage)
                show(self.statuses)
        finally:
            with ExitStack() as stack:  # one that cannot be stopped must not keep the others running
                for stage in self._stages:
                    stack.callback(stage.handle.stop)
        return [status for status in self.statuses if status.state == FAILED]

    def _begin(self, status: Status) -> None:
        run = status.run
        state = EVALUATE if status.record["state"] == records.TRAINED else TRAIN
        try:
            command = run.train_command if state == TRAIN else run.evaluate_command(records.last_checkpoint(run))
        except ValueError as error:
            status.state, status.reason = FAILED, str(error)
            return
        status.state = state
        records.stage_begins(run, status.record, state)
        log = run.folder / f"{state}.console.log"
        self._stages.append(_Stage(status, self._start(command, log), log))

    def _poll(self, stage: _Stage) -> None:
        status = stage.status
        succeeded = stage.handle.poll()
        if succeeded is None and self._stalled(stage):
            stage.handle.stop()
            reason = f"logged nothing for {self._stall_seconds / 60:.0f} minutes and was stopped (stall_minutes)"
        elif succeeded is None:
            return
        elif succeeded:
            reason = _shortfall(status.run) if status.state == TRAIN else ""
        else:
            reason = _last_lines(stage.log)
        self._stages.remove(stage)
        seconds = time.monotonic() - stage.started
        records.stage_ends(status.run, status.record, status.state, seconds, succeeded=not reason)
        if reason:
            status.state, status.reason = FAILED, reason
        elif status.record["state"] == COMPLETE:
            status.state = DONE
        else:
            self._begin(status)

    def _stalled(self, stage: _Stage) -> bool:
        if not self._stall_seconds:
            return False
        run = stage.status.run
        files = (stage.log, run.metrics_file, run.folder / LOG, run.folder / EVALUATION.parent / EVALUATION_LOG)
        signs = [file.stat().st_mtime for file in files if file.exists()]
        return time.time() - max([stage.started_at, *signs]) > self._stall_seconds


def _shortfall(run: GridRun) -> str:
    """Say why a training that ended without an error is not what was asked for; empty if it is."""
    try:
        last = max(read_run(run.folder))
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    if run.total_steps is None or last >= run.total_steps:
        return ""
    # verl saves the last step before it logs it; a kill in between loses its metrics unless a start validates.
    trainer = run.config.trainer
    if not trainer.val_before_train and latest_step(trainer.default_local_dir) >= run.total_steps:
        return ""
    return f"ended at step {last} of {run.total_steps}, see {run.folder / LOG}"


def _last_lines(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-_LAST_LINES:]) or f"ended without output, see {log}"
