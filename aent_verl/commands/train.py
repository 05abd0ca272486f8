"""``aent-verl train key=value ...``: verl's ``main_ppo`` with entropy control, checked before Ray starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aent_verl import _util

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = """\
usage: aent-verl train [key=value ...]

Train with verl and entropy control. Settings are Hydra overrides; every key of verl's ppo_trainer can be set.

  aent-verl train experiment=cpu_arithmetic                         AEnt on a tiny model, on the CPU
  aent-verl train experiment=cpu_arithmetic entropy_control=grpo    the same without entropy control
  aent-verl train data.train_files=train.parquet data.val_files=test.parquet \\
      actor_rollout_ref.model.path=Qwen/Qwen2.5-1.5B-Instruct ...   your own data and model, on GPUs

Choices: experiment=NAME  platform=cpu
         entropy_control=grpo|entreg|aent|tre|skywork|aer|siren|epo|par_stage|par_epoch|par_entropy|repo_r|
                         steer|entropy_adv|progrpo|clip_cov|kl_cov|clip_higher|linear_decay
         entropy_control/functional=full|clamped|nucleus  entropy_control/controller=constant|band|step_to_target|...
         and the other axes: docs/methods.md has the methods in a table, docs/configuration.md all settings
Show the composed config without running: --cfg job [--resolve]    more of Hydra: --hydra-help
Resume: run the same command again; the controllers continue where they stopped.
"""


def main(overrides: Sequence[str]) -> int:
    """Train, and return the process's exit status. Versions first: without verl Hydra could not compose the config."""
    if list(overrides) in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    _util.require("verl", "aent-verl train")
    from aent_verl.launch import compose

    return compose.run("aent-verl train", overrides, compose.TRAINER, run)


def run(cfg: DictConfig) -> None:
    """Train on the config that Hydra composed from the command line; with a progress display all else is logged."""
    from aent_verl.launch.compose import make_paths_absolute
    from aent_verl.launch.terminal import exit_on_error
    from aent_verl.launch.training import train
    from aent_verl.runs.run import LOG

    make_paths_absolute(cfg)
    if not cfg.run.progress:
        train(cfg, sys.stdout)
        return
    with exit_on_error(Path(cfg.run.dir) / LOG) as terminal:
        train(cfg, terminal)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
