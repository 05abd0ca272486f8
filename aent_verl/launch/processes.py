"""A stage of a run as a process on this machine, which never outlives the comparison that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_CHILD = "aent_verl.launch.child"
_GRACE_SECONDS = 20


class Handle(Protocol):
    """Something that was started and will end."""

    def poll(self) -> bool | None:
        """Whether it ended well; None while it runs."""

    def stop(self) -> None:
        """End it, and wait until it has ended."""


class LocalProcess:
    """A process of this machine; its output goes to the end of a log file."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _CHILD, str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the comparison alone, which then stops its runs
            )

    def poll(self) -> bool | None:
        """See `Handle`."""
        status = self._process.poll()
        return None if status is None else status == 0

    def stop(self) -> None:
        """See `Handle`."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def start_local(arguments: Sequence[str], log: Path) -> Handle:
    """Start the interpreter with these arguments, as in ``python -m aent_verl.commands.train key=value``."""
    return LocalProcess(arguments, log)
