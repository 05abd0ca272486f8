"""Checks of a grid before its first run: data and model, each method's settings, and the evaluation that follows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aent_verl.comparison.grid.plan import Cell, first_line
from aent_verl.runs.protocol import differences

if TYPE_CHECKING:
    from omegaconf import DictConfig


def check(grid: Sequence[Cell]) -> None:
    """Build data and model once, and check each method's settings as its workers will.

    Raises:
        ValueError, RuntimeError: what does not fit, and in which method.
    """
    from aent_verl import preflight
    from aent_verl.launch.compose import prepare_task

    prepare_task(grid[0].config, sys.stdout)
    methods: dict[str, Cell] = {}
    for cell in grid:
        methods.setdefault(cell.method, cell)
    unequal = differences({method: cell.protocol for method, cell in methods.items()})
    if unequal:
        raise ValueError(
            "these methods could not be compared, because they do not train and validate under the same protocol:\n  "
            + "\n  ".join(unequal)
        )
    for cell in methods.values():
        if cell.evaluation is not None and not cell.config.trainer.save_freq > 0:
            raise ValueError(
                f"trainer.save_freq={cell.config.trainer.save_freq}: must be above 0, because evaluation.* asks to "
                "evaluate the final checkpoint"
            )
        rank = cell.config.actor_rollout_ref.model.lora_rank
        if cell.evaluation is not None and rank:
            raise ValueError(
                f"actor_rollout_ref.model.lora_rank={rank}: must be 0, because evaluation.* asks to evaluate "
                "the final checkpoint, and an evaluation loads no adapter; without evaluation.* compare by validation"
            )
        try:
            preflight.say(preflight.check_settings(cell.config), sys.stdout, about=f"method {cell.method}: ")
        except Exception as error:
            raise ValueError(f"method {cell.method}: {error}") from error
    # It is the same for all: what it takes over from a run belongs to the protocol.
    if grid[0].evaluation is not None:
        _check_evaluation(grid[0])


def _check_evaluation(cell: Cell) -> None:
    """Check settings, data and reward of a run's evaluation, as it will check them itself after hours of training.

    Raises:
        ValueError: something does not fit.
    """
    from aent_verl import preflight
    from aent_verl.evaluation import settings
    from aent_verl.preflight import data, reward
    from aent_verl.preflight.findings import root_cause

    cfg = _compose_evaluation(cell)
    try:
        preflight.say(settings.check(cfg), sys.stdout, about="evaluation: ")
        found = data.read_files(cfg, settings.SHORT_KEYS["data"])
        reward.check(cfg, data.Sample(validation=found.sample))
        preflight.say(preflight.attempt("data", lambda: found.warnings), sys.stdout, about="evaluation: ")
    except Exception as error:
        raise ValueError(f"evaluation: {settings.short_form(str(root_cause(error)))}") from error


def _compose_evaluation(cell: Cell) -> DictConfig:
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from aent_verl.evaluation import settings
    from aent_verl.launch import compose

    overrides = settings.long_form(cell.evaluation_overrides)
    try:
        cfg = compose.compose(overrides, compose.EVALUATION)
    except HydraException as error:
        raise ValueError(f"evaluation: {settings.short_form(first_line(error))}") from error
    trained: Any = OmegaConf.to_container(cell.config, resolve=True)
    settings.inherit(cfg, trained, settings.typed_keys(overrides))
    cfg.actor_rollout_ref.model.path = cell.config.actor_rollout_ref.model.path
    return cfg
