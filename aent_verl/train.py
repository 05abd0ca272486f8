"""``python -m aent_verl.train key=value ...``: verl's ``main_ppo`` with entropy control, checked before Ray starts."""

import os
import sys
import traceback
import warnings
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from aent_verl import earlier_start, metrics
from aent_verl.locking import alone
from aent_verl.terminal import everything_else_in

if TYPE_CHECKING:
    from aent_verl.integration.config import EntropyControlConfig
    from aent_verl.progress import ProgressDisplay

CONFIG_MODULE = "pkg://aent_verl._config"
CONFIG_NAME = "aent_trainer"
LOG = "train.log"


class TrainingError(RuntimeError):
    """A run that cannot start or did not finish; the message is for the user."""


def make_paths_absolute(cfg: DictConfig) -> None:
    """Resolve the run's folders here: Ray's workers may have another working directory."""
    cfg.run.dir = os.path.abspath(cfg.run.dir)
    if cfg.run.task is not None and "cache" in cfg.run.task:
        cfg.run.task.cache = os.path.abspath(cfg.run.task.cache)
    if cfg.trainer.resume_from_path is not None:
        cfg.trainer.resume_from_path = os.path.abspath(cfg.trainer.resume_from_path)


def choose_platform(cfg: DictConfig) -> str | None:
    """Decide once between verl's own platforms and our CPU platform, before anything resolves verl's platform.

    Raises:
        TrainingError: the decision does not fit the rest of the config.
    """
    from aent_verl.integration import platform_cpu, vllm_cpu

    ray_init = cfg.ray_kwargs.ray_init
    platform = platform_cpu.detect_platform(ray_init.get("address"))
    if platform == platform_cpu.PLATFORM_NAME:
        os.environ.update(_cpu_variables(cfg))
        # Composing imported verl, and with it our plug-in, before the platform was known.
        vllm_cpu.provide_vllm_distribution()
        if cfg.trainer.device != "cpu":
            raise TrainingError(
                f"the CPU platform was chosen (no accelerator was found, or VERL_PLATFORM says so), and trainer.device="
                f"{cfg.trainer.device!r}: to train on the CPU add platform=cpu; to use a GPU cluster, point Ray at it "
                "with RAY_ADDRESS"
            )
    elif cfg.trainer.device == "cpu":
        raise TrainingError(
            "trainer.device='cpu', but there is an accelerator: leave platform=cpu out to use it, or set "
            "VERL_PLATFORM=cpu to train on the CPU all the same"
        )
    return platform


def hand_to_workers(cfg: DictConfig, platform: str | None) -> None:
    """Put into Ray's runtime environment what every process of the run needs to know."""
    from aent_verl.integration import platform_cpu, vllm_plugin, weight_sockets

    on_cpu = platform == platform_cpu.PLATFORM_NAME
    run_dir = Path(cfg.run.dir)
    given = dict(OmegaConf.select(cfg, "ray_kwargs.ray_init.runtime_env.env_vars") or {})
    modules = given.pop("VERL_USE_EXTERNAL_MODULES", None) or os.environ.get("VERL_USE_EXTERNAL_MODULES")
    variables = {
        # verl logs the failure of a plug-in entry point at DEBUG; the failure of a module named here raises.
        "VERL_USE_EXTERNAL_MODULES": ",".join(filter(None, [modules, "aent_verl.integration.plugin"])),
        "VERL_FILE_LOGGER_PATH": str(run_dir / metrics.METRICS_FILE),
        "TENSORBOARD_DIR": str(run_dir / "tensorboard"),
        weight_sockets.RUN_ENV: weight_sockets.mark_of(run_dir),
    }
    if on_cpu:
        variables |= _cpu_variables(cfg)
    with open_dict(cfg):
        environment = cfg.ray_kwargs.ray_init.setdefault("runtime_env", {})
        # Without our plug-in vLLM would wait for weights at another socket.
        plugins = vllm_plugin.allowed(given.get("VLLM_PLUGINS", os.environ.get("VLLM_PLUGINS")))
        environment["env_vars"] = variables | given | plugins
        ray_init = cfg.ray_kwargs.ray_init
        if platform_cpu.cluster_to_join(ray_init.get("address")) is not None:
            # A cluster that is joined has the slots it has; Ray refuses to be told others.
            for key in ("num_cpus", "num_gpus", "resources", "include_dashboard"):
                ray_init.pop(key, None)
        elif on_cpu:
            logical = platform_cpu.logical_accelerators(cfg.trainer.n_gpus_per_node)
            logical["resources"] |= dict(ray_init.get("resources") or {})
            ray_init.update(logical)


