"""A lock between processes that ends with its holder, so that a killed one leaves nothing to clear away."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def locked(file: Path, *, wait: bool = True, note: str = "") -> Iterator[None]:
    """Hold an exclusive lock; the system releases it when the process dies, so it is never stale.

    Args:
        file: The lock, created when absent, in a folder that exists. It stays there afterwards: were it removed, a
            process that waits for it and one that comes later would both hold a lock.
        wait: Whether to wait while another process, or another thread of this one, holds it.
        note: A line for stderr, printed only if there is something to wait for.

    Raises:
        BlockingIOError: on entering: it is held, and `wait` is false.
        OSError: on entering: the file cannot be created or written to, or its file system has no locks.
    """
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            if note:
                print(note, file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def alone(folder: Path, setting: str, busy: Exception) -> Iterator[None]:
    """Hold a folder against other processes that would work in it; where its file system has no locks, warn.

    Args:
        folder: Created when absent; the lock is its `.lock`.
        setting: The folder's key and value, for the warning.
        busy: Raised on entering when another process, or another thread of this one, holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError:
            raise busy from None
        except OSError as error:
            print(f"warning: {setting} cannot be locked ({error}): start one process in it", file=sys.stderr)
        yield
