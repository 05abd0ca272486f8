"""How far an evaluation is, and how long it will take: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_LINES = 10


class Progress:
    """Counts responses; to be used in a ``with`` block.

    Args:
        total: responses to come.
        terminal: where people look.
    """

    def __init__(self, total: int, terminal: TextIO) -> None:
        from rich.console import Console

        self._total, self._done = total, 0
        self._terminal = terminal
        self._start = time.monotonic()
        self._console = Console(file=terminal)
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        """Show the bar, where one can be shown."""
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("responses"), TimeElapsedColumn())
            self._bar = Bar(*columns, TextColumn("left:"), TimeRemainingColumn(), console=self._console)
            self._bar.add_task("", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self) -> None:
        """One more response is there and scored."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])
        elif self._done * _LINES // self._total > (self._done - 1) * _LINES // self._total:
            left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
            print(f"{self._done} of {self._total} responses, {left:.0f} s left", file=self._terminal)
