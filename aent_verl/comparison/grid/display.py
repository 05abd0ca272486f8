"""Progress over the whole grid: a table that redraws itself on a terminal, lines as things happen anywhere else."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aent_verl._util import duration
from aent_verl.comparison.grid.status import DONE, FAILED, WAITING, Status, seconds_left
from aent_verl.viewing.progress import Display, fixed

_MOST_ROWS = 30


class GridDisplay(Display):
    """Shows where the runs of a grid stand; a context manager.

    Args:
        console: where.
        parallel: runs at a time, for the time left.
    """

    def __init__(self, console: Console, parallel: int) -> None:
        super().__init__(console)
        self._parallel = parallel
        self._grid: Sequence[Status] = ()
        self._states: dict[str, str] = {}

    def show(self, grid: Sequence[Status]) -> None:
        """Draw the grid, or print what changed since the last call."""
        self._grid = grid
        for status in () if self.live else grid:
            if status.state != self._states.get(status.run.name, WAITING):
                self._states[status.run.name] = status.state
                self.say(f"{status.run.name}: {describe(status)}")
        self.refresh()

    def render(self) -> Group:
        """Draw the table over its summary."""
        return Group(table(self._grid), total(self._grid, self._parallel))

    def heartbeat(self) -> str:
        """Name the active runs and summarise them all."""
        active = (status for status in self._grid if status.state not in (WAITING, DONE, FAILED))
        running = "; ".join(f"{status.run.name} {describe(status)}" for status in active)
        return f"{running}; {total(self._grid, self._parallel)}"


def table(grid: Sequence[Status]) -> Table:
    """Draw one row for each run; of a large grid only for those that run or failed."""
    drawn = Table(box=None, pad_edge=False)
    for header in ("run", "state", "step", "", "reward", "valid.", "s/step"):
        drawn.add_column(header, justify="left" if header in ("run", "state", "") else "right", no_wrap=True)
    for status in grid:
        if len(grid) > _MOST_ROWS and status.state in (WAITING, DONE):
            continue
        steps = status.run.total_steps
        drawn.add_row(
            status.run.name,
            Text(status.state, style={DONE: "green", FAILED: "red", WAITING: "dim"}.get(status.state, "bold")),
            f"{status.step}/{steps or '?'}",
            ProgressBar(total=steps or 1, completed=status.step, width=16),
            fixed(status.reward),
            fixed(status.accuracy),
            fixed(status.step_seconds, 1),
        )
    return drawn


def total(grid: Sequence[Status], parallel: int) -> str:
    """Say how many runs are done and failed, and the time left."""
    counts = Counter(status.state for status in grid)
    left = seconds_left(grid, parallel)
    parts = [f"{counts[DONE]} of {len(grid)} runs done"]
    parts += [f"{counts[FAILED]} failed"] if counts[FAILED] else []
    parts += [f"about {duration(left)} left"] if left is not None and counts[DONE] < len(grid) else []
    return ", ".join(parts)


def describe(status: Status) -> str:
    """Describe one run in words."""
    if status.state == FAILED:
        return f"failed: {status.reason}"
    if status.state == DONE:
        accuracy = "" if status.accuracy is None else f", last validation {status.accuracy:.3f}"
        return f"done, {status.step} steps{accuracy}, {duration(sum(status.seconds.values()))}"
    return f"{status.state} ({status.step} of {status.run.total_steps or '?'} steps)"
