"""A TransferQueue for each Ray job: the responses that a run samples are its own.

TransferQueue's actors have one name, in one namespace, on a whole Ray cluster. A run that finds them there uses them:
two runs on a cluster at the same time then train on each other's responses, and the end of one stops the other. The
namespace is asked for where the queue is made and where each process finds it. Both get the job's id from here.
"""

from typing import Any

import wrapt

NAMESPACE = "transfer_queue"
# The modules that ask for the namespace, and the actor's class in each.
ACTORS = {
    "transfer_queue.interface": "TransferQueueController",
    "transfer_queue.storage.clients.ray_storage_client": "RayObjectRefStorage",
}


def of_job(namespace: str | None) -> str | None:
    """Return the namespace of this job for TransferQueue's, and any other as it is."""
    if namespace != NAMESPACE:
        return namespace
    import ray

    return f"{NAMESPACE}_{ray.get_runtime_context().get_job_id()}"


class _Ray(wrapt.ObjectProxy):
    def get_actor(self, name: str, namespace: str | None = None) -> Any:
        return self.__wrapped__.get_actor(name, namespace=of_job(namespace))


class _Actor(wrapt.ObjectProxy):
    def options(self, *, namespace: str | None = None, **options: Any) -> Any:
        return self.__wrapped__.options(namespace=of_job(namespace), **options)


def keep_apart() -> None:
    """Have TransferQueue use the job's namespace, in whichever process imports it; may be called again."""
    for name in ACTORS:
        wrapt.when_imported(name)(use_job)


def use_job(module: Any) -> None:
    """Let one of the modules in `ACTORS` find and make its actor in the namespace of the job; once."""
    if isinstance(module.ray, _Ray):
        return
    module.ray = _Ray(module.ray)
    actor = ACTORS[module.__name__]
    setattr(module, actor, _Actor(getattr(module, actor)))
