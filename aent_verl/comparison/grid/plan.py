"""The runs of a grid: folder, overrides and composed config of each, checked before the first one starts."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from aent_verl._util import hydra_quoted
from aent_verl.comparison.grid.settings import Settings
from aent_verl.launch import compose
from aent_verl.runs import problems
from aent_verl.runs.metrics import METRICS_FILE
from aent_verl.runs.protocol import SEED_KEYS, Protocol, differences, protocol_of

RUNS = "runs"
_PRESET = "entropy_control="


@dataclass(frozen=True)
class GridRun:
    """One run of the grid, as it is planned.

    Attributes:
        method: label of its method.
        seed: its seed.
        folder: everything of this run, absolute.
        overrides: what ``aent-verl train`` gets.
        evaluation: what ``aent-verl evaluate`` gets beyond the model and where to write; None: no evaluation.
        config: the composed config.
    """

    method: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    evaluation: list[str] | None
    config: DictConfig

    @property
    def name(self) -> str:
        """Method and seed, as in "aent seed 3"."""
        return f"{self.method} seed {self.seed}"

    @property
    def metrics_file(self) -> Path:
        """What verl's logger writes."""
        return self.folder / METRICS_FILE

    @property
    def total_steps(self) -> int | None:
        """Training steps; None if the data decides."""
        return self.config.trainer.total_training_steps

    @property
    def train_command(self) -> list[str]:
        """Arguments of the interpreter that trains this run."""
        return ["-m", "aent_verl.commands.train", *self.overrides]

    def evaluate_command(self, checkpoint: Path) -> list[str]:
        """Return the arguments of the interpreter that evaluates a checkpoint of this run."""
        output = self.folder / problems.EVALUATION.parent
        where = [f"model={hydra_quoted(checkpoint)}", f"output={hydra_quoted(output)}"]
        return ["-m", "aent_verl.commands.evaluate", *where, *self.evaluation_overrides]

    @property
    def evaluation_overrides(self) -> list[str]:
        """What ``aent-verl evaluate`` gets beyond model and folder: by default it uses the training's machines."""
        trainer, rollout = self.config.trainer, self.config.actor_rollout_ref.rollout
        machines = {
            "gpus": trainer.n_gpus_per_node,
            "trainer.nnodes": trainer.nnodes,
            "actor_rollout_ref.rollout.tensor_model_parallel_size": rollout.tensor_model_parallel_size,
            **({"platform": "cpu"} if trainer.device == "cpu" else {}),
        }
        asked = self.evaluation or []
        given = {text.partition("=")[0] for text in asked}
        return [*(f"{key}={value}" for key, value in machines.items() if key not in given), *asked]

    @cached_property
    def protocol(self) -> Protocol:
        """What has to be equal in all runs; the files of data and model must be there."""
        config: Any = OmegaConf.to_container(self.config, resolve=True)
        return protocol_of(config)


def plan_runs(settings: Settings) -> list[GridRun]:
    """Plan all runs, seed by seed, so that an early look at a grid finds each method as far as the others.

    Raises:
        ValueError: an override that does not compose or that the comparison decides itself.
    """
    if any(text.startswith(_PRESET) for text in settings.overrides):
        raise ValueError(f"{_PRESET}... for all runs: methods=[...] choose it; leave it out")
    composed = {method: _compose(settings, method, own) for method, own in settings.methods.items()}
    return [_plan_run(settings, method, seed, *found) for seed in settings.seeds for method, found in composed.items()]


def _compose(settings: Settings, method: str, own: tuple[str, ...]) -> tuple[tuple[str, ...], DictConfig]:
    """Compose a method's overrides and config, without seed and folder: composing is slow."""
    preset = [] if any(text.startswith(_PRESET) for text in own) else [f"{_PRESET}{method}"]
    overrides = (*settings.overrides, *preset, *own)
    try:
        return overrides, compose.compose(overrides)
    except HydraException as error:
        raise ValueError(f"method {method}: {_first_line(error)}") from error


