"""The runs of a comparison: folder, overrides and composed config of each, checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aent_verl._util import hydra_quoted
from aent_verl.comparison.grid.settings import Settings
from aent_verl.runs import problems
from aent_verl.runs.metrics import METRICS_FILE
from aent_verl.runs.protocol import SEED_KEYS, Protocol, protocol_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

RUNS = "runs"
_PRESET = "entropy_control="


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        method: label of its method.
        seed: its seed.
        folder: everything of this run, absolute.
        overrides: what ``aent-verl train`` gets.
        evaluation: what ``aent-verl evaluate`` gets beyond the model and where to write; None: no evaluation.
        config: the composed config with its interpolations resolved.
    """

    method: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    evaluation: tuple[str, ...] | None
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
        """Arguments of the interpreter that evaluates a checkpoint of this run."""
        where = [
            f"model={hydra_quoted(checkpoint)}",
            f"output={hydra_quoted(self.folder / problems.EVALUATION.parent)}",
        ]
        return ["-m", "aent_verl.commands.evaluate", *where, *self.evaluation_overrides]

    @property
    def evaluation_overrides(self) -> list[str]:
        """What ``aent-verl evaluate`` gets beyond model and folder."""
        return [*self._hardware(), *(self.evaluation or ())]

    def _hardware(self) -> list[str]:
        """The training's machines, for an evaluation that does not name its own."""
        trainer, rollout = self.config.trainer, self.config.actor_rollout_ref.rollout
        given = {text.partition("=")[0] for text in self.evaluation or ()}
        same = {
            "gpus": trainer.n_gpus_per_node,
            "trainer.nnodes": trainer.nnodes,
            "actor_rollout_ref.rollout.tensor_model_parallel_size": rollout.tensor_model_parallel_size,
            **({"platform": "cpu"} if trainer.device == "cpu" else {}),
        }
        return [f"{key}={value}" for key, value in same.items() if key not in given]

    @cached_property
    def protocol(self) -> Protocol:
        """What has to be equal in all runs; the files of data and model must be there."""
        from omegaconf import OmegaConf

        config = OmegaConf.to_container(self.config, resolve=True)
        assert isinstance(config, dict)
        return protocol_of({str(key): value for key, value in config.items()})


def cells(settings: Settings) -> list[Cell]:
    """All runs, seed by seed, so that an early look at a grid finds each method as far as the others.

    Raises:
        ValueError: an override that does not compose or that the comparison decides itself.
    """
    return [
        _cell(settings, method, overrides, seed)
        for seed in settings.seeds
        for method, overrides in settings.methods.items()
    ]


def _cell(settings: Settings, method: str, own: tuple[str, ...], seed: int) -> Cell:
    from hydra.errors import HydraException

    from aent_verl.launch import compose

    if any(text.startswith(_PRESET) for text in settings.overrides):
        raise ValueError(f"{_PRESET}... for all runs: methods=[...] choose it; leave it out")
    folder = Path(os.path.abspath(settings.results)) / RUNS / f"{method}_seed{seed}"
    preset = [] if any(text.startswith(_PRESET) for text in own) else [f"{_PRESET}{method}"]
    overrides = (
        *settings.overrides,
        *preset,
        *own,
        *(f"{key}={seed}" for key in SEED_KEYS),
        f"run.dir={hydra_quoted(folder)}",
        f"trainer.experiment_name={method}_seed{seed}",
        f"trainer.validation_data_dir={hydra_quoted(folder / problems.VALIDATION)}",
    )
    try:
        config = compose.compose(overrides)
        compose.make_paths_absolute(config)
    except HydraException as error:
        raise ValueError(f"method {method}: {first_line(error)}") from error
    return Cell(method, seed, folder, overrides, _evaluation(settings), config)


def _evaluation(settings: Settings) -> tuple[str, ...] | None:
    if not settings.evaluation:
        return None
    return tuple(f"{key}={_value(value)}" for key, value in settings.evaluation.items())


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return hydra_quoted(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def first_line(error: Exception) -> str:
    """What an error says before it goes into details."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
