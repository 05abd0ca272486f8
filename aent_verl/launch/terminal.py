"""The terminal is for people: what libraries and Ray's workers print goes into a log file, and errors are one line."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO


@contextmanager
def redirected_output(log: Path) -> Iterator[TextIO]:
    """Send standard output and error of this process, C code and later children included, to the end of ``log``.

    Args:
        log: the file; its folder is made.

    Yields:
        A stream to what standard output was before.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with (
        open(log, "ab") as file,
        os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace") as terminal,
    ):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, copy in enumerate(saved, start=1):
                os.dup2(copy, target)
                os.close(copy)


@contextmanager
def exit_on_error(log: Path | None = None, *, words: Callable[[str], str] = str) -> Iterator[TextIO]:
    """End the process with status 1 and one line on what caused an error within; the traceback goes into ``log``.

    Args:
        log: the file that gets all other output, if any.
        words: rewords the line, for a command with keys of its own.

    Yields:
        The terminal.
    """
    from aent_verl.preflight.findings import root_cause

    try:
        with redirected_output(log) if log else nullcontext(sys.stdout) as terminal:
            try:
                yield terminal
            except Exception:
                if log:
                    traceback.print_exc()
                raise
    except Exception as error:
        cause, where = root_cause(error), f"; the full log is {log}" if log else ""
        print(f"error: {words(str(cause))}\n({type(cause).__name__}{where})", file=sys.stderr)
        sys.exit(1)
