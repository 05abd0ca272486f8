"""``python -m aent_verl.train key=value ...``: verl's ``main_ppo`` with entropy control, checked before Ray starts."""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

CONFIG_MODULE = "pkg://aent_verl._config"
CONFIG_NAME = "aent_trainer"
METRICS = "metrics.jsonl"
LOG = "train.log"


class TrainingError(RuntimeError):
    """A run that cannot start or did not finish; the message is for the user."""


def make_paths_absolute(cfg: DictConfig) -> None:
    """Resolve the run's folders here: Ray's workers may have another working directory."""
    cfg.run.dir = os.path.abspath(cfg.run.dir)
    if cfg.run.task is not None and "cache" in cfg.run.task:
        cfg.run.task.cache = os.path.abspath(cfg.run.task.cache)


def choose_platform(cfg: DictConfig) -> str | None:
    """Decide once between verl's own platforms and our CPU platform, before anything resolves verl's platform.

    Raises:
        TrainingError: the decision does not fit the rest of the config.
    """
    from aent_verl.integration import platform_cpu

    ray_init = cfg.ray_kwargs.ray_init
    platform = platform_cpu.detect_platform(ray_init.get("address"))
    if platform == platform_cpu.PLATFORM_NAME:
        os.environ.update(platform_cpu.runtime_env_vars(processes=cfg.trainer.n_gpus_per_node))
        if cfg.trainer.device != "cpu":
            raise TrainingError(
                f"there is no accelerator here, and trainer.device={cfg.trainer.device!r}: to train on the CPU add "
                "platform=cpu; on a GPU cluster, point Ray at it with RAY_ADDRESS"
            )
    elif cfg.trainer.device == "cpu":
        raise TrainingError(
            "trainer.device='cpu', but there is an accelerator: leave platform=cpu out to use it, or set "
            "VERL_PLATFORM=cpu to train on the CPU all the same"
        )
    return platform


def hand_to_workers(cfg: DictConfig, platform: str | None) -> None:
    """Put into Ray's runtime environment what every process of the run needs to know."""
    from aent_verl.integration import platform_cpu

    on_cpu = platform == platform_cpu.PLATFORM_NAME
    run_dir = Path(cfg.run.dir)
    variables = {
        # verl logs the failure of a plug-in entry point at DEBUG; the failure of a module named here raises.
        "VERL_USE_EXTERNAL_MODULES": ",".join(
            filter(None, [os.environ.get("VERL_USE_EXTERNAL_MODULES"), "aent_verl.integration.plugin"])
        ),
        "VERL_FILE_LOGGER_PATH": str(run_dir / METRICS),
        "TENSORBOARD_DIR": str(run_dir / "tensorboard"),
    }
    if on_cpu:
        variables |= platform_cpu.runtime_env_vars(processes=cfg.trainer.n_gpus_per_node)
    with open_dict(cfg):
        environment = cfg.ray_kwargs.ray_init.setdefault("runtime_env", {})
        environment["env_vars"] = variables | dict(environment.get("env_vars") or {})
        if cfg.ray_kwargs.ray_init.get("address") or os.environ.get("RAY_ADDRESS"):
            # A cluster that is joined has the slots it has; Ray refuses to be told others.
            for key in ("num_cpus", "num_gpus", "resources", "include_dashboard"):
                cfg.ray_kwargs.ray_init.pop(key, None)
        elif on_cpu:
            cfg.ray_kwargs.ray_init.update(platform_cpu.logical_accelerators(cfg.trainer.n_gpus_per_node))


def prepare_task(cfg: DictConfig) -> None:
    """Build the run's data and model if its experiment says how and they are not there yet."""
    if cfg.run.task is not None:
        hydra.utils.instantiate(cfg.run.task)


def finished_step(cfg: DictConfig) -> int | None:
    """The step at which an earlier run in this folder was saved, or None; only where it would be resumed."""
    tracker = Path(cfg.trainer.default_local_dir) / "latest_checkpointed_iteration.txt"
    if cfg.trainer.resume_mode != "auto" or not tracker.is_file():
        return None
    return int(tracker.read_text())


def root_cause(error: BaseException) -> BaseException:
    """The error that a Ray task or Hydra call died of, without the layers around it."""
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException) or inner is error:
            return error
        error = inner


def train(cfg: DictConfig) -> None:
    """Check everything, then run verl's PPO on the composed config.

    Raises:
        TrainingError, ValueError: something does not fit; nothing was started.
    """
    from aent_verl.integration import compat

    compat.check_versions()
    make_paths_absolute(cfg)
    platform = choose_platform(cfg)

    from aent_verl.integration.config import EntropyControlConfig

    EntropyControlConfig.parse(OmegaConf.to_container(cfg.entropy_control, resolve=True))
    done = finished_step(cfg)
    if done is not None and cfg.trainer.total_training_steps is not None and done >= cfg.trainer.total_training_steps:
        print(
            f"this run is complete: step {done} of {cfg.trainer.total_training_steps} in {cfg.run.dir}\n"
            "to train again, choose another name with trainer.experiment_name=..., or remove that folder"
        )
        return
    prepare_task(cfg)

    from aent_verl import preflight

    for line in preflight.run(cfg):
        print(f"checked: {line}")
    hand_to_workers(cfg, platform)
    run_verl(cfg)


def run_verl(cfg: DictConfig) -> None:
    """Hand over to verl, with the progress display around it if the config asks for one."""
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from aent_verl import metrics

    validate_config(config=cfg, use_reference_policy=need_reference_policy(cfg), use_critic=need_critic(cfg))
    metrics.rotate(cfg.run.dir)
    with ExitStack() as stack:
        if cfg.run.progress:
            stack.enter_context(quiet_display(cfg))
        run_ppo(cfg, task_runner_class=TaskRunnerV1)
    picture = plot(cfg)
    print(f"results in {cfg.run.dir}" + (f", plot {picture}" if picture else ""))


def quiet_display(cfg: DictConfig) -> Any:
    """The progress display, and everything that this process and Ray's workers print in ``train.log``."""
    from rich.console import Console

    from aent_verl.integration.trainer import REPORT
    from aent_verl.progress import ProgressDisplay

    stack = ExitStack()
    log = Path(cfg.run.dir) / LOG
    terminal = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    saved = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    def restore() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, copy in enumerate(saved, start=1):
            os.dup2(copy, target)
            os.close(copy)

    stack.callback(restore)
    stack.enter_context(
        ProgressDisplay(
            Console(file=terminal),
            cfg.trainer.total_training_steps,
            metrics_path=Path(cfg.run.dir) / METRICS,
            report_path=Path(cfg.trainer.default_local_dir) / REPORT,
            log_path=log,
        )
    )
    return stack


def plot(cfg: DictConfig) -> Path | None:
    """The run's picture, where matplotlib is installed."""
    from aent_verl.plot import plot_run

    try:
        return plot_run(cfg.run.dir)
    except ImportError as error:
        print(error, file=sys.stderr)
        return None


@hydra.main(version_base="1.3", config_path=CONFIG_MODULE, config_name=CONFIG_NAME)
def main(cfg: DictConfig) -> None:
    """Entry point with Hydra overrides."""
    try:
        train(cfg)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        if not cfg.run.progress:
            raise
        cause = root_cause(error)
        print(f"error: {type(cause).__name__}: {cause}", file=sys.stderr)
        log = Path(cfg.run.dir) / LOG
        if log.is_file():
            print(f"the full log is {log}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
