"""Sockets through which weights go to vLLM, named for each run.

verl names them after the Ray job. Every Ray that was started for one run calls its job 01000000, so two runs on one
machine would take each other's sockets: they wait for each other indefinitely, or one samples from the other's model.

The name is formed twice, where weights are sent and where vLLM receives them. Both get the run's mark from here.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

RUN_ENV = "AENT_VERL_RUN"
# What vLLM's processes know of the Ray job; verl's server sets it for them.
JOB_ENV = "VERL_RAY_JOB_ID"

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


def mark_of(folder: str | Path) -> str:
    """Compute the mark of the run with this folder."""
    return hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:12]


def rename_sender(rollout: Any, job: str) -> None:
    """Give the socket of a worker's rollout the run's mark; nothing without a mark, or without such a socket.

    Args:
        rollout: verl's rollout of a worker.
        job: the Ray job's id.

    Raises:
        RuntimeError: the socket's name has an unknown form, so vLLM would look for another.
    """
    mark, handle = os.environ.get(RUN_ENV), getattr(rollout, "zmq_handle", None)
    if not mark or handle is None:
        return
    start = f"ipc:///tmp/rl-colocate-zmq-{job}-"
    if not handle.startswith(start):
        raise RuntimeError(
            f"verl sends weights through {handle!r}, expected {start}...: this release of aent_verl does not know how "
            "to keep the sockets of two runs apart there; install the verl that it supports"
        )
    rollout.zmq_handle = f"{start}{mark}-{handle.removeprefix(start)}"
    logger.info("aent_verl: weights go through %s", rollout.zmq_handle)


def mark_senders() -> None:
    """Have every rollout of verl's that sends weights to vLLM name its socket so, in whichever process; once."""
    import wrapt

    def build(made: Any, rollout: Any, args: Any, kwargs: Any) -> None:
        import ray

        made(*args, **kwargs)
        rename_sender(rollout, ray.get_runtime_context().get_job_id())

    @wrapt.when_imported("verl.workers.rollout.vllm_rollout.vllm_rollout")
    def _wrap(module: Any) -> None:
        if not isinstance(module.ServerAdapter.__dict__["__init__"], wrapt.FunctionWrapper):
            wrapt.wrap_function_wrapper(module.ServerAdapter, "__init__", build)


def rename_receiver() -> None:
    """Do the same in vLLM's processes; may be called again."""
    mark, job = os.environ.get(RUN_ENV), os.environ.get(JOB_ENV)
    if mark and job and not job.endswith(mark):
        os.environ[JOB_ENV] = f"{job}-{mark}"
