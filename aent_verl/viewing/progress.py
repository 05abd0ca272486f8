"""What is shown of work while it runs: drawn in place on a terminal, a line now and then anywhere else.

`Display` is what all have in common; a training and a number of responses are here, a grid of runs in
`aent_verl.comparison.grid.display`.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aent_verl._util import duration
from aent_verl.runs import metrics
from aent_verl.runs.worker_reports import banner

POLL_SECONDS = 0.5
# Without a terminal: a line at least so often, where a display has one to say.
HEARTBEAT_SECONDS = 300.0
ROWS = 8
HEADER_EVERY = 25
RECENT_STEPS = 10
# Lines on the way through a number of responses.
LINES = 10

HEADER = ("step", "reward", "valid.", "entropy", "full", "coefficient", "tokens", "s/step", "left")
# Of the columns after the first; 79 characters with the step in 7.
WIDTHS = (7, 7, 12, 7, 13, 7, 7, 12)
_ASCII_ARROWS = str.maketrans("↑↓→", "^v=")
AnyDisplay = TypeVar("AnyDisplay", bound="Display")


class Display:
    """Shows work while the ``with`` block does it. A subclass says what is drawn, and prints lines.

    Args:
        console: where to show it.
        ticks: whether it redraws itself, as for a clock; otherwise `refresh` alone does.
    """

    def __init__(self, console: Console, *, ticks: bool = False) -> None:
        self._console = console
        self._started = self._last_line = time.monotonic()
        self._ticks = ticks
        # A CI log with FORCE_COLOR set passes for a terminal with rich alone.
        self.live = console.is_interactive and console.file.isatty()
        self._drawn: Live | None = None

    def __enter__(self: AnyDisplay) -> AnyDisplay:
        """Start showing."""
        if self.live:
            # Anything else that is printed to the same place goes above; what goes into a log stays there.
            shared = self._console.file is sys.stdout
            self._drawn = Live(
                console=self._console,
                auto_refresh=self._ticks,
                refresh_per_second=1 / POLL_SECONDS,
                redirect_stdout=shared,
                redirect_stderr=shared,
                get_renderable=self.render,
            )
            self._drawn.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave what was drawn last as it is."""
        if self._drawn is not None:
            self._drawn.stop()

    def render(self) -> RenderableType:
        """Return what a terminal shows."""
        raise NotImplementedError

    def heartbeat(self) -> str:
        """Return a line for a long silence; empty for none."""
        return ""

    def refresh(self) -> None:
        """Redraw, or say now and then that the work is alive."""
        if self._drawn is not None:
            self._drawn.refresh()
        elif time.monotonic() - self._last_line > HEARTBEAT_SECONDS and (line := self.heartbeat()):
            self.say(line)

    def say(self, line: str) -> None:
        """Print a line above what is drawn."""
        self._last_line = time.monotonic()
        self._console.print(Text(line), soft_wrap=True)

    def elapsed(self) -> str:
        """Return the time since the display was made."""
        return duration(time.monotonic() - self._started)


class CountDisplay(Display):
    """Counts what is done, and says how long the rest will take.

    Args:
        console: where to show it.
        total: how many there are.
        what: they are, in the plural.
    """

    def __init__(self, console: Console, total: int, what: str) -> None:
        super().__init__(console, ticks=True)
        self._total, self._done, self._what = total, 0, what

    def advance(self) -> None:
        """Count one more."""
        self._done += 1
        if self.live:
            return
        if self._done * LINES // self._total > (self._done - 1) * LINES // self._total:
            self.say(self.heartbeat())
        else:
            self.refresh()

    def heartbeat(self) -> str:
        """Say how many are done, and the time left."""
        said = f"{self._done} of {self._total} {self._what}"
        if not self._done:
            return said
        left = (time.monotonic() - self._started) / self._done * (self._total - self._done)
        return f"{said}, {duration(left)} left"

    def render(self) -> RenderableType:
        """Draw a bar with the same in words."""
        return bar(self._done, self._total, f"{self.heartbeat()}, {self.elapsed()} so far")


