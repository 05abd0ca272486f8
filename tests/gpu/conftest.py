"""What the tests run on, their time limit, and the record of their errors; needs torch, triton and pytest alone.

    make test-gpu                                            on a CUDA device; fails where there is none
    python -m pytest tests/gpu --on cpu                      rehearsal of the tests at small sizes, torch path
    TRITON_INTERPRET=1 python -m pytest tests/gpu --on cpu   the same with the Triton kernels, interpreted

Without ``--on`` the tests are skipped where there is no CUDA device.
"""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.record import no_gpu, save
from tests.gpu.place import Place

NO_GPU_STATUS = 3
CASES = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tests/gpu")
    group.addoption("--on", choices=("cuda", "cpu"), help="cuda: fail without one; cpu: rehearse at small sizes")
    group.addoption("--record", type=Path, metavar="FILE", help="write device, versions and errors to this JSON")
    group.addoption("--seconds", type=float, default=math.inf, help="after these the remaining tests are left out")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--seconds", None) is None:
        # A session of all tests, which knows nothing of these options.
        return
    if config.getoption("--on") == "cuda" and not torch.cuda.is_available():
        pytest.exit(no_gpu(), returncode=NO_GPU_STATUS)
    config.stash[CASES] = []
    config.pluginmanager.register(Run(config), "gpu-run")


class Run:
    """Time limit and record of one session."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.start = config, time.monotonic()
        self.outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
        self.left_out: list[str] = []
        self.failures: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        limit = self.config.getoption("--seconds")
        if time.monotonic() - self.start > limit:
            self.left_out.append(item.nodeid)
            pytest.skip(f"left out: {limit:g} s are over")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self.left_out:
            return
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome].append(report.nodeid)
        if report.failed:
            self.failures[report.nodeid] = str(report.longrepr).strip().splitlines()[-1]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        # Half of the tests are not a pass.
        if self.left_out and exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if file := self.config.getoption("--record"):
            summary = {outcome: len(tests) for outcome, tests in self.outcomes.items()}
            data = {
                "rehearsal": self.config.getoption("--on") == "cpu",
                "seconds": round(time.monotonic() - self.start, 1),
                **summary,
                "failures": self.failures,
                "left_out": self.left_out,
                "cases": self.config.stash[CASES],
            }
            save(file, place_of(self.config).device, "tests", data)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.left_out:
            terminalreporter.write_line(
                f"{len(self.left_out)} tests were left out when {self.config.getoption('--seconds'):g} s were over: "
                f"--seconds sets another limit. The first of them: {self.left_out[0]}"
            )
        if file := self.config.getoption("--record"):
            terminalreporter.write_line(f"device, versions and errors against fp64: {file}")


def place_of(config: pytest.Config) -> Place:
    on_cuda = torch.cuda.is_available() and config.getoption("--on", None) != "cpu"
    if on_cuda:
        return Place("cuda", ("triton", "torch"))
    return Place("cpu", ("triton", "torch") if os.environ.get("TRITON_INTERPRET") == "1" else ("torch",))


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest) -> Place:
    """Device, kernels and sizes; skips where no test of a GPU makes sense."""
    if not torch.cuda.is_available() and request.config.getoption("--on", None) != "cpu":
        pytest.skip("no CUDA device")
    return place_of(request.config)


@pytest.fixture(params=["triton", "torch"])
def kernel(request: pytest.FixtureRequest, place: Place) -> str:
    if request.param not in place.kernels:
        pytest.skip("the Triton kernels run on CUDA, or interpreted with TRITON_INTERPRET=1")
    return str(request.param)


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    """Where a test puts what it measured; it goes into the record, the test's name with it."""
    found: list[dict[str, Any]] = []
    yield found
    # Not there in a session that has these tests beside all others.
    kept = request.config.stash.get(CASES, [])
    kept += [{"test": request.node.name, **case} for case in found]
