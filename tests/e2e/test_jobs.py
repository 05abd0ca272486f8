"""A grid as jobs of a real Ray cluster; the runs themselves are the stand-in of tests/unit/compare."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aent_verl.comparison.grid.scheduler import Scheduler
from aent_verl.launch.ray_jobs import RayJobs
from tests.e2e.stack import free_port, ray_head
from tests.unit.comparison.grid.grid import grid_run
from tests.unit.comparison.grid.test_scheduler import starts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a head node that takes jobs."""
    dashboard = free_port()
    ports = f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"
    with ray_head(*ports, "--num-cpus=4"):
        yield f"http://127.0.0.1:{dashboard}"


@pytest.fixture
def jobs(cluster: str, monkeypatch: pytest.MonkeyPatch) -> RayJobs:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    deadline = time.monotonic() + 120
    while True:
        try:
            return RayJobs()
        except RuntimeError:
            assert time.monotonic() < deadline, "the cluster takes no jobs"
            time.sleep(2)


def stand_in(arguments: list[str]) -> list[str]:
    return ["-m", "tests.unit.comparison.grid.trainer", *arguments[1:]]


def test_a_grid_runs_as_jobs_and_a_failure_is_named(jobs: RayJobs, tmp_path: Path):
    grid = [grid_run(tmp_path, "grpo", 1, evaluated=True), grid_run(tmp_path, "fails", 1)]
    failed = Scheduler(
        grid, lambda arguments, log: jobs.start(stand_in(arguments), log), parallel=2, stall_seconds=0
    ).run(lambda _: None)
    assert starts(grid[0].folder) == {"train": 1, "evaluate": 1}
    assert [status.run.method for status in failed] == ["fails"]
    assert "boom: out of memory" in failed[0].reason


def test_a_job_that_still_runs_is_gone_on_with(jobs: RayJobs, tmp_path: Path):
    log = tmp_path / "runs" / "grpo_seed1" / "train.console.log"
    sleeper = ["-c", "import time; print('here'); time.sleep(600)"]
    first = jobs.start(sleeper, log)
    assert jobs.start(sleeper, log).name == first.name
    other = jobs.start(["-c", "print('else')"], log)
    assert other.name != first.name
    first.stop()
    assert first.poll() is False
    assert jobs.start(sleeper, log).name not in (first.name, other.name)


def test_a_run_may_set_a_variable_of_its_job(jobs: RayJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As `aent-verl train` does with VERL_PLATFORM, VLLM_PLUGINS and others."""
    monkeypatch.setenv("VLLM_PLUGINS", "of the job")
    driver = """import os, ray
ray.init(runtime_env={"env_vars": {"VLLM_PLUGINS": "of the run"}})
print("a worker has:", ray.get(ray.remote(lambda: os.environ["VLLM_PLUGINS"]).remote()))"""
    log = tmp_path / "runs" / "grpo_seed1" / "train.console.log"
    job = jobs.start(["-c", driver], log)
    deadline = time.monotonic() + 120
    while job.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert "a worker has: of the run" in log.read_text()


def test_no_cluster_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RuntimeError, match="ray start"):
        RayJobs()