class TrainingDisplay(Display):
    """Shows a training: its last steps as a table, or one line per step, and a summary line at its end.

    verl trains in a blocking call, so a thread follows the run from outside: the metrics file that verl's logger writes
    and the report that our trainer writes once the workers are up. Nothing that goes wrong here reaches the training.

    Args:
        console: where to show it.
        total_steps: step at which the run ends; None if only verl knows.
        metrics_path: what verl's ``file`` logger writes.
        report_path: what our trainer writes when the workers are up; one that is already there is of an earlier start.
        log_path: takes the traceback of the first error of the display itself.
        poll_seconds: time between two looks at the files.
    """

    def __init__(
        self,
        console: Console,
        total_steps: int | None,
        metrics_path: str | Path,
        report_path: str | Path,
        log_path: str | Path,
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        super().__init__(console)
        self._total_steps = total_steps
        self._tail = metrics.MetricsTail(metrics_path)
        self._report_path = Path(report_path)
        self._log_path = Path(log_path)
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._failed = False
        self._error: object = None
        self._thread = threading.Thread(target=self._loop, name="aent-verl-progress", daemon=True)
        self._workers_up = False
        self._step: int | None = None
        self._step_seen: float | None = None
        self._coefficient: float | None = None
        # (step, value) of the first and of the last finite one.
        self._validations: list[tuple[int, float]] = []
        self._entropies: list[tuple[int, float]] = []
        self._seconds: deque[float] = deque(maxlen=RECENT_STEPS)
        self._rows: deque[tuple[str, ...]] = deque(maxlen=ROWS)
        self._lines = 0

    def __enter__(self) -> TrainingDisplay:
        """Start following the run."""
        self._old_report = _signature(self._report_path)
        self._guarded(self._thread.start)
        return self

    def __exit__(self, *raised: object) -> None:
        """Take a last look at the run and summarise it."""
        self._error = raised[1]
        self._stop.set()
        # Long enough for a last look; a terminal that blocks its writers must not keep a finished run from ending.
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def render(self) -> RenderableType:
        """Draw the last steps as a table over a bar."""
        # Room for header, validation, bar and what was printed above, also on a small terminal.
        rows = list(self._rows)[-max(1, self._console.height - 5) :]
        styles = ["dim", *[""] * (len(rows) - 1), "bold"]
        # A redrawn bar says what is left, so the last column goes.
        table = [self._line(cells[:-1]) for cells in (HEADER, *rows)] if rows else []
        parts: list[RenderableType] = [
            Text(line, style=style, no_wrap=True) for line, style in zip(table, styles, strict=False)
        ]
        if self._validations:
            # Its row has left the table long before the next one.
            parts.append(Text(f"validation accuracy {_ends(self._validations)}"))
        if phase := self._phase():
            parts.append(Text(f"{phase}  {self.elapsed()}", style="cyan"))
        elif self._total_steps is None:
            parts.append(f"step {self._step}  {self.elapsed()} so far")
        else:
            texts = (f"step {self._step} of {self._total_steps}", f"{self.elapsed()} so far, {self._left()} left")
            parts.append(bar(self._step or 0, self._total_steps, *texts))
        return Group(*parts)

    def _loop(self) -> None:
        self._guarded(super().__enter__)
        if not self.live:
            self._guarded(lambda: self.say(f"{self._phase()} ..."))
        while not self._stop.wait(self._poll_seconds):
            self._guarded(self._look)
        self._guarded(self._look)
        self._guarded(super().__exit__)
        self._guarded(lambda: self.say(self._summary()))

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            if self._failed:
                return
            self._failed = True
            with suppress(OSError), open(self._log_path, "a", encoding="utf-8") as log:
                log.write(f"the progress display failed; training is not affected\n{traceback.format_exc()}")

    def _look(self) -> None:
        self._announce()
        for step, data in self._tail.read_new():
            self._rows.append(self._row(step, data))
            if self.live:
                continue
            if self._lines % HEADER_EVERY == 0:
                self.say(self._line(HEADER))
            self.say(self._line(self._rows[-1]))
            self._lines += 1
        self.refresh()

    def _announce(self) -> None:
        """Print the banner once this start's report of the workers is complete."""
        if self._workers_up or _signature(self._report_path) in (None, self._old_report):
            return
        try:
            reports = json.loads(self._report_path.read_text(encoding="utf-8"))
        except ValueError:
            # Being written.
            return
        self._workers_up = True
        self.say(banner(reports))

    def _row(self, step: int, data: metrics.Metrics) -> tuple[str, ...]:
        """Take in a step and return its row of the table."""
        now = time.monotonic()
        validation = metrics.validation_accuracy(data)
        _keep_ends(self._validations, step, validation)
        _keep_ends(self._entropies, step, data.get(metrics.ENTROPY))
        if math.isfinite(data.get(metrics.STEP_SECONDS, math.nan)):
            # Between two lines lies what verl's step time leaves out: weight updates, validation, checkpoints.
            # Without an earlier line it would be the start-up.
            between = now - self._step_seen if self._step_seen is not None else 0.0
            self._seconds.append(max(data[metrics.STEP_SECONDS], between))
        self._step, self._step_seen = step, now
        coefficient, previous = data.get(metrics.COEFFICIENT), self._coefficient
        if coefficient is not None:
            self._coefficient = coefficient
        return (
            f"{step}" if self._total_steps is None else f"{step}/{self._total_steps}",
            fixed(data.get(metrics.REWARD)),
            fixed(validation),
            {-1.0: "low ", 1.0: "high "}.get(data.get(metrics.BAND_SIDE, 0.0), "") + fixed(data.get(metrics.ENTROPY)),
            fixed(data.get(metrics.ENTROPY_FULL)),
            "-" if coefficient is None else f"{_precise(coefficient)} {_arrow(coefficient, previous)}",
            fixed(data.get(metrics.RESPONSE_LENGTH), 1),
            fixed(data.get(metrics.STEP_SECONDS), 1),
            self._left(),
        )

    def _line(self, cells: Sequence[str]) -> str:
        """Write the cells of a row, or of its first columns, in fixed width."""
        widths = (max(5, 1 + 2 * len(str(self._total_steps or ""))), *WIDTHS)
        text = "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=False))
        return text.translate(_ASCII_ARROWS) if self._console.options.ascii_only else text

    def _left(self) -> str:
        """Estimate the time until the last step from the median of the recent ones."""
        if self._total_steps is None or self._step is None or self._step_seen is None or not self._seconds:
            return "-"
        whole = statistics.median(self._seconds) * (self._total_steps - self._step)
        return duration(max(0.0, whole - (time.monotonic() - self._step_seen)))

    def _phase(self) -> str:
        """Say what happens before the first training step is done; empty after."""
        if self._seconds:
            return ""
        if self._step is not None:
            return "first training step"
        if self._workers_up:
            return "workers are up: validation before training, first step"
        return "starting Ray, workers and vLLM (about two minutes on a laptop)"

    def _summary(self) -> str:
        """Write the line at the end of the run."""
        parts = ["no step finished"]
        if self._step is not None:
            parts = [f"step {self._step}" + ("" if self._total_steps is None else f" of {self._total_steps}")]
        if self._validations:
            parts.append("validation accuracy " + _ends(self._validations))
        if self._entropies:
            parts.append(f"entropy {_ends(self._entropies)} nats")
        if self._coefficient is not None:
            parts.append(f"coefficient {_precise(self._coefficient)}")
        parts.append(f"time {self.elapsed()}")
        outcome = "finished" if self._error is None else f"stopped by {type(self._error).__name__}"
        return f"{outcome}: {', '.join(parts)}"


def bar(done: int, total: int, *texts: str) -> Table:
    """Draw a bar with texts after it."""
    line = Table.grid(padding=(0, 1))
    line.add_row(ProgressBar(total=total, completed=done, width=24), *texts)
    return line


def fixed(value: float | None, digits: int = 3) -> str:
    """Write fixed decimals, which line up in a column; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def _precise(value: float) -> str:
    """Write fixed decimals, or an exponent below 1e-3: published coefficients go down to 1e-6."""
    return fixed(value, 5) if value == 0 or abs(value) >= 1e-3 else f"{value:.3e}"


def _arrow(value: float, previous: float | None) -> str:
    if previous is None or value == previous:
        return "→"
    return "↑" if value > previous else "↓"


def _keep_ends(ends: list[tuple[int, float]], step: int, value: float | None) -> None:
    if value is not None and math.isfinite(value):
        ends[1:] = [(step, value)]


def _ends(ends: list[tuple[int, float]]) -> str:
    return " -> ".join(f"{value:.3f} (step {step})" for step, value in ends)


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Return what changes whenever the file is written; None while there is none."""
    with suppress(OSError):
        found = os.stat(path)
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None
