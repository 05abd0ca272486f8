"""Has every node of a Ray cluster this process's versions, and does it see the run's folders?"""

import importlib.metadata
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl import __version__
from aent_verl.preflight.findings import PreflightError, Setting, at, root_cause

SECONDS = 180.0
# Where ranks and trainer write: checkpoints, metrics and logs.
FOLDERS = ("trainer.default_local_dir", "run.dir")
TOKEN = ".aent_verl_shared_"
# A check that was killed left its tokens; no other takes as long.
_LEFT_BEHIND_SECONDS = 3600.0
INSTALL = "install the same versions on every node"

Node = Mapping[str, Any]


class NodeError(RuntimeError):
    """A node that a run may use does not fit; the message names it."""


def check(cfg: DictConfig) -> Iterator[str | Exception]:
    """Ask each node of the cluster that the run joins for its versions, and to see and write the run's folders.

    Yields:
        A line on what holds, or an error for each node and each thing that does not. Nothing where the run would start
        Ray itself: it then has this machine alone.
    """
    from aent_verl.platforms import cpu

    ray_init = cfg.ray_kwargs.ray_init
    # What the run's processes will find, and not what the nodes have without it.
    given: Any = OmegaConf.to_container(ray_init.get("runtime_env") or OmegaConf.create(), resolve=True)
    runtime_env = {key: value for key, value in given.items() if value is not None}
    with cpu.joined_cluster(ray_init.get("address"), runtime_env) as joined, ExitStack() as stack:
        if not joined:
            return
        there = [node for node in alive() if _may_run(node)]
        tokens: dict[str, Path] = {}
        for setting in (at(cfg, key) for key in FOLDERS):
            try:
                token = stack.enter_context(_token(Path(os.path.abspath(setting.value))))
            except OSError as error:
                yield setting.error(f"this machine cannot write there ({error})", "Choose another with run.dir=...")
            else:
                if token.parent not in {other.parent for other in tokens.values()}:
                    tokens[setting.key] = token
        asked = {key: str(token) for key, token in tokens.items()}
        expected = {"aent_verl": __version__, "verl": importlib.metadata.version("verl")}
        settings = {key: at(cfg, key) for key in tokens}
        answers = list(ask(there, _look_function(), asked))
    errors = [error for node, found in answers for error in _errors(node, found, expected, settings)]
    yield from errors
    if not errors:
        versions = ", ".join(f"{name} {version}" for name, version in expected.items())
        folders = " and ".join(str(token.parent) for token in tokens.values())
        yield f"nodes: {len(there)} have {versions}, and write in {folders}"


def _errors(
    node: Node, found: dict[str, Any] | Exception, expected: Mapping[str, str], settings: Mapping[str, Setting]
) -> Iterator[Exception]:
    name = name_of(node)
    if isinstance(found, Exception):
        yield NodeError(f"{name} does not answer: {type(found).__name__}: {found}; see its log, or remove it")
        return
    if differ := differences(found, expected):
        yield NodeError(f"{name} has {differ}: {INSTALL}, and start Ray on it again")
    for key, problem in found["folders"].items():
        if problem is not None:
            yield unshared(settings[key], name, problem)


def differences(found: Mapping[str, str | None], expected: Mapping[str, str]) -> str:
    """Say which packages have other versions than the ``expected``; empty if none has."""
    return "; and ".join(
        f"{package} {found[package] or 'not installed'}, and this process {version}"
        for package, version in expected.items()
        if found[package] != version
    )


def unshared(setting: Setting, name: str, problem: str) -> PreflightError:
    """Make the error of a node that does not share a folder with this machine."""
    return setting.error(
        f"{name} {problem}",
        "Put it on a file system that all nodes mount at the same path, and choose it with run.dir=...; or remove that "
        "node from the cluster",
        "a folder that all nodes share",
    )


def alive() -> list[Node]:
    """List the nodes of the cluster that is joined."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _may_run(node: Node) -> bool:
    """Return whether a part of a run can be placed on a node: a head often has no slots at all."""
    return any(node["Resources"].get(name, 0) > 0 for name in ("CPU", "GPU", "NPU"))


def name_of(node: Node) -> str:
    """Name a node such that people find it: the name it was given, host, address, and the start of Ray's id.

    Several nodes of one machine, as in a test, share host and address.
    """
    address = node["NodeManagerAddress"]
    given = [node["NodeName"]] if node.get("NodeName") not in (None, "", address) else []
    first, *rest = dict.fromkeys([*given, node["NodeManagerHostname"], address])
    return f"node {first} ({', '.join([*rest, 'id ' + node['NodeID'][:8]])})"


def ask(
    nodes: Sequence[Node],
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float = SECONDS,
) -> Iterator[tuple[Node, Any]]:
    """Call a function in a task on each node at the same time; yield what it returned, or the error, in order.

    Args:
        nodes: of the cluster that is joined.
        function: defined inside another, so that Ray sends its code: nothing of ours need be installed there.
        arguments: the function's.
        seconds: how long to wait for all of them together.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(function)
    calls = [
        task.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(*arguments)
        for node in nodes
    ]
    ends = time.monotonic() + seconds
    for node, call in zip(nodes, calls, strict=True):
        try:
            yield node, ray.get(call, timeout=max(1.0, ends - time.monotonic()))
        except Exception as error:
            yield node, root_cause(error)


def _look_function() -> Callable[[dict[str, str]], dict[str, Any]]:
    def look(tokens: dict[str, str]) -> dict[str, Any]:
        import importlib.metadata
        import os
        from contextlib import suppress

        found: dict[str, Any] = {"verl": None, "aent_verl": None, "folders": {}}
        with suppress(ImportError):
            found["verl"] = importlib.metadata.version("verl")
        with suppress(ImportError):
            import aent_verl  # without its parts: no torch, no verl

            found["aent_verl"] = aent_verl.__version__
        for key, token in tokens.items():
            folder = os.path.dirname(token)
            answer = f"{token}.{os.getpid()}"
            problem = None
            if not os.path.exists(token):
                problem = f"does not see what this machine writes in {folder}"
            else:
                try:
                    with open(answer, "x"):
                        pass
                    os.unlink(answer)
                except OSError as error:
                    problem = f"sees {folder} but cannot write in it ({error})"
            found["folders"][key] = problem
        return found

    return look


@contextmanager
def _token(folder: Path) -> Iterator[Path]:
    """Keep a file of a name that nobody has asked for before in a folder, or in the nearest one above it that exists.

    A node that has never asked for a name has no stale answer to it, as a network file system may keep.
    """
    while not folder.is_dir():
        folder = folder.parent
    for left in folder.glob(f"{TOKEN}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                left.unlink()
    token = folder / f"{TOKEN}{uuid.uuid4().hex}"
    with open(token, "x"):
        pass
    try:
        yield token
    finally:
        with suppress(OSError):
            os.unlink(token)
