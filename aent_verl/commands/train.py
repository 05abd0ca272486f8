"""``aent-verl train key=value ...``: verl's ``main_ppo`` with entropy control, checked before Ray starts."""

from __future__ import annotations

import sys
import traceback
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
         entropy_control=grpo|entreg|aent|skywork|aer|siren|epo|par_stage|par_epoch|par_entropy|steer|entropy_adv|
                         progrpo|clip_cov|kl_cov|clip_higher|linear_decay
         entropy_control/functional=full|clamped|nucleus  entropy_control/controller=constant|band|step_to_target|...
         and the other axes: docs/methods.md has the methods in a table, docs/configuration.md all settings
Show the composed config without running: --cfg job [--resolve]    more of Hydra: --hydra-help
Resume: the same command again; the controller goes on where it was.
"""


def main(overrides: Sequence[str]) -> int:
    """Train; returns the process's exit status. Versions first: without verl Hydra could not compose the config."""
    if list(overrides) in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    _util.require("verl", "aent-verl train")
    import hydra

    from aent_verl.launch import compose
    from aent_verl.launch.environment import check_installation

    if (problem := check_installation()) is not None:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    # Hydra reads the command line itself.
    sys.argv = ["aent-verl train", *overrides]
    hydra.main(version_base="1.3", config_path=f"pkg://{compose.MODULE}", config_name=compose.TRAINER)(run)()
    return 0


def run(cfg: DictConfig) -> None:
    """Train on the config that Hydra composed from the command line."""
    from aent_verl.launch.compose import make_paths_absolute
    from aent_verl.launch.terminal import redirected_output
    from aent_verl.launch.training import train
    from aent_verl.preflight.errors import root_cause
    from aent_verl.runs.run import LOG

    make_paths_absolute(cfg)
    if not cfg.run.progress:
        train(cfg, sys.stdout)
        return
    log = Path(cfg.run.dir) / LOG
    try:
        with redirected_output(log) as terminal:
            try:
                train(cfg, terminal)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        cause = root_cause(error)
        print(f"error: {cause}\n({type(cause).__name__}; the full log is {log})", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
