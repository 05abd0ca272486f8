"""Are there enough accelerators, Ray slots and memory for what the config asks for?"""

import ctypes
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.findings import PreflightWarning, Setting, at
from aent_verl.preflight.model import WEIGHTS

GIB = 1024**3
# Resident memory of a process that has imported torch and verl or vLLM, without any model.
PROCESS_GIB = 0.6
# CPUs of a placement bundle, one for each accelerator: max_colocate_count of verl's ResourcePoolManager.
CPUS_PER_GPU = 3
NUMA = "libnuma.so.1"
# vLLM's executor that has the model in the engine's own process.
ONE_PROCESS = "UniProcExecutor"
GPUS = "trainer.n_gpus_per_node"


def check(cfg: DictConfig) -> list[str | PreflightWarning]:
    """Check accelerators and CPU slots of the Ray cluster that is joined or started, and memory on the CPU platform.

    Returns:
        One line for each passed check, and a warning about a cluster that was not named.

    Raises:
        PreflightError: something is short.
    """
    from aent_verl.platforms import cpu

    address = cfg.ray_kwargs.ray_init.get("address")
    if (cluster := cpu.joined_cluster_resources(address)) is not None:
        return [*_found_by_chance(address), *check_cluster(cluster, cfg)]
    lines: list[str | PreflightWarning] = [_check_accelerators(cfg)]
    given = at(cfg, "ray_kwargs.ray_init.num_cpus")
    slots = (os.cpu_count() or 1) if given.value is None else given.value
    needed = cpu_slots(cfg)
    if slots < needed:
        raise given.error(
            f"Ray would have {slots} CPU slots, and wait indefinitely for more",
            f"Set {given.key}={needed}; slots are logical, there may be more than cores",
            f"at least {needed} for {gpus(cfg)} rank(s)",
        )
    lines.append(f"Ray: {slots} CPU slots, {needed} needed")
    if cfg.trainer.device == "cpu":
        _check_numa()
        check_executor(cfg)
        lines.append(_check_memory(cfg))
    return lines


def _found_by_chance(address: str | None) -> Iterator[PreflightWarning]:
    from aent_verl.platforms import cpu

    named = os.environ.get("RAY_ADDRESS") or address
    if named in (None, "", "auto"):
        yield Setting("RAY_ADDRESS", named).warning(
            f"names no cluster, and Ray joins the one running on this machine, {cpu.cluster_to_join(address)}, whoever "
            "started it",
            "Name yours with RAY_ADDRESS=<head>:6379, or start a new one with RAY_ADDRESS=local",
        )


def check_cluster(resources: Mapping[str, float], cfg: DictConfig) -> list[str]:
    """Check a Ray cluster that was joined.

    Args:
        resources: ``ray.cluster_resources()``; infinitely many CPU slots are not checked.
        cfg: the composed config.

    Raises:
        PreflightError: fewer accelerators or CPU slots than the run needs.
    """
    name = "NPU" if cfg.trainer.device == "npu" else "GPU"
    found, needed = resources.get(name, 0), gpus(cfg)
    asked, nodes = at(cfg, GPUS), f"with trainer.nnodes={cfg.trainer.nnodes} the run needs"
    if found < needed:
        on_cpu = "; on CPU nodes run `ray start` with --num-gpus" if cfg.trainer.device == "cpu" else ""
        raise asked.error(
            f"{nodes} {needed} of Ray's resource {name}",
            f"Add nodes to the cluster, or lower {GPUS} or trainer.nnodes{on_cpu}",
            f"at most the {found:g} that the cluster has",
        )
    slots, needed_slots = resources.get("CPU", 0), cpu_slots(cfg)
    if slots < needed_slots:
        raise asked.error(
            f"{nodes} {needed_slots} CPU slots",
            "Start its nodes with a higher `ray start --num-cpus`; slots are logical",
            f"at most the {slots:g} that the Ray cluster has",
        )
    counted = "CPU slots not checked" if math.isinf(slots) else f"{slots:g} CPU slots"
    return [f"Ray cluster: {found:g} {name}, {needed} needed; {counted}, {needed_slots} needed"]


