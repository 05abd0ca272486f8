"""Each job has a TransferQueue of its own; two real runs on one cluster are in tests/e2e/test_nodes.py."""

from types import SimpleNamespace

import pytest

from aent_verl.platforms import job_queue


class Actor:
    """As Ray's class of an actor, which is no plain class."""

    made = SimpleNamespace(options=lambda **options: options)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> str:
    context = SimpleNamespace(get_job_id=lambda: "02000000")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    return "transfer_queue_02000000"


def module(name: str) -> SimpleNamespace:
    ray = SimpleNamespace(get_actor=lambda name, namespace=None: (name, namespace), get="ray's own")
    return SimpleNamespace(__name__=name, ray=ray, **{job_queue.ACTORS[name]: Actor.made})


@pytest.mark.parametrize("name", job_queue.ACTORS)
def test_the_queue_is_made_and_found_in_the_namespace_of_the_job(job: str, name: str) -> None:
    changed = module(name)
    for _ in range(2):  # the second time nothing more
        job_queue.use_job(changed)
    actor = job_queue.ACTORS[name]
    assert changed.ray.get_actor(actor, namespace="transfer_queue") == (actor, job)
    made = getattr(changed, actor).options(name=actor, namespace="transfer_queue", get_if_exists=False)
    assert made == {"name": actor, "namespace": job, "get_if_exists": False}


def test_other_actors_stay_where_they_are(job: str) -> None:
    changed = module("transfer_queue.interface")
    job_queue.use_job(changed)
    assert changed.ray.get_actor("another") == ("another", None)
    assert changed.ray.get_actor("another", namespace="mine") == ("another", "mine")
    assert changed.ray.get == "ray's own"


def test_what_verl_imports_is_changed() -> None:
    """The plug-in is loaded at ``import verl``, before or after TransferQueue."""
    import transfer_queue.interface
    import verl  # noqa: F401

    assert isinstance(transfer_queue.interface.ray, job_queue._Ray)
    assert isinstance(transfer_queue.interface.TransferQueueController, job_queue._Actor)
    job_queue.keep_apart()
    assert not isinstance(transfer_queue.interface.ray.__wrapped__, job_queue._Ray)
