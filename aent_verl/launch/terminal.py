"""Keeps the terminal for people: what libraries and Ray's workers print goes into a log file."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
