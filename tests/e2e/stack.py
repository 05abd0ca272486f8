"""Starting, awaiting and killing commands that bring the whole stack up."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

# Ray's workers are nice by default, and would wait for whatever else runs on a busy machine.
ENVIRONMENT = {"CI": "true", "RAY_worker_niceness": "0"}


def start(arguments: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        arguments,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        env=os.environ | ENVIRONMENT | environment,
        start_new_session=True,
        cwd=log.parent,
    )


def finish(process: subprocess.Popen[bytes], log: Path, seconds: float) -> str:
    try:
        status = process.wait(timeout=seconds)
    finally:
        kill(process)
    text = log.read_text(errors="replace")
    assert status == 0, text[-6000:]
    return text


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the driver and everything it started, and wait until Ray's processes have seen that it is gone."""
    # Ray puts its processes into groups of their own, but they stay in the driver's session; so does each run of a
    # comparison in one of its own. The driver first: it must not see the others die.
    sessions = {process.pid}
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(ProcessLookupError):
                sessions.add(os.getsid(child.pid))
    for pid in sorted(psutil.pids(), key=lambda pid: pid != process.pid):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) in sessions:
                os.kill(pid, signal.SIGKILL)
    process.wait()
    time.sleep(5)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the leader of a session, and whatever is left of the session then."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
    process.wait()


def run_family(arguments: list[str], folder: Path, seconds: float, **variables: str) -> None:
    """Train in ``folder`` with another preset in each step, see `tests.e2e.family`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.family", *arguments],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])} | variables,
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]


def free_port() -> int:
    """Find a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def ray_head(*options: str) -> Iterator[int]:
    """Run ``ray start --head`` with these options for a while; yields its port."""
    port = free_port()
    # A folder of its own: there Ray notes the cluster that `ray.init` then joins, for other tests and when it is gone.
    # Not pytest's, whose path is too long for a socket.
    folder = tempfile.mkdtemp(prefix="ray")
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", *options],
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
