"""Are there enough accelerators, Ray slots and memory for what the config asks for?"""

from __future__ import annotations

import ctypes
import glob
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.errors import PreflightError, PreflightWarning

GIB = 1024**3
# Resident memory of a process that has imported torch and verl or vLLM, without any model.
PROCESS_GIB = 0.6
# CPUs of a placement bundle, one for each accelerator: max_colocate_count of verl's ResourcePoolManager.
CPUS_PER_GPU = 3
NUMA = "libnuma.so.1"
# vLLM's executor that has the model in the engine's own process.
ONE_PROCESS = "UniProcExecutor"


def check(cfg: DictConfig) -> list[str | PreflightWarning]:
    """Check accelerators and CPU slots of the Ray cluster that is joined or started, and memory on the CPU platform.

    Returns:
        One line for each passed check, and a warning about a cluster that nobody named.

    Raises:
        PreflightError: something is short.
    """
    from aent_verl.platforms.cpu import joined_cluster_resources

    ray_init = cfg.ray_kwargs.ray_init
    cluster = joined_cluster_resources(ray_init.get("address"))
    if cluster is not None:
        return [*_found_by_chance(ray_init.get("address")), *check_cluster(cluster, cfg)]
    lines: list[str | PreflightWarning] = [_check_accelerators(cfg)]
    given = ray_init.get("num_cpus")
    slots = (os.cpu_count() or 1) if given is None else given
    needed = cpu_slots(cfg)
    if slots < needed:
        raise PreflightError(
            "ray_kwargs.ray_init.num_cpus",
            given,
            f"Ray would have {slots} CPU slots, and would wait for more for ever",
            expected=f"at least {needed} for {gpus(cfg)} rank(s)",
            hint=f"Set ray_kwargs.ray_init.num_cpus={needed}; slots are logical, there may be more than cores",
        )
    lines.append(f"Ray: {slots} CPU slots, {needed} needed")
    if cfg.trainer.device == "cpu":
        _check_numa()
        check_executor(cfg)
        lines.append(_check_memory(cfg))
    return lines


def _found_by_chance(address: str | None) -> list[PreflightWarning]:
    from aent_verl.platforms.cpu import cluster_to_join

    named = os.environ.get("RAY_ADDRESS") or address
    if named not in (None, "", "auto"):
        return []
    return [
        PreflightWarning(
            "RAY_ADDRESS",
            named,
            f"names no cluster, and Ray joins the one that runs on this machine, {cluster_to_join(address)}, whoever "
            "started it",
            hint="Name yours with RAY_ADDRESS=<head>:6379, or start a new one with RAY_ADDRESS=local",
        )
    ]


def check_cluster(resources: Mapping[str, float], cfg: DictConfig) -> list[str]:
    """Check a Ray cluster that was joined.

    Args:
        resources: ``ray.cluster_resources()``; infinitely many CPU slots are not looked at.
        cfg: the composed config.

    Raises:
        PreflightError: fewer accelerators or CPU slots than the run needs.
    """
    name = "NPU" if cfg.trainer.device == "npu" else "GPU"
    found, needed = resources.get(name, 0), gpus(cfg)
    if found < needed:
        raise PreflightError(
            "trainer.n_gpus_per_node",
            cfg.trainer.n_gpus_per_node,
            f"with trainer.nnodes={cfg.trainer.nnodes} the run needs {needed} of Ray's resource {name}",
            expected=f"at most the {found:g} that the cluster has",
            hint="Add nodes to the cluster, or lower trainer.n_gpus_per_node or trainer.nnodes"
            + ("; on CPU nodes run `ray start` with --num-gpus" if cfg.trainer.device == "cpu" else ""),
        )
    slots, needed_slots = resources.get("CPU", 0), cpu_slots(cfg)
    if slots < needed_slots:
        raise PreflightError(
            "trainer.n_gpus_per_node",
            cfg.trainer.n_gpus_per_node,
            f"with trainer.nnodes={cfg.trainer.nnodes} the run needs {needed_slots} CPU slots",
            expected=f"at most the {slots:g} that the Ray cluster has",
            hint="Start its nodes with a higher `ray start --num-cpus`; slots are logical",
        )
    counted = "CPU slots not looked at" if math.isinf(slots) else f"{slots:g} CPU slots"
    return [f"Ray cluster: {found:g} {name}, {needed} needed; {counted}, {needed_slots} needed"]


def gpus(cfg: DictConfig) -> int:
    """Accelerators of all resource pools together."""
    pools = [cfg.trainer]
    if cfg.reward.reward_model.enable_resource_pool:
        pools.append(cfg.reward.reward_model)
    return sum(int(pool.n_gpus_per_node) * int(pool.nnodes) for pool in pools)


def cpu_slots(cfg: DictConfig) -> int:
    """CPU slots that a run holds, and one to start the actors that hold none.

    Held: verl's placement bundles, and TransferQueue's controller and storage units.
    """
    storage = cfg.transfer_queue.backend
    units = storage.SimpleStorage.num_data_storage_units if storage.storage_backend == "SimpleStorage" else 0
    return CPUS_PER_GPU * gpus(cfg) + 1 + int(units) + 1


