"""Composing our configurations as the commands do."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import TextIO

import hydra
from omegaconf import DictConfig

from aent_verl.methods import presets

MODULE = "aent_verl._config"
TRAINER, EVALUATION = "aent_trainer", "aent_evaluate"


def compose(overrides: Sequence[str], name: str = TRAINER, source: str = MODULE) -> DictConfig:
    """Compose the configuration ``name`` of a module, or of an absolute folder, with Hydra overrides.

    Raises:
        HydraException: something does not compose.
        ValueError: two packages announce a preset of one name.
    """
    presets.packages()
    initialize = hydra.initialize_config_dir if os.path.isabs(source) else hydra.initialize_config_module
    with initialize(source, version_base="1.3"):
        return hydra.compose(name, overrides=list(overrides))


def run(command: str, overrides: Sequence[str], name: str, function: Callable[[DictConfig], None]) -> int:
    """Call a command's function with the configuration ``name`` and its overrides, Hydra's own flags included.

    Returns:
        The process's exit status: 1 if this installation does not fit, which is said.
    """
    from aent_verl.plugin import guard
    from aent_verl.verl_api import versions

    # Before anything of verl is imported.
    try:
        guard.refuse_if_disabled()
        versions.check_versions()
        presets.packages()  # where Hydra composes, its error would have no text
    except (guard.PlugInNotActiveError, versions.VersionError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # Hydra reads the command line itself.
    sys.argv = [command, *overrides]
    hydra.main(version_base="1.3", config_path=f"pkg://{MODULE}", config_name=name)(function)()
    return 0


def make_paths_absolute(cfg: DictConfig) -> None:
    """Resolve the run's folders here: Ray's workers may have another working directory."""
    for block, name in ((cfg.run, "dir"), (cfg.run.task, "cache"), (cfg.trainer, "resume_from_path")):
        if block is not None and block.get(name) is not None:
            block[name] = os.path.abspath(block[name])


def prepare_task(cfg: DictConfig, terminal: TextIO) -> None:
    """Build the run's data and model if its experiment says how and they are not there yet."""
    if cfg.run.task is not None:
        with redirect_stdout(terminal):
            hydra.utils.instantiate(cfg.run.task)