def separate(cfg: DictConfig) -> bool:
    """Return whether rollouts have accelerators of their own beside the trainer's."""
    return str(cfg.trainer.v1.trainer_mode).endswith("separate_async")


def gpus(cfg: DictConfig) -> int:
    """Count the accelerators of all resource pools together."""
    model = cfg.reward.reward_model
    pools = [cfg.trainer, *([model] if model.enable_resource_pool else [])]
    if separate(cfg):
        pools.append(cfg.actor_rollout_ref.rollout)
    return sum(int(pool.n_gpus_per_node) * int(pool.nnodes) for pool in pools)


def cpu_slots(cfg: DictConfig) -> int:
    """Count the CPU slots that a run holds, and one to start the actors that hold none.

    Held: verl's placement bundles, and TransferQueue's controller and storage units.
    """
    storage = cfg.transfer_queue.backend
    units = storage.SimpleStorage.num_data_storage_units if storage.storage_backend == "SimpleStorage" else 0
    return CPUS_PER_GPU * gpus(cfg) + 1 + int(units) + 1


def check_executor(cfg: DictConfig) -> None:
    """Refuse vLLM's one-process executor for a model in several parts: it would wait indefinitely for the others.

    Raises:
        PreflightError: names the key and what to set it to.
    """
    rollout = cfg.actor_rollout_ref.rollout
    parts = int(rollout.tensor_model_parallel_size * rollout.pipeline_model_parallel_size)
    executor = at(cfg, "actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend")
    if parts > 1 and str(executor.value).endswith(ONE_PROCESS):
        raise executor.error(
            f"runs a model in one process, but tensor and pipeline parallel sizes ask for {parts}",
            "Set it to mp, or actor_rollout_ref.rollout.tensor_model_parallel_size=1",
            "mp",
        )


def _check_numa() -> None:
    """Look for the system library that vLLM's CPU kernels link against; without it vLLM only warns."""
    try:
        ctypes.CDLL(NUMA)
    except OSError:
        raise Setting("trainer.device", "cpu").error(
            f"vLLM's CPU kernels need the system library {NUMA}, which is not installed",
            "Install it: apt-get install libnuma1, or dnf install numactl-libs",
            "the library",
        ) from None


def _check_accelerators(cfg: DictConfig) -> str:
    needed = gpus(cfg)
    asked = f"the run needs {GPUS} * trainer.nnodes = {needed}"
    given = at(cfg, "ray_kwargs.ray_init.num_gpus")
    # Where the platform asks for the trainer's alone, the launch adds the logical ones of the rollouts.
    enough = cfg.trainer.n_gpus_per_node if cfg.trainer.device == "cpu" and separate(cfg) else needed
    if given.value is not None and given.value < enough:
        raise given.error(asked, f"Raise it, or lower {GPUS}", f"at least {needed}")
    device = cfg.trainer.device
    if device == "cuda":
        import torch

        found = torch.cuda.device_count()
        if found < needed:
            raise at(cfg, GPUS).error(
                f"{asked} GPUs, but Ray is to be started on this machine, which has {found}",
                "Lower it, point Ray at a cluster with RAY_ADDRESS, or train on the CPU with platform=cpu",
                f"at most {found}" if found else "a machine with GPUs",
            )
        return f"GPUs: {found} here, {needed} needed"
    return f"ranks: {needed}, on the CPU" if device == "cpu" else f"{device}: {needed} needed, left to verl"


