"""What a run shows while it trains: a live table on a terminal, one line per step anywhere else.

verl trains in a blocking call, so a thread follows the run from outside: the metrics file that verl's logger writes and
the report that our trainer writes once the workers are up. Nothing that goes wrong here reaches the training.
"""

import json
import math
import os
import statistics
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aent_verl.runs.metrics import (
    BAND_SIDE,
    COEFFICIENT,
    ENTROPY,
    ENTROPY_FULL,
    RESPONSE_LENGTH,
    REWARD,
    STEP_SECONDS,
    Metrics,
    MetricsTail,
    validation_accuracy,
)
from aent_verl.runs.worker_reports import banner

STARTING = "starting Ray, workers and vLLM (about two minutes on a laptop)"
VALIDATING = "workers are up: validation before training, first step"
FIRST_STEP = "first training step"
POLL_SECONDS = 0.5
ROWS = 8
HEADER_EVERY = 25
RECENT_STEPS = 10

# Header, width in the plain form, of the columns after the first; 79 characters with the step in 5.
COLUMNS = (
    ("reward", 7),
    ("valid.", 7),
    ("entropy", 12),
    ("full", 7),
    ("coefficient", 13),
    ("tokens", 7),
    ("s/step", 7),
    ("left", 8),
)


class ProgressDisplay:
    """Shows a run while the ``with`` block trains, and a summary line at its end.

    Args:
        console: where to show it; a table that redraws itself on a terminal, plain lines elsewhere.
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
        self._run = _Run(total_steps, started=time.monotonic())
        self._tail = MetricsTail(metrics_path)
        self._report_path: Path | None = Path(report_path)
        self._log_path = Path(log_path)
        self._view = _LiveView(console, self._run) if _redraws(console) else _PlainView(console, self._run)
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._failed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="aent-verl-progress", daemon=True)

    def __enter__(self) -> "ProgressDisplay":
        self._old_report = _signature(self._report_path)
        self._guarded(self._thread.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._error = error
        self._stop.set()
        # Long enough for a last look; a terminal that blocks its writers must not keep a finished run from ending.
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _loop(self) -> None:
        self._guarded(self._view.start)
        while not self._stop.wait(self._poll_seconds):
            self._guarded(self._look)
        self._guarded(self._look)
        self._guarded(self._view.stop)
        self._guarded(lambda: self._view.say(self._run.summary(self._error)))

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            if self._failed:
                return
            self._failed = True
            try:
                with open(self._log_path, "a", encoding="utf-8") as log:
                    log.write(f"the progress display failed; training is not affected\n{traceback.format_exc()}")
            except OSError:
                pass

    def _look(self) -> None:
        self._announce()
        rows = [self._run.add(step, data) for step, data in self._tail.read_new()]
        for row in rows:
            self._view.row(row)
        self._view.refresh()

    def _announce(self) -> None:
        """Print the banner once the workers' report of this start is there, whole."""
        if self._report_path is None or _signature(self._report_path) in (None, self._old_report):
            return
        try:
            reports = json.loads(self._report_path.read_text(encoding="utf-8"))
        except ValueError:
            # Being written.
            return
        self._report_path = None
        self._run.workers_up = True
        self._view.say(banner(reports))


@dataclass
class _Run:
    """What is known of the run so far, and how to say it."""

    total_steps: int | None
    started: float
    workers_up: bool = False
    step: int | None = None
    step_seen: float | None = None
    trained: bool = False
    coefficient: float | None = None
    # (step, value) of the first and of the last finite one.
    validations: list[tuple[int, float]] = field(default_factory=list)
    entropies: list[tuple[int, float]] = field(default_factory=list)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))

    def add(self, step: int, data: Metrics) -> tuple[str, ...]:
        """Take in a step and return its row of the table."""
        now = time.monotonic()
        validation = validation_accuracy(data)
        _keep_ends(self.validations, step, validation)
        _keep_ends(self.entropies, step, data.get(ENTROPY))
        if math.isfinite(data.get(STEP_SECONDS, math.nan)):
            # Between two lines lies what verl's step time leaves out: weight updates, validation, checkpoints.
            # Without an earlier line it would be the start-up.
            between = now - self.step_seen if self.step_seen is not None else 0.0
            self.seconds.append(max(data[STEP_SECONDS], between))
            self.trained = True
        self.step, self.step_seen = step, now
        coefficient, previous = data.get(COEFFICIENT), self.coefficient
        if coefficient is not None:
            self.coefficient = coefficient
        return (
            f"{step}" if self.total_steps is None else f"{step}/{self.total_steps}",
            _number(data.get(REWARD)),
            _number(validation),
            {-1.0: "low ", 1.0: "high "}.get(data.get(BAND_SIDE, 0.0), "") + _number(data.get(ENTROPY)),
            _number(data.get(ENTROPY_FULL)),
            "-" if coefficient is None else f"{_precise(coefficient)} {_arrow(coefficient, previous)}",
            _number(data.get(RESPONSE_LENGTH), ".1f"),
            _number(data.get(STEP_SECONDS), ".1f"),
            self.left(),
        )

    def left(self) -> str:
        """Time until the last step, from the median of the recent ones."""
        if self.total_steps is None or self.step is None or self.step_seen is None or not self.seconds:
            return "-"
        whole = statistics.median(self.seconds) * (self.total_steps - self.step)
        return _duration(max(0.0, whole - (time.monotonic() - self.step_seen)))

    def elapsed(self) -> str:
        """Time since the display started."""
        return _duration(time.monotonic() - self.started)

    def phase(self) -> str:
        """What happens before the first training step is through; empty after."""
        if self.trained:
            return ""
        if self.step is not None:
            return FIRST_STEP
        return VALIDATING if self.workers_up else STARTING

    def summary(self, error: BaseException | None) -> str:
        """The line at the end of the run."""
        if self.step is None:
            parts = ["no step finished"]
        else:
            parts = [f"step {self.step}" + ("" if self.total_steps is None else f" of {self.total_steps}")]
        if self.validations:
            parts.append("validation accuracy " + _ends(self.validations))
        if self.entropies:
            parts.append(f"entropy {_ends(self.entropies)} nats")
        if self.coefficient is not None:
            parts.append(f"coefficient {_precise(self.coefficient)}")
        parts.append(f"time {self.elapsed()}")
        outcome = "finished" if error is None else f"stopped by {type(error).__name__}"
        return f"{outcome}: {', '.join(parts)}"


