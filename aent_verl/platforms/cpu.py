"""A `cpu` platform for verl, so that the whole pipeline runs on machines without an accelerator.

verl finds it only by name (`VERL_PLATFORM=cpu`): on a cluster with accelerators no part of it is active.  The pieces,
in the order in which a run needs them: `detect_platform` in the launcher, `runtime_env_vars` and
`logical_accelerators` for `ray.init`, `register` in every process, `register_engines` and `initialize_gloo` in workers.

verl is imported inside functions only.  `import verl` loads plug-ins, and ours imports this module: with verl at the
top, importing this module first would come back to it half built, and verl swallows the failure of a plug-in.
"""

import functools
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import torch

from aent_verl.platforms import vllm_plugin

logger = logging.getLogger(__name__)

PLATFORM_NAME = "cpu"
PLATFORM_ENV = "VERL_PLATFORM"
# Custom Ray resource of nodes whose "GPU"s are logical; its amount is their number.
LOGICAL_RESOURCE = "aent_cpu_platform"
# The accelerator resources that Ray knows (`ray._private.accelerators`), and XPU, used by forks.
ACCELERATOR_RESOURCES = {"GPU", "NPU", "TPU", "HPU", "XPU", "neuron_cores", "FURIOSA", "MBLT", "RBLN", "TTNPU"}


def is_selected() -> bool:
    """Tell whether the environment names this platform, read as verl reads it."""
    return os.environ.get(PLATFORM_ENV, "").strip().lower() == PLATFORM_NAME


def _ignore(*_args: Any, **_kwargs: Any) -> None:
    """Do nothing: CPU work is synchronous, and there is no caching allocator to steer."""


def memory_allocated(device: Any = None) -> int:
    """Measure the resident memory of this process in bytes: everything in it, not only tensors."""
    return int(psutil.Process().memory_info().rss)


def max_memory_allocated(device: Any = None) -> int:
    """Measure the highest resident memory of this process since it started, in bytes; it cannot be reset."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Return (available, total) bytes of the machine's main memory, container limits not considered."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def get_device_properties(device: Any = None) -> SimpleNamespace:
    """Describe name and memory of the one CPU device."""
    return SimpleNamespace(name="CPU", total_memory=psutil.virtual_memory().total, multi_processor_count=cpu_count())


def cpu_count() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class NullStream:
    """Stands in for streams and events, whatever their arguments: all work is done by the time a call returns."""

    __init__ = wait_stream = wait_event = record_event = record = wait = synchronize = _ignore

    def query(self) -> bool:
        """Return True: nothing is ever pending."""
        return True


# What verl asks both of a platform and of a device module.
_COMMON: dict[str, Callable[..., Any]] = {
    # verl writes `tensor.to(get_device_id())`: an index would mean an accelerator there.
    "current_device": lambda: torch.device("cpu"),
    "device_count": lambda: 1,
    "get_device_capability": lambda *_, **__: (None, None),
    **dict.fromkeys(("manual_seed", "manual_seed_all"), torch.manual_seed),
    **dict.fromkeys(("set_device", "synchronize", "empty_cache"), _ignore),
}


@functools.cache
def device_module() -> ModuleType:
    """Make the module that verl gets from `get_torch_device()`.

    `torch.cpu` lacks most of these functions.  `is_available` answers for an accelerator, as all of verl's callers mean
    it (they guard allocator statistics and memory snapshots), so it is False.
    """
    module = ModuleType("aent_verl_cpu_device", "CPU stand-in for torch.cuda, as far as verl calls it.")
    ignored = ("ipc_collect", "reset_peak_memory_stats", "reset_accumulated_memory_stats")
    functions: dict[str, Any] = {
        **_COMMON,
        **dict.fromkeys((*ignored, "set_per_process_memory_fraction"), _ignore),
        "is_available": lambda: False,
        "get_device_name": lambda device=None: "CPU",  # verl looks this name up in its table of FLOPS
        "get_device_properties": get_device_properties,
        **dict.fromkeys(("memory_allocated", "memory_reserved"), memory_allocated),
        **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), max_memory_allocated),
        "mem_get_info": mem_get_info,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        **dict.fromkeys(("Stream", "Event", "current_stream"), NullStream),
        "stream": lambda stream: nullcontext(stream),
        "memory": SimpleNamespace(_record_memory_history=_ignore, _dump_snapshot=_ignore, _snapshot=dict),
    }
    vars(module).update(functions)
    return module


@functools.cache
def platform_class() -> type:
    """Make `PlatformCPU`, at the first call because its base is verl's, which documents each method."""
    from verl.plugin.platform import PlatformBase

    ignored = ("set_allocator_settings", "profiler_start", "profiler_stop", "cudart")
    methods: dict[str, Callable[..., Any]] = {
        **_COMMON,
        **dict.fromkeys(ignored, _ignore),
        "is_available": lambda: True,
        # verl asks every platform in turn when none is named.  A CPU is always there, and must never win that.
        "is_platform_available": lambda use_smi_check=False: is_selected(),
        "communication_backend_name": lambda: "gloo",
        # Ray sets this variable for the resource "GPU", logical or not, and verl reads it back.
        "visible_devices_envvar": lambda: "CUDA_VISIBLE_DEVICES",
        "ray_resource_name": lambda: "GPU",
        "ray_noset_envvars": list,
        # Without device IPC verl sends weights to the rollout engine through shared memory, which works on CPU.
        "is_ipc_supported": lambda: False,
        "nvtx_range": lambda msg: nullcontext(),
    }
    members = {
        "__doc__": "verl platform without accelerators.",
        "__module__": __name__,
        **dict.fromkeys(("device_name", "vendor_name"), PLATFORM_NAME),
        "device_module": property(lambda _: device_module()),
        **{name: staticmethod(method) for name, method in methods.items()},
    }
    return type("PlatformCPU", (PlatformBase,), members)