def _plan_run(settings: Settings, method: str, seed: int, overrides: tuple[str, ...], composed: DictConfig) -> GridRun:
    folder = Path(os.path.abspath(settings.results), RUNS, f"{method}_seed{seed}")
    own: dict[str, int | str | Path] = {
        **dict.fromkeys(SEED_KEYS, seed),
        "run.dir": folder,
        "trainer.experiment_name": folder.name,
        "trainer.validation_data_dir": folder / problems.VALIDATION,
    }
    config = composed.copy()
    for key, value in own.items():
        OmegaConf.update(config, key, str(value) if isinstance(value, Path) else value)
    compose.make_paths_absolute(config)
    texts = (f"{key}={hydra_quoted(value) if isinstance(value, Path) else value}" for key, value in own.items())
    evaluation = [f"{key}={_value(value)}" for key, value in settings.evaluation.items()] or None
    return GridRun(method, seed, folder, (*overrides, *texts), evaluation, config)


def check(grid: Sequence[GridRun]) -> None:
    """Build data and model once, and check each method's settings as its workers will.

    Raises:
        ValueError, RuntimeError: what does not fit, and in which method.
    """
    from aent_verl import preflight

    compose.prepare_task(grid[0].config, sys.stdout)
    methods: dict[str, GridRun] = {}
    for run in grid:
        methods.setdefault(run.method, run)
    unequal = differences({method: run.protocol for method, run in methods.items()})
    if unequal:
        raise ValueError(
            "these methods could not be compared, because they do not train and validate under the same protocol:\n  "
            + "\n  ".join(unequal)
        )
    for method, run in methods.items():
        try:
            if run.evaluation is not None:
                _check_checkpoint(run.config)
            preflight.say(preflight.check_settings(run.config), sys.stdout, about=f"method {method}: ")
        except Exception as error:
            raise ValueError(f"method {method}: {error}") from error
    # It is the same for all: what it takes over from a run belongs to the protocol.
    if grid[0].evaluation is not None:
        _check_evaluation(grid[0])


def _check_checkpoint(config: DictConfig) -> None:
    """Check that a training ends with a checkpoint that can be evaluated.

    Raises:
        ValueError: it saves none, or one of an adapter.
    """
    if not (often := config.trainer.save_freq) > 0:
        raise ValueError(f"trainer.save_freq={often}: must be above 0, so that evaluation.* has a final checkpoint")
    if rank := config.actor_rollout_ref.model.lora_rank:
        raise ValueError(
            f"actor_rollout_ref.model.lora_rank={rank}: must be 0, because evaluation.* asks to evaluate the final "
            "checkpoint, and an evaluation loads no adapter; without evaluation.* compare by validation"
        )


def _check_evaluation(run: GridRun) -> None:
    """Check settings, data and reward of a run's evaluation, as it will check them itself after hours of training.

    Raises:
        ValueError: something does not fit.
    """
    from aent_verl import preflight
    from aent_verl.evaluation import settings
    from aent_verl.preflight import data, reward
    from aent_verl.preflight.findings import root_cause

    overrides = settings.long_form(run.evaluation_overrides)
    try:
        cfg = compose.compose(overrides, compose.EVALUATION)
        trained: Any = OmegaConf.to_container(run.config, resolve=True)
        settings.inherit(cfg, trained, settings.typed_keys(overrides))
        cfg.actor_rollout_ref.model.path = run.config.actor_rollout_ref.model.path
        preflight.say(settings.check(cfg), sys.stdout, about="evaluation: ")
        found = data.read_files(cfg, settings.SHORT_KEYS["data"])
        reward.check(cfg, data.Sample(validation=found.sample))
        preflight.say(preflight.attempt("data", lambda: found.warnings), sys.stdout, about="evaluation: ")
    except Exception as error:
        reason = _first_line(error) if isinstance(error, HydraException) else str(root_cause(error))
        raise ValueError(f"evaluation: {settings.short_form(reason)}") from error


def _value(value: Any) -> str:
    """Write a setting's value as Hydra reads it."""
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return hydra_quoted(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _first_line(error: Exception) -> str:
    """Return what an error says before it goes into details."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