def processes(cfg: DictConfig) -> int:
    """Count the processes that a run on one machine starts.

    Five are the driver, Ray's own daemons, task runner, coefficients' actor and TransferQueue's controller; a rollout
    engine takes two, vLLM's server and its engine.
    """
    storage = int(cfg.transfer_queue.backend.SimpleStorage.num_data_storage_units)
    workers = int(cfg.actor_rollout_ref.rollout.agent.num_workers) + int(cfg.reward.num_workers)
    return 5 + storage + gpus(cfg) + 2 * max(1, replicas(cfg)[0]) + workers


def replicas(cfg: DictConfig) -> tuple[int, int]:
    """Count the rollout engines for which there are accelerators, and the accelerators that each takes."""
    rollout = cfg.actor_rollout_ref.rollout
    each = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    pools = [cfg.trainer] if cfg.actor_rollout_ref.get("hybrid_engine", True) or not separate(cfg) else []
    pools += [rollout] if separate(cfg) else []
    return sum(int(pool.n_gpus_per_node * pool.nnodes) // int(each) for pool in pools), int(each)


def memory_estimate(cfg: DictConfig) -> dict[str, float]:
    """Estimate the GiB that a run on one CPU machine takes, by what takes it.

    - each process `PROCESS_GIB`;
    - the actor's weights, gradients and two Adam moments, in fp32, shared among its ranks;
    - a second set of weights where there is a reference policy;
    - two sets of weights in each rollout engine: as loaded, and packed by vLLM for the CPU;
    - VLLM_CPU_KVCACHE_SPACE GiB for each rollout engine.

    Activations are not in it: they depend on micro-batch sizes. Weights on the hub count as nothing.
    """
    from aent_verl.platforms import cpu

    weights = weight_gib(cfg.actor_rollout_ref.model.path)
    engines = max(1, replicas(cfg)[0])
    reference = cfg.actor_rollout_ref.actor.use_kl_loss or cfg.algorithm.use_kl_in_reward
    environment = OmegaConf.select(cfg, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    cache = float({**cpu.runtime_env_vars(), **environment}["VLLM_CPU_KVCACHE_SPACE"])
    return {
        f"{processes(cfg)} processes": PROCESS_GIB * processes(cfg),
        "training": (5 if reference else 4) * weights,
        "rollout": 2 * weights * engines,
        "KV cache": cache * engines,
    }


def weight_gib(path: str) -> float:
    """Return the size of a model folder's weights when loaded in fp32, in GiB; 0 for a model on the hub."""
    found = (list(Path(path).glob(pattern)) for pattern in WEIGHTS)
    if not (files := next(filter(None, found), [])):
        return 0.0
    config = json.loads(Path(path, "config.json").read_text(encoding="utf-8"))
    stored = str(config.get("dtype") or config.get("torch_dtype"))
    return sum(file.stat().st_size for file in files) * (2.0 if stored.endswith("16") else 1.0) / GIB


def available_gib() -> float:
    """Return the free memory of this machine, or of our container if that is less, in GiB."""
    import psutil

    free = [psutil.virtual_memory().available]
    group = Path("/sys/fs/cgroup")
    # Without such a control group, or with "max" for its limit, the machine's own figure stands.
    with suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
        free.append(limit - used)
    return float(min(free)) / GIB


def _check_memory(cfg: DictConfig) -> str:
    if not OmegaConf.select(cfg, "run.check_memory", default=True):
        return "memory: not checked, run.check_memory=false"
    parts = memory_estimate(cfg)
    needed, found = sum(parts.values()), available_gib()
    if found < needed:
        table = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
        raise at(cfg, GPUS).error(
            f"the run would take about {needed:.1f} GiB of memory ({table}), but {found:.1f} GiB are free",
            f"Close other programs, lower {GPUS}, use a smaller model or less VLLM_CPU_KVCACHE_SPACE; the figure is "
            "an estimate, run.check_memory=false skips this check",
            f"at least {needed:.1f} GiB",
        )
    return f"memory: about {needed:.1f} GiB needed, {found:.1f} GiB free"
