"""Jobs on a cluster that misbehaves; with a real one: tests/e2e/test_jobs.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from aent_verl.launch.ray_jobs import RayJob, RayJobs


class Cluster:
    """Answers as Ray's client does; the job of a node that is gone has no output."""

    def __init__(self, status: str, entrypoint: str = "") -> None:
        self.job = SimpleNamespace(submission_id="aent-verl-mine-grpo_seed1-train-1", entrypoint=entrypoint)
        self.job.status = SimpleNamespace(value=status, is_terminal=lambda: status != "RUNNING")
        self.submitted: list[str] = []

    def get_job_status(self, name: str) -> SimpleNamespace:
        return self.job.status

    def get_job_logs(self, name: str) -> str:
        raise RuntimeError("the node of this job is gone")

    def list_jobs(self) -> list[SimpleNamespace]:
        return [self.job]

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict) -> str:
        self.submitted.append(submission_id)
        return submission_id


def jobs(cluster: Cluster) -> RayJobs:
    made = RayJobs.__new__(RayJobs)
    made._client = cluster
    return made


@pytest.mark.parametrize(("status", "well"), [("FAILED", False), ("SUCCEEDED", True), ("RUNNING", None)])
def test_a_job_ends_even_if_its_output_cannot_be_fetched(tmp_path: Path, status: str, well: bool | None):
    log = tmp_path / "run" / "train.log"
    assert RayJob(Cluster(status), "name", log).poll() is well
    assert well is None or "the output of job name cannot be fetched: the node of this job is gone" in log.read_text()


def test_a_second_job_is_not_put_next_to_one_that_trains_in_the_same_folder(tmp_path: Path):
    log = tmp_path / "mine" / "runs" / "grpo_seed1" / "train.log"
    busy = Cluster(
        "RUNNING", f"python -m aent_verl.commands.train run.dir='{log.parent}' trainer.total_training_steps=40"
    )
    with pytest.raises(RuntimeError, match="`ray job stop aent-verl-mine-grpo_seed1-train-1`"):
        jobs(busy).start(["-m", "aent_verl.commands.train", "trainer.total_training_steps=60"], log)
    assert not busy.submitted
    # A comparison of the same name in another place is fine.
    other = Cluster("RUNNING", "python -m aent_verl.commands.train run.dir='/elsewhere/mine/runs/grpo_seed1'")
    jobs(other).start(["-m", "aent_verl.commands.train"], log)
    assert other.submitted == ["aent-verl-mine-grpo_seed1-train-2"]


@pytest.mark.parametrize("address", [None, "", "auto"])
def test_a_cluster_is_named_and_not_found_by_chance(monkeypatch: pytest.MonkeyPatch, address: str | None):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address: pytest.fail("Ray looked for one"))
    with pytest.raises(RuntimeError, match=r"launcher=ray with RAY_ADDRESS=.*: name the cluster, <head>:6379"):
        RayJobs()
