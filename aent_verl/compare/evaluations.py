"""The evaluation that a comparison asks for, checked before its first run is trained."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from aent_verl.compare.plan import Cell, first_line

if TYPE_CHECKING:
    from omegaconf import DictConfig


def check(cell: Cell) -> None:
    """Check settings, data and reward of a run's evaluation, as it will check them itself after hours of training.

    Raises:
        ValueError: something does not fit.
    """
    from aent_verl import preflight
    from aent_verl.evaluation import settings
    from aent_verl.preflight import data, reward
    from aent_verl.preflight.errors import root_cause

    cfg = _compose(cell)
    try:
        preflight.say(settings.check(cfg), sys.stdout, about="evaluation: ")
        files, _ = data.check_files(cfg, settings.SHORT_KEYS["data"])
        reward.check(cfg, data.Sample(validation=files))
    except Exception as error:
        raise ValueError(f"evaluation: {settings.short_form(str(root_cause(error)))}") from error


def _compose(cell: Cell) -> DictConfig:
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from aent_verl.evaluation import command, settings

    overrides = settings.long_form(cell.evaluation_overrides)
    try:
        with initialize_config_module("aent_verl._config", version_base="1.3"):
            cfg = compose(command.CONFIG_NAME, overrides=overrides)
    except HydraException as error:
        raise ValueError(f"evaluation: {settings.short_form(first_line(error))}") from error
    trained: Any = OmegaConf.to_container(cell.config, resolve=True)
    settings.inherit(cfg, trained, settings.typed_keys(overrides))
    cfg.actor_rollout_ref.model.path = cell.config.actor_rollout_ref.model.path
    return cfg