def register() -> None:
    """Add the platform to verl's registry under "cpu"; resolves no platform, and may be called again.

    Raises:
        RuntimeError: if someone else registered a platform of that name.
    """
    from verl.plugin.platform import PlatformRegistry

    present = PlatformRegistry.get(PLATFORM_NAME)
    if present is None:
        PlatformRegistry.register(platform=PLATFORM_NAME)(platform_class())
    elif present is not platform_class():
        raise RuntimeError(
            f"verl already has a platform named {PLATFORM_NAME!r} ({present.__module__}.{present.__qualname__}); "
            "aent_verl cannot register its own"
        )


def register_engines() -> None:
    """Register verl's FSDP engines for CPU under `fsdp2`; may be called again.

    FSDP1 is left out: it refuses modules on the CPU (`sync_module_states`).

    Raises:
        RuntimeError: if someone else registered engines for these keys.
    """
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

    for model_type, engine in (("language_model", FSDPEngineWithLMHead), ("value_model", FSDPEngineWithValueHead)):
        present = EngineRegistry._engines.get(model_type, {}).get("fsdp2", {}).get(PLATFORM_NAME)
        if present is None:
            EngineRegistry.register(model_type=model_type, backend="fsdp2", device=PLATFORM_NAME)(engine)
        elif present is not engine:
            raise RuntimeError(f"verl already has an engine for {model_type!r}, fsdp2 on CPU: {present.__qualname__}")


def initialize_gloo(timeout_second: int | None = None) -> bool:
    """Initialise torch.distributed for a CPU worker, before verl does.

    verl would ask for the backend "cpu:gloo,cpu:gloo", which torch rejects; it asks for nothing when a group exists.
    Rank, world size and address come from where verl takes them: `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`,
    which its worker group sets, or `DIST_INIT_METHOD`.

    Args:
        timeout_second: Timeout of collectives; None takes torch's default, as verl's workers do.

    Returns:
        True if this call made the group; False on another platform, or if there is a group already.
    """
    from verl.utils.device import get_device_name
    from verl.utils.distributed import initialize_global_process_group_ray

    if get_device_name() != PLATFORM_NAME or torch.distributed.is_initialized():
        return False
    initialize_global_process_group_ray(timeout_second=timeout_second, backend="cpu:gloo")
    return True


def cluster_has_accelerator(resources: Mapping[str, float]) -> bool:
    """Tell whether a Ray cluster has real accelerators, from `ray.cluster_resources()`.

    "GPU"s count only beyond the amount of `LOGICAL_RESOURCE`; other accelerators always do.
    """
    logical = resources.get(LOGICAL_RESOURCE, 0)
    return any(
        amount - (logical if name == "GPU" else 0) > 0
        for name, amount in resources.items()
        if name in ACCELERATOR_RESOURCES or name.startswith("accelerator_type:")
    )


def logical_accelerators(count: int) -> dict[str, Any]:
    """Make arguments for `ray.init` that give a CPU machine `count` logical GPUs, marked as such.

    For `ray start`: `--num-gpus=N --resources='{"aent_cpu_platform": N}'`.
    """
    return {"num_gpus": count, "resources": {LOGICAL_RESOURCE: count}}