def _cpu_variables(cfg: DictConfig) -> dict[str, str]:
    from aent_verl.integration.platform_cpu import runtime_env_vars

    threads = cfg.run.threads
    if threads is not None and (type(threads) is not int or threads < 1):
        raise TrainingError(f"run.threads={threads!r}: must be a whole number from 1, or null for a share of the cores")
    return runtime_env_vars(processes=cfg.trainer.n_gpus_per_node, threads=threads)


def prepare_task(cfg: DictConfig, terminal: TextIO) -> None:
    """Build the run's data and model if its experiment says how and they are not there yet."""
    if cfg.run.task is not None:
        with redirect_stdout(terminal):
            hydra.utils.instantiate(cfg.run.task)


def resume_folder(cfg: DictConfig) -> Path | None:
    """The checkpoint folder ``global_step_N`` that verl will resume from, or None for a fresh start.

    Raises:
        TrainingError: the folder to resume from is not there.
    """
    trainer = cfg.trainer
    if trainer.resume_mode == "resume_path":
        if trainer.resume_from_path is None or not Path(trainer.resume_from_path).is_dir():
            raise TrainingError(
                f"trainer.resume_from_path={trainer.resume_from_path!r} is no folder: with trainer.resume_mode="
                "resume_path it must be a checkpoint's global_step_N folder"
            )
        return Path(trainer.resume_from_path)
    tracker = Path(trainer.default_local_dir) / "latest_checkpointed_iteration.txt"
    if trainer.resume_mode != "auto" or not tracker.is_file():
        return None
    folder = tracker.with_name(f"global_step_{tracker.read_text().strip()}")
    return folder if folder.is_dir() else None


def is_complete(cfg: DictConfig, control: "EntropyControlConfig", terminal: TextIO) -> bool:
    """Whether the run that would be resumed is complete already; reads the controller's saved state on the way.

    A state that is missing or damaged stops the run here, before it starts.
    """
    from aent_verl.integration import state_file

    folder = resume_folder(cfg)
    if folder is None:
        return False
    if not control.restart_controller:
        _, _, changes = state_file.read(folder, control=control, controllers=control.controllers)
        for change in changes:
            print(f"warning: {change}", file=terminal)
    if (other := earlier_start.warning(cfg)) is not None:
        print(f"warning: {other}", file=terminal)
    done, last = folder.name.removeprefix("global_step_"), cfg.trainer.total_training_steps
    if last is None or not done.isdigit() or int(done) < last:
        print(f"resuming from {folder}", file=terminal)
        return False
    if cfg.trainer.val_before_train and not is_logged(cfg.run.dir, last):
        # verl saves, validates and logs in this order: a kill in between takes the last validation with it.
        print(f"resuming from {folder} to validate it: the run was killed before it could", file=terminal)
        return False
    print(
        f"this run is complete: step {done} of {last} in {cfg.run.dir}\n"
        "to train again choose another name, trainer.experiment_name=..., or remove that folder",
        file=terminal,
    )
    return True


def is_logged(folder: str, step: int) -> bool:
    """Whether a run's metrics file, where it has one, reaches this step."""
    try:
        return max(metrics.read_run(folder)) >= step
    except FileNotFoundError:
        return True
    except ValueError:
        return False


def check_settings(cfg: DictConfig, terminal: TextIO) -> "EntropyControlConfig":
    """Build the actor's config as the workers will; settings without effect are named on the terminal.

    Raises:
        ValueError: an illegal setting, or one under which our code would not run.
    """
    from verl.utils.config import omega_conf_to_dataclass

    from aent_verl.integration.parsing import NoEffectWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NoEffectWarning)
        control: EntropyControlConfig = omega_conf_to_dataclass(cfg.actor_rollout_ref.actor).entropy_control
    messages = [str(item.message) for item in caught if issubclass(item.category, NoEffectWarning)]
    if cfg.run.progress and "file" not in cfg.trainer.logger:
        messages.append("trainer.logger has no 'file': the progress table and the plot stay empty")
    if cfg.trainer.save_freq <= 0:
        messages.append(
            f"trainer.save_freq={cfg.trainer.save_freq} saves no checkpoint: a killed run starts from the "
            "beginning, and there is nothing to evaluate"
        )
    if cfg.algorithm.adv_estimator == "grpo" and cfg.actor_rollout_ref.rollout.n == 1:
        messages.append(
            "actor_rollout_ref.rollout.n=1: GRPO compares the responses to one prompt, and one has nothing to be "
            "compared with; give 8, say"
        )
    for message in messages:
        print(f"warning: {message}", file=terminal)
    return control