def check_executor(cfg: DictConfig) -> None:
    """Refuse vLLM's executor of one process for a model in several parts: it would wait for the others for ever.

    Raises:
        PreflightError: names the key and what to set it to.
    """
    rollout = cfg.actor_rollout_ref.rollout
    parts = int(rollout.tensor_model_parallel_size * rollout.pipeline_model_parallel_size)
    executor = OmegaConf.select(rollout, "engine_kwargs.vllm.distributed_executor_backend")
    if parts > 1 and executor is not None and str(executor).endswith(ONE_PROCESS):
        raise PreflightError(
            "actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend",
            executor,
            f"it runs a model in one process, and tensor and pipeline parallel sizes ask for {parts}",
            expected="mp",
            hint="Set it to mp, or actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        )


def _check_numa() -> None:
    """Look for the system library that vLLM's CPU kernels link against; without it vLLM only warns."""
    try:
        ctypes.CDLL(NUMA)
    except OSError:
        raise PreflightError(
            "trainer.device",
            "cpu",
            f"vLLM's CPU kernels need the system library {NUMA}, which is not installed",
            expected="the library",
            hint="Install it: apt-get install libnuma1, or dnf install numactl-libs",
        ) from None


def _check_accelerators(cfg: DictConfig) -> str:
    needed = gpus(cfg)
    asked = f"trainer.n_gpus_per_node * trainer.nnodes = {needed}"
    given = cfg.ray_kwargs.ray_init.get("num_gpus")
    if given is not None and given < needed:
        raise PreflightError(
            "ray_kwargs.ray_init.num_gpus",
            given,
            f"the run needs {asked}",
            expected=f"at least {needed}",
            hint="Raise it, or lower trainer.n_gpus_per_node",
        )
    if cfg.trainer.device == "cuda":
        import torch

        found = torch.cuda.device_count()
        if found < needed:
            raise PreflightError(
                "trainer.n_gpus_per_node",
                cfg.trainer.n_gpus_per_node,
                f"the run needs {asked} GPUs, and Ray is to be started on this machine, which has {found}",
                expected=f"at most {found}" if found else "a machine with GPUs",
                hint="Lower it, point Ray at a cluster with RAY_ADDRESS, or train on the CPU with platform=cpu",
            )
        return f"GPUs: {found} here, {needed} needed"
    if cfg.trainer.device == "cpu":
        return f"ranks: {needed}, on the CPU"
    return f"{cfg.trainer.device}: {needed} needed, left to verl"


def processes(cfg: DictConfig) -> int:
    """Processes that a run on one machine starts."""
    return (
        2  # driver and Ray's own daemons
        + 1  # task runner
        + 1  # coefficient
        + 1  # TransferQueue's controller
        + int(cfg.transfer_queue.backend.SimpleStorage.num_data_storage_units)
        + gpus(cfg)
        + 2 * replicas(cfg)  # vLLM's server and its engine
        + int(cfg.actor_rollout_ref.rollout.agent.num_workers)
        + int(cfg.reward.num_workers)
    )


def replicas(cfg: DictConfig) -> int:
    """Rollout engines of the run."""
    rollout = cfg.actor_rollout_ref.rollout
    each = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    return max(1, int(cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes // each))


def memory_estimate(cfg: DictConfig) -> dict[str, float]:
    """GiB that a run on one CPU machine takes, by what takes it.

    - each process `PROCESS_GIB`;
    - the actor's weights, gradients and two Adam moments, in fp32, shared among its ranks;
    - a second set of weights where there is a reference policy;
    - two sets of weights in each rollout engine: as loaded, and packed by vLLM for the CPU;
    - VLLM_CPU_KVCACHE_SPACE GiB for each rollout engine.

    Activations are not in it: they depend on micro-batch sizes. Weights on the hub count as nothing.
    """
    from aent_verl.platforms.cpu import runtime_env_vars

    weights = weight_gib(cfg.actor_rollout_ref.model.path)
    reference = cfg.actor_rollout_ref.actor.use_kl_loss or cfg.algorithm.use_kl_in_reward
    environment = OmegaConf.select(cfg, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    cache = float({**runtime_env_vars(), **environment}["VLLM_CPU_KVCACHE_SPACE"])
    return {
        f"{processes(cfg)} processes": PROCESS_GIB * processes(cfg),
        "training": (5 if reference else 4) * weights,
        "rollout": 2 * weights * replicas(cfg),
        "KV cache": cache * replicas(cfg),
    }


def weight_gib(path: str) -> float:
    """Size of a model folder's weights when loaded in fp32, in GiB; 0 for a model on the hub."""
    files = glob.glob(os.path.join(glob.escape(path), "*.safetensors")) or glob.glob(
        os.path.join(glob.escape(path), "*.bin")
    )
    if not files:
        return 0.0
    config = json.loads(Path(path, "config.json").read_text(encoding="utf-8"))
    stored = str(config.get("dtype") or config.get("torch_dtype"))
    return sum(map(os.path.getsize, files)) * (2.0 if stored.endswith("16") else 1.0) / GIB


def available_gib() -> float:
    """Free memory of this machine, or of the container that we run in if that is less, in GiB."""
    import psutil

    free = [psutil.virtual_memory().available]
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
            free.append(int(limit) - used)
    except (OSError, ValueError):
        pass  # no such control group: the machine's own figure stands
    return float(min(free)) / GIB


def _check_memory(cfg: DictConfig) -> str:
    if not OmegaConf.select(cfg, "run.check_memory", default=True):
        return "memory: not checked, run.check_memory=false"
    parts = memory_estimate(cfg)
    needed, found = sum(parts.values()), available_gib()
    if found < needed:
        table = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
        raise PreflightError(
            "trainer.n_gpus_per_node",
            cfg.trainer.n_gpus_per_node,
            f"the run would take about {needed:.1f} GiB of memory ({table}), and {found:.1f} GiB are free",
            expected=f"at least {needed:.1f} GiB",
            hint="Close other programs, lower trainer.n_gpus_per_node, take a smaller model or less "
            "VLLM_CPU_KVCACHE_SPACE; the figure is an estimate, run.check_memory=false skips this check",
        )
    return f"memory: about {needed:.1f} GiB needed, {found:.1f} GiB free"
