"""Progress over the whole grid: a table that redraws itself on a terminal, lines as things happen anywhere else."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aent_verl.comparison.grid.status import DONE, FAILED, WAITING, Status, seconds_left

HEARTBEAT_SECONDS = 300.0
_MOST_ROWS = 30


class GridDisplay:
    """Shows where the runs of a grid stand; a context manager.

    Args:
        console: where.
        parallel: runs at a time, for the time left.
    """

    def __init__(self, console: Console, parallel: int) -> None:
        self._console = console
        self._parallel = parallel
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
        self._states: dict[str, str] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> GridDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, grid: Sequence[Status]) -> None:
        """Draw the grid, or print what changed since the last call."""
        if self._live:
            self._live.update(Group(table(grid), total(grid, self._parallel)))
            return
        for status in grid:
            before = self._states.get(status.run.name, WAITING)
            if status.state != before:
                self._states[status.run.name] = status.state
                self._say(f"{status.run.name}: {describe(status)}")
        if time.monotonic() - self._last_line > HEARTBEAT_SECONDS:
            running = [f"{status.run.name} {describe(status)}" for status in grid if _active(status)]
            self._say(f"{'; '.join(running)}; {total(grid, self._parallel).plain}")

    def _say(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def table(grid: Sequence[Status]) -> Table:
    """One row a run; a large grid shows those that run or failed, and counts the others."""
    drawn = Table(box=None, pad_edge=False)
    for header in ("run", "state", "step", "", "reward", "valid.", "s/step"):
        drawn.add_column(header, justify="left" if header in ("run", "state", "") else "right", no_wrap=True)
    shown = (
        list(grid) if len(grid) <= _MOST_ROWS else [status for status in grid if status.state not in (WAITING, DONE)]
    )
    for status in shown:
        steps = status.run.total_steps
        drawn.add_row(
            status.run.name,
            Text(status.state, style={DONE: "green", FAILED: "red", WAITING: "dim"}.get(status.state, "bold")),
            f"{status.step}/{steps or '?'}",
            ProgressBar(total=steps or 1, completed=status.step, width=16),
            _number(status.reward, 3),
            _number(status.accuracy, 3),
            _number(status.step_seconds, 1),
        )
    return drawn


def total(grid: Sequence[Status], parallel: int) -> Text:
    """How many runs are where, and the time left."""
    counts = Counter(status.state for status in grid)
    left = seconds_left(grid, parallel)
    parts = [f"{counts[DONE]} of {len(grid)} runs done"]
    parts += [f"{counts[FAILED]} failed"] if counts[FAILED] else []
    parts += [f"about {duration(left)} left"] if left is not None and counts[DONE] < len(grid) else []
    return Text(", ".join(parts))


def describe(status: Status) -> str:
    """One run in words."""
    if status.state == FAILED:
        return f"failed: {status.reason}"
    if status.state == DONE:
        accuracy = "" if status.accuracy is None else f", last validation {status.accuracy:.3f}"
        return f"done, {status.step} steps{accuracy}, {duration(sum(status.seconds.values()))}"
    return f"{status.state} ({status.step} of {status.run.total_steps or '?'} steps)"


def duration(seconds: float) -> str:
    """As in 2 h 05 min, or 40 s."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _active(status: Status) -> bool:
    return status.state not in (WAITING, DONE, FAILED)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
