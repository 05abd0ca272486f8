"""A stage of a run as a process on this machine, which never outlives the comparison that started it.

``python -m aent_verl.launch.processes PID -m MODULE ...`` runs a module that dies with the process PID. Without this a
comparison that is killed would leave its run behind, and the next start would train in the same folder. Ray's processes
die with the one that started them.
"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_GRACE_SECONDS = 20
_PR_SET_PDEATHSIG = 1


class Handle(Protocol):
    """Something that was started and will end."""

    def poll(self) -> bool | None:
        """Return whether it ended without an error; None while it runs."""

    def stop(self) -> None:
        """End it, and wait until it has ended."""


class LocalProcess:
    """An interpreter on this machine, as in ``python -m aent_verl.commands.train key=value``.

    Args:
        arguments: the interpreter's.
        log: the file at whose end its output goes.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(os.getpid()), *arguments],
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


def main() -> None:
    """Tie this process to its parent, then become the module."""
    parent, flag, module, *arguments = sys.argv[1:]
    assert flag == "-m"
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit("the comparison that started this run has ended")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