def root_cause(error: BaseException) -> BaseException:
    """The error that a Ray task or Hydra call died of, without the layers that Ray and Hydra put around it."""
    while type(error).__module__.partition(".")[0] in ("ray", "hydra"):
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException) or inner is error:
            break
        error = inner
    return error


def train(cfg: DictConfig, terminal: TextIO) -> None:
    """Check everything, then run verl's PPO on the composed config.

    Args:
        cfg: the composed config; paths and Ray's settings in it are filled in.
        terminal: where people look; the rest of what is printed may go elsewhere.

    Raises:
        TrainingError, ValueError, RuntimeError: something does not fit; nothing was started.
    """
    platform = choose_platform(cfg)
    control = check_settings(cfg, terminal)
    with alone_in(Path(cfg.run.dir)):
        if is_complete(cfg, control, terminal):
            return
        prepare_task(cfg, terminal)

        from aent_verl import preflight

        for line in preflight.run(cfg):
            print(f"checked: {line}", file=terminal)
        earlier_start.write(cfg, Path(cfg.run.dir))
        hand_to_workers(cfg, platform)
        run_verl(cfg, terminal)


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Hold a run's folder: two trainings would mix their metrics and overwrite each other's checkpoints.

    Raises:
        TrainingError: on entering: another process trains in it.
    """
    setting = f"run.dir={str(folder)!r}"
    busy = TrainingError(
        f"{setting}: another process trains in it; wait until it ends, or give this run another name, "
        "trainer.experiment_name=..."
    )
    return alone(folder, setting, busy)


def run_verl(cfg: DictConfig, terminal: TextIO) -> None:
    """Hand over to verl, with the progress display around it if the config asks for one."""
    import ray
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    validate_config(config=cfg, use_reference_policy=need_reference_policy(cfg), use_critic=need_critic(cfg))
    metrics.rotate(cfg.run.dir)
    with display(cfg, terminal) if cfg.run.progress else nullcontext():
        try:
            run_ppo(cfg, task_runner_class=TaskRunnerV1)
        finally:
            # While the log still catches what the workers say last.
            ray.shutdown()
    picture = plot(cfg)
    print(f"results in {cfg.run.dir}" + (f", plot {picture}" if picture else ""), file=terminal)


def display(cfg: DictConfig, terminal: TextIO) -> "ProgressDisplay":
    """The progress display of this run."""
    from rich.console import Console

    from aent_verl.integration import report
    from aent_verl.progress import ProgressDisplay

    run_dir = Path(cfg.run.dir)
    return ProgressDisplay(
        Console(file=terminal),
        cfg.trainer.total_training_steps,
        metrics_path=run_dir / metrics.METRICS_FILE,
        report_path=Path(cfg.trainer.default_local_dir) / report.FILE,
        log_path=run_dir / LOG,
    )


def plot(cfg: DictConfig) -> Path | None:
    """The run's picture, where matplotlib is installed."""
    from aent_verl.plot import plot_run

    try:
        return plot_run(cfg.run.dir)
    except (ImportError, OSError, ValueError) as error:
        print(f"no plot: {error}", file=sys.stderr)
        return None


@hydra.main(version_base="1.3", config_path=CONFIG_MODULE, config_name=CONFIG_NAME)
def run(cfg: DictConfig) -> None:
    """Train on the config that Hydra composed from the command line."""
    make_paths_absolute(cfg)
    if not cfg.run.progress:
        train(cfg, sys.stdout)
        return
    log = Path(cfg.run.dir) / LOG
    try:
        with everything_else_in(log) as terminal:
            try:
                train(cfg, terminal)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        cause = root_cause(error)
        print(f"error: {cause}\n({type(cause).__name__}; the full log is {log})", file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Entry point: versions first, because without verl Hydra could not even compose the config."""
    from aent_verl.integration import compat

    try:
        compat.check_versions()
    except compat.VersionError as error:
        sys.exit(f"error: {error}")
    run()


if __name__ == "__main__":
    main()