class _PlainView:
    """Lines of fixed width, for logs and terminals that cannot redraw. Used by the display's thread only."""

    def __init__(self, console: Console, run: _Run) -> None:
        self._console = console
        self._run = run
        self._rows = 0

    def start(self) -> None:
        self.say(self._run.phase() + " ...")

    def say(self, text: str) -> None:
        _print(self._console, text)

    def row(self, cells: tuple[str, ...]) -> None:
        if self._rows % HEADER_EVERY == 0:
            self._line(("step", *(name for name, _ in COLUMNS)))
        self._line(cells)
        self._rows += 1

    def refresh(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def _line(self, cells: tuple[str, ...]) -> None:
        step_width = max(5, 1 + 2 * len(str(self._run.total_steps or "")))
        widths = (step_width, *(width for _, width in COLUMNS))
        text = "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        self.say(text.translate(_ASCII_ARROWS) if self._console.options.ascii_only else text)


class _LiveView:
    """The last steps as a table over a bar, redrawn in place."""

    def __init__(self, console: Console, run: _Run) -> None:
        self._console = console
        self._run = run
        self._recent: deque[tuple[str, ...]] = deque(maxlen=ROWS)
        # Redirecting would bring to the terminal what the run prints into its log. Our own polls redraw often enough.
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            get_renderable=self._render,
        )

    def start(self) -> None:
        self._live.start(refresh=True)

    def say(self, text: str) -> None:
        _print(self._console, text)

    def row(self, cells: tuple[str, ...]) -> None:
        self._recent.append(cells)

    def refresh(self) -> None:
        self._live.refresh()

    def stop(self) -> None:
        self._live.stop()

    def _render(self) -> Group:
        parts: list[RenderableType] = [self._table()] if self._recent else []
        run = self._run
        if run.validations:
            # Its row has left the table long before the next one.
            parts.append(Text(f"validation accuracy {_ends(run.validations)}"))
        if run.phase():
            parts.append(Text(f"{run.phase()}  {run.elapsed()}", style="cyan"))
        else:
            line = Table.grid(padding=(0, 1))
            status: list[RenderableType] = [f"step {run.step}", f"{run.elapsed()} so far"]
            if run.total_steps is not None:
                status = [f"step {run.step} of {run.total_steps}", f"{run.elapsed()} so far, {run.left()} left"]
                status.insert(0, ProgressBar(total=run.total_steps, completed=run.step or 0, width=24))
            line.add_row(*status)
            parts.append(line)
        return Group(*parts)

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 1), header_style="dim")
        table.add_column("step", justify="right", no_wrap=True)
        for name, width in COLUMNS[:-1]:
            table.add_column(name, justify="right", no_wrap=True, min_width=width - 2)
        # Room for header, validation, bar and what was printed above, also on a small terminal.
        rows = list(self._recent)[-max(1, self._console.height - 5) :]
        for row in rows:
            table.add_row(*(Text(cell) for cell in row[:-1]), style="bold" if row is rows[-1] else "")
        return table


_UP, _DOWN, _FLAT = "↑", "↓", "→"
_ASCII_ARROWS = str.maketrans({_UP: "^", _DOWN: "v", _FLAT: "="})


def _arrow(value: float, previous: float | None) -> str:
    if previous is None or value == previous:
        return _FLAT
    return _UP if value > previous else _DOWN


def _redraws(console: Console) -> bool:
    """Whether this is a real terminal; a CI log with FORCE_COLOR set passes for one with rich alone."""
    return console.is_interactive and console.file.isatty()


def _print(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _precise(value: float) -> str:
    """Fixed decimals line up in a column; published coefficients go down to 1e-6, where they would say nothing."""
    return f"{value:.5f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.3e}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _keep_ends(ends: list[tuple[int, float]], step: int, value: float | None) -> None:
    if value is not None and math.isfinite(value):
        ends[1:] = [(step, value)]


def _ends(ends: list[tuple[int, float]]) -> str:
    return " -> ".join(f"{value:.3f} (step {step})" for step, value in ends)


def _signature(path: Path | None) -> tuple[int, int, int] | None:
    """Changes whenever the file is written; None while there is none."""
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return found and (found.st_mtime_ns, found.st_size, found.st_ino)
