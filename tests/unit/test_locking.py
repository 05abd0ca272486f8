import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import Timeout

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


def test_who_waits_says_so_and_gets_it_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / ".lock"

    def enter() -> bool:
        with locked(file, note="waiting"):
            return free

    free = False
    with ThreadPoolExecutor(1) as threads:
        with locked(file, note="not printed"):
            waiting = threads.submit(enter)
            end = time.monotonic() + 10
            while not (said := capsys.readouterr().err):
                assert time.monotonic() < end
            free = True
        assert waiting.result(10)
    assert said == "waiting\n"


def test_a_lock_changes_nothing_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text("mine")
    with locked(file):
        pass
    assert file.read_text() == "mine"