def detect_platform(ray_address: str | None = None) -> str | None:
    """Decide whether a run uses the CPU platform; call it before `ray.init` and before verl resolves its platform.

    The environment's choice is respected. A Ray cluster that the run joins decides alone: its head node may have no
    accelerator while its workers do. This machine decides only if Ray is to be started here.

    Args:
        ray_address: `ray_kwargs.ray_init.address` of the config, which means to Ray what it means here.

    Returns:
        "cpu", or None to leave the choice to verl.

    Raises:
        ConnectionError: if a Ray cluster is named and cannot be reached.
    """
    if os.environ.get(PLATFORM_ENV, "").strip():
        return PLATFORM_NAME if is_selected() else None
    resources = joined_cluster_resources(ray_address)
    found = local_accelerator() if resources is None else cluster_has_accelerator(resources)
    return None if found else PLATFORM_NAME


def cluster_to_join(ray_address: str | None = None) -> str | None:
    """Find the address of the cluster that `ray.init(address=ray_address)` would join; None if it would start one."""
    address = ray_address or None
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or address
    if address is not None and "://" in address:
        return address
    from ray._private.services import canonicalize_bootstrap_address

    # Without an address Ray joins the cluster that `ray start` last made on this machine, if there is one.
    return canonicalize_bootstrap_address(address)


@contextmanager
def joined_cluster(ray_address: str | None = None, runtime_env: Mapping[str, Any] | None = None) -> Iterator[bool]:
    """Be a member of the Ray cluster that `ray.init(address=ray_address)` would join, for as long as the block lasts.

    Args:
        ray_address: `ray_kwargs.ray_init.address` of the config.
        runtime_env: Ray's, for tasks of this job; not where Ray is initialized already.

    Yields:
        True; False if it would start a cluster of its own, and there is nothing to join.
    """
    import ray

    if ray.is_initialized():
        yield True
        return
    if cluster_to_join(ray_address) is None:
        yield False
        return
    # The address as the user gave it: for one that Ray finds itself, Ray also finds the token.
    given = {"runtime_env": dict(runtime_env)} if runtime_env else {}
    ray.init(address=ray_address, log_to_driver=False, logging_level=logging.ERROR, **given)
    try:
        yield True
    finally:
        ray.shutdown()


def joined_cluster_resources(ray_address: str | None = None) -> dict[str, float] | None:
    """Read resources of the Ray cluster that `ray.init(address=ray_address)` would join; None if it would start one.

    Joins the cluster for a moment where this process has not: Ray tells resources to its members only.
    """
    import ray

    with joined_cluster(ray_address) as joined:
        return dict(ray.cluster_resources()) if joined else None


def local_accelerator() -> bool:
    """Tell whether a platform that verl knows, other than this one, is available on this machine."""
    from verl.plugin.platform import PlatformRegistry

    for name in PlatformRegistry.registered_names():
        if name == PLATFORM_NAME:
            continue
        # The first check misses CUDA devices where nvidia-smi is not installed; the second may raise without a driver.
        for check, arguments in (("is_platform_available", {"use_smi_check": True}), ("is_available", {})):
            try:
                if getattr(PlatformRegistry.get(name)(), check)(**arguments):
                    return True
            except Exception as error:
                logger.debug("platform %r: %s failed: %r", name, check, error)
    return False


def runtime_env_vars(
    processes: int = 1, threads: int | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Collect environment variables for Ray's `runtime_env`, which must reach every worker on the CPU platform.

    Args:
        processes: Training ranks on a machine.
        threads: Of each process; None: the cores divided by the ranks.
        environ: The present environment, `os.environ` if None. What the user set there is kept.
    """
    environ = os.environ if environ is None else environ
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; vLLM's default is most of the machine's memory
        # Ray sets one thread for actors without num_cpus, which verl's workers are.
        "OMP_NUM_THREADS": str(threads or max(1, cpu_count() // max(1, processes))),
        # vLLM binds each replica's threads to the same cores and leaves one core out: on two cores that is one for all.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # vLLM compiles its sampler through a C++ compiler: 20 s in the first step, and a tool that may be missing.
        "TORCHDYNAMO_DISABLE": "1",
    }
    variables = {name: environ.get(name) or value for name, value in defaults.items()}
    variables |= vllm_plugin.allowed(environ.get("VLLM_PLUGINS"))
    return variables | {PLATFORM_ENV: PLATFORM_NAME, "VLLM_TARGET_DEVICE": "cpu"}
