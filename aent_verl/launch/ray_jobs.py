"""A stage of a run as a Ray job on a cluster."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.job_submission import JobStatus, JobSubmissionClient

_POLL_SECONDS = 5.0
_STOP_SECONDS = 120.0
_SUBMIT_SECONDS = 120.0
# A cluster that does not answer for this long is gone.
_SILENT_SECONDS = 600.0
# What a run reads from its environment; the rest is the cluster's own.
_HANDED_ON = ("AENT_VERL_", "VERL_", "VLLM_", "HF_", "WANDB_")
# Ray refuses a job whose driver sets one of them again, as a run does for its workers; with this the driver's counts.
_OVERRIDE = {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}


class RayJob:
    """A job on the cluster, which survives the process that submitted it and can be found again by its name.

    Args:
        client: a ``ray.job_submission.JobSubmissionClient``.
        name: the submission id.
        log: where the job's output is written when it has ended.
    """

    def __init__(self, client: JobSubmissionClient, name: str, log: Path) -> None:
        self.name = name
        self._client = client
        self._log = log
        self._asked = 0.0
        self._answered = time.monotonic()
        self._ended: bool | None = None

    def poll(self) -> bool | None:
        """Return whether the job ended without an error; None while it runs. Asks the cluster every few seconds."""
        if self._ended is None and time.monotonic() - self._asked >= _POLL_SECONDS:
            self._asked = time.monotonic()
            if (status := self._status()) is not None and status.is_terminal():
                self._ended = status.value == "SUCCEEDED"
                self._log.parent.mkdir(parents=True, exist_ok=True)
                with open(self._log, "a", encoding="utf-8") as file:
                    file.write(self._output())
        return self._ended

    def _output(self) -> str:
        """Fetch what the job printed, which is lost if its node is gone."""
        try:
            return self._client.get_job_logs(self.name)
        except (ConnectionError, RuntimeError, OSError) as error:
            return f"the output of job {self.name} cannot be fetched: {error}\n"

    def _status(self) -> JobStatus | None:
        """Return the job's status; None while the cluster does not answer, which may last a while."""
        try:
            status = self._client.get_job_status(self.name)
        except (ConnectionError, RuntimeError, OSError):
            if time.monotonic() - self._answered > _SILENT_SECONDS:
                raise
            return None
        self._answered = time.monotonic()
        return status

    def stop(self) -> None:
        """Stop the job, and wait until the cluster says that it has ended."""
        self._client.stop_job(self.name)
        deadline = time.monotonic() + _STOP_SECONDS
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


class RayJobs:
    """Starts stages of runs as jobs of the cluster at RAY_ADDRESS.

    Every node needs this interpreter, this working directory and the results folder at the same paths.

    Raises:
        RuntimeError: no cluster is named, or it does not answer.
    """

    def __init__(self) -> None:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        # The address of a cluster (host:6379) is resolved by Ray to its dashboard's, where jobs are taken.
        address = os.environ.get("RAY_ADDRESS")
        if not address or address == "auto":
            # Ray would take whatever cluster it finds on this machine, another user's included.
            raise RuntimeError(
                f"launcher=ray with RAY_ADDRESS={address!r}: name the cluster, <head>:6379 or http://<head>:8265; "
                "`ray start --head` prints it"
            )
        try:
            self._client = JobSubmissionClient(address)
            self._client.get_version()
        except RayError as error:
            raise RuntimeError(
                f"launcher=ray: the cluster at RAY_ADDRESS={address!r} refuses: {error}\nIf a token protects it, set "
                "RAY_AUTH_MODE=token, see docs/troubleshooting.md"
            ) from error
        except (ConnectionError, RuntimeError, OSError) as error:
            raise RuntimeError(
                f"launcher=ray: no cluster takes jobs at RAY_ADDRESS={address!r} ({error}); start one with `ray start "
                "--head`, and set RAY_ADDRESS to its address, <head>:6379 or http://<head>:8265"
            ) from error

    def start(self, arguments: Sequence[str], log: Path) -> RayJob:
        """Start an interpreter with these arguments, or join a job with the same arguments that still runs.

        Raises:
            RuntimeError: another job is working in the run's folder.
        """
        run = log.parent
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", f"aent-verl-{run.parent.parent.name}-{run.name}-{log.stem}")
        attempts = itertools.count(1)
        jobs = {job.submission_id: job for job in self._client.list_jobs()}
        # Relative paths mean the same there as here.
        entrypoint = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join([sys.executable, *arguments])}"
        while (job := jobs.get(name := f"{base}-{next(attempts)}")) is not None:
            if not job.status.is_terminal() and job.entrypoint == entrypoint:
                return RayJob(self._client, name, log)
            if not job.status.is_terminal() and str(run) in job.entrypoint:
                raise RuntimeError(
                    f"job {name} works in {run} with other settings: wait for its end, or type `ray job stop {name}`"
                )
        return RayJob(self._client, self._submit(entrypoint, name), log)

    def _submit(self, entrypoint: str, name: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key.startswith(_HANDED_ON)} | _OVERRIDE
        deadline = time.monotonic() + _SUBMIT_SECONDS
        while True:
            try:
                return self._client.submit_job(
                    entrypoint=entrypoint, submission_id=name, runtime_env={"env_vars": environment}
                )
            except RuntimeError as error:
                # A cluster answers before the agents that start its jobs are up.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
