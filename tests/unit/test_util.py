import io
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import Timeout

from aent_verl import _util
from aent_verl._util import locked

HOLDER = """
import signal, sys
from pathlib import Path
from aent_verl._util import locked

signal.alarm(30)
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def test_a_lock_is_held_against_other_processes_and_ends_with_its_holder(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Timeout), locked(file, wait=False):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    with locked(file, wait=False):
        pass


class Heard(io.StringIO):
    """A terminal that notes when something is said."""

    def __init__(self) -> None:
        super().__init__()
        self.something = threading.Event()

    def flush(self) -> None:
        if self.getvalue():
            self.something.set()


def test_who_waits_says_so_and_gets_it_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, terminal = tmp_path / ".lock", Heard()
    monkeypatch.setattr(sys, "stderr", terminal)

    def enter() -> bool:
        with locked(file, note="waiting"):
            return free

    free = False
    with ThreadPoolExecutor(1) as threads:
        with locked(file, note="not printed"):
            waiting = threads.submit(enter)
            assert terminal.something.wait(10)
            free = True
        assert waiting.result(10)
    assert terminal.getvalue() == "waiting\n"


def test_a_lock_changes_nothing_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text("mine")
    with locked(file):
        pass
    assert file.read_text() == "mine"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.json"
    _util.write_json(file, {"b": 1, "a": [2]})
    assert _util.read_json(file, "remove it") == {"a": [2], "b": 1}
    with suppress(KeyboardInterrupt), _util.atomic_path(file) as partial:
        partial.write_text("half of")
        raise KeyboardInterrupt
    assert _util.read_json(file, "remove it") == {"a": [2], "b": 1}


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: str) -> None:
    file = tmp_path / "file.json"
    assert _util.read_json(file, "remove it") is None
    file.write_text(content)
    with pytest.raises(ValueError, match=rf"{file}.*remove it"):
        _util.read_json(file, "remove it")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (90, "1 min 30 s"), (3599, "59 min 59 s")),
        *((3600, "1 h"), (3725, "1 h 2 min"), (3599.6, "1 h"), (4_000_000, "1,111 h 7 min")),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert _util.duration(seconds) == text


def test_numbers_name_key_value_and_range() -> None:
    assert _util.number("lr", 1, allowed="a number") == 1.0
    assert _util.whole_number("n", 3, lowest=3) == 3
    for value in (True, "1", None, -1):
        with pytest.raises(ValueError, match=f"lr={value!r} is not allowed: must be >= 0"):
            _util.number("lr", value, lambda x: x >= 0, allowed=">= 0")
    for value in (True, 1.0, "1", 0):
        with pytest.raises(ValueError, match=f"n={value!r} is not allowed: must be a whole number from 1"):
            _util.whole_number("n", value, lowest=1)


def test_text_is_made_safe_and_short() -> None:
    assert _util.printable("a\x1b[31m\u202eb\ud800\n\t") == "a␛[31m⟨U+202E⟩b⟨U+D800⟩\n\t"
    assert _util.first_few(["a", "b"], 2) == "a, b"
    assert _util.first_few(["a", "b", "c", "d"], 2) == "a, b and 2 more"


def test_a_file_system_without_locks_is_an_os_error_whatever_filelock_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(OSError, match="no flock here"), locked(tmp_path / "lock"):
        pass
