"""Where a run computes, and what every process of it needs to know."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from aent_verl.platforms import cpu, vllm_plugin, weight_sockets
from aent_verl.preflight import machines
from aent_verl.runs import metrics


class LaunchError(RuntimeError):
    """A run that cannot start or did not finish; the message is for the user."""


def choose_platform(cfg: DictConfig) -> str | None:
    """Decide once between verl's own platforms and our CPU platform, before anything resolves verl's platform.

    Raises:
        LaunchError: the decision does not fit the rest of the config.
    """
    platform = cpu.detect_platform(cfg.ray_kwargs.ray_init.get("address"))
    if platform == cpu.PLATFORM_NAME:
        os.environ.update(_cpu_variables(cfg))
        if cfg.trainer.device != "cpu":
            raise LaunchError(
                f"the CPU platform was chosen (no accelerator was found, or VERL_PLATFORM says so), and trainer.device="
                f"{cfg.trainer.device!r}: to train on the CPU add platform=cpu; to use a GPU cluster, point Ray at it "
                "with RAY_ADDRESS"
            )
    elif cfg.trainer.device == "cpu":
        raise LaunchError(
            "trainer.device='cpu', but there is an accelerator: leave platform=cpu out to use it, or set "
            "VERL_PLATFORM=cpu to train on the CPU anyway"
        )
    return platform


def hand_to_workers(cfg: DictConfig, platform: str | None) -> None:
    """Put into Ray's runtime environment what every process of the run needs to know."""
    on_cpu = platform == cpu.PLATFORM_NAME
    run_dir, ray_init = Path(cfg.run.dir), cfg.ray_kwargs.ray_init
    given = dict(OmegaConf.select(cfg, "ray_kwargs.ray_init.runtime_env.env_vars") or {})
    modules = given.pop("VERL_USE_EXTERNAL_MODULES", None) or os.environ.get("VERL_USE_EXTERNAL_MODULES")
    variables = {
        # verl logs the failure of a plug-in entry point at DEBUG; the failure of a module named here raises.
        "VERL_USE_EXTERNAL_MODULES": ",".join(filter(None, [modules, "aent_verl.plugin.entry_point"])),
        "VERL_FILE_LOGGER_PATH": str(run_dir / metrics.METRICS_FILE),
        "TENSORBOARD_DIR": str(run_dir / "tensorboard"),
        weight_sockets.RUN_ENV: weight_sockets.mark_of(run_dir),
        **(_cpu_variables(cfg) if on_cpu else {}),
    }
    with open_dict(cfg):
        # Without our plug-in vLLM would wait for weights at another socket.
        plugins = vllm_plugin.allowed(given.get("VLLM_PLUGINS", os.environ.get("VLLM_PLUGINS")))
        ray_init.setdefault("runtime_env", {})["env_vars"] = variables | given | plugins
        if cpu.cluster_to_join(ray_init.get("address")) is not None:
            # A cluster that is joined has the slots it has; Ray refuses to be told others.
            for key in ("num_cpus", "num_gpus", "resources", "include_dashboard"):
                ray_init.pop(key, None)
        elif on_cpu:
            logical = cpu.logical_accelerators(machines.gpus(cfg))
            logical["resources"] |= dict(ray_init.get("resources") or {})
            ray_init.update(logical)


def _cpu_variables(cfg: DictConfig) -> dict[str, str]:
    threads = cfg.run.threads
    if threads is not None and (type(threads) is not int or threads < 1):
        raise LaunchError(f"run.threads={threads!r}: must be a whole number from 1, or null for a share of the cores")
    return cpu.runtime_env_vars(processes=cfg.trainer.n_gpus_per_node, threads=threads)


def start_ray(cfg: DictConfig, **more: Any) -> None:
    """Start or join Ray as verl's trainer does, with more of Ray's own settings."""
    import ray
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    given = cfg.ray_kwargs.ray_init
    runtime_env = OmegaConf.merge(get_ppo_ray_runtime_env(cfg), given.get("runtime_env") or {})
    settings: Any = OmegaConf.to_container(OmegaConf.create({**given, "runtime_env": runtime_env}), resolve=True)
    ray.init(**settings, **more)
