"""The runs that train on a Ray cluster, from any node of it: what `aent-verl status` and `aent-verl set` ask."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aent_verl.runs.live_changes import ACTOR_PREFIX

if TYPE_CHECKING:
    from ray.actor import ActorHandle

# An actor of ours answers within milliseconds, unless its node is gone.
_ANSWER_SECONDS = 15.0


class LiveError(RuntimeError):
    """A cluster or a run that cannot be asked, or that refuses; the message is for the user."""


@contextmanager
def connected(address: str | None) -> Iterator[str]:
    """Join a Ray cluster to ask, and leave it; yields its address.

    Args:
        address: of its head, host:port; None: RAY_ADDRESS, or the cluster that runs on this machine.

    Raises:
        LiveError: there is none, or it does not let us in.
    """
    _show_token()
    import ray

    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _probe(wanted)
        with _silent():
            ray.init(address=wanted, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError) as error:
        why, here = str(error).strip().splitlines()[0], ", ".join(addresses_here()) or "none"
        raise LiveError(
            f"no Ray cluster can be joined at {wanted!r} ({why}): run this on one of its nodes while it trains, and "
            f"name its head by --address host:6379; with a node on this machine: {here}"
        ) from error
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def _show_token() -> None:
    """Show the token of this user's clusters, which Ray itself does only where it chose the address."""
    token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if token or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _probe(address: str) -> None:
    """Raise ``OSError`` if nothing listens there, which Ray finds out after more than a minute."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()


@contextmanager
def _silent() -> Iterator[None]:
    """Drop what Ray's C++ prints while it tries; what it fails of is raised."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def addresses_here() -> list[str]:
    """List the addresses of the clusters that have a node on this machine, as the processes of Ray show them."""
    import psutil

    flag, found = "--gcs-address=", set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        found |= {word.removeprefix(flag) for word in words if word.startswith(flag)}
    return sorted(found)


def statuses() -> list[dict[str, Any]]:
    """Ask all runs of the joined cluster what is in force, see `plugin.coefficients.Coefficients.status`."""
    return [status for _, status in _asked()]


def chosen(runs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Find a run by its name (``trainer.experiment_name``), ``project/name``, or its job's id.

    Raises:
        LiveError: no run has it, or several have; the message lists what runs.
    """
    found = [run for run in runs if name in (run["run"], f"{run['project']}/{run['run']}", run["job"])]
    if len(found) == 1:
        return found[0]
    if found:
        jobs = ", ".join(f"{run['job']} ({run['folder']} on {run['node']})" for run in found)
        raise LiveError(f"{len(found)} runs are named {name!r}: give the job's id instead, one of {jobs}")
    named = ", ".join(run["run"] for run in runs) or "none"
    raise LiveError(f"no run {name!r} trains on this cluster; there are: {named}")


def change(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Change settings of a run's controllers, see `plugin.coefficients.Coefficients.change`.

    Raises:
        LiveError: there is no such run, or it refuses.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

    asked = _asked()
    run = chosen([status for _, status in asked], name)
    actor = next(actor for actor, status in asked if status is run)
    by = f"{_user()}@{socket.gethostname()}"
    try:
        answer: dict[str, Any] = ray.get(actor.change.remote(dict(settings), by=by), timeout=_ANSWER_SECONDS)
    except RayTaskError as error:
        raise LiveError(f"{name} is unchanged: {error.cause}") from error
    except (GetTimeoutError, RayActorError) as error:
        raise LiveError(f"{name} does not answer; it may have ended ({type(error).__name__})") from error
    return answer


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def _asked() -> list[tuple[ActorHandle, dict[str, Any]]]:
    """Ask each run's actor for its status; those that end meanwhile are left out."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError
    from ray.util import list_named_actors

    asked = []
    for named in list_named_actors(all_namespaces=True):
        if named["name"].startswith(ACTOR_PREFIX):
            try:
                actor = ray.get_actor(named["name"], namespace=named["namespace"])
            except ValueError:
                continue
            asked.append((actor, actor.status.remote()))
    found = []
    for actor, answer in asked:
        try:
            found.append((actor, ray.get(answer, timeout=_ANSWER_SECONDS)))
        except (GetTimeoutError, RayActorError):
            continue
    return sorted(found, key=lambda one: (one[1]["project"], one[1]["run"], one[1]["job"]))
