"""What a run's folder was last started with: resuming there with other settings gives a warning."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl._util import atomic_path, first_few
from aent_verl.runs.protocol import flatten
from aent_verl.runs.run import read_yaml

# The composed config of the newest start, without interpolations, in the run's folder.
CONFIG = "config.yaml"
# Where a run's files go and how it is watched, and the copy of our block by interpolation.
_INCIDENTAL = ("run.", "hydra.", "ray_kwargs.", "actor_rollout_ref.actor.entropy_control.")


def changes(cfg: DictConfig) -> list[str]:
    """List ``key=value (was value)`` for each setting that differs from the run's last start, if that is known."""
    try:
        before = _settings(read_yaml(Path(cfg.run.dir) / CONFIG, "remove it", resolve=True))
    except (OSError, ValueError):
        return []
    now = _settings(OmegaConf.to_container(cfg, resolve=True))
    absent = "not set"
    keys = [key for key in now | before if now.get(key, absent) != before.get(key, absent)]
    return [f"{key}={now.get(key, absent)} (was {before.get(key, absent)})" for key in keys]


def warning(cfg: DictConfig) -> str | None:
    """Write one sentence on what `changes` finds; None if it finds nothing."""
    if not (found := changes(cfg)):
        return None
    return (
        f"the run in {cfg.run.dir} was started with other settings; now {first_few(found)}. For a run of its own "
        "give another name, trainer.experiment_name=..."
    )


def write(cfg: DictConfig, folder: Path) -> None:
    """Keep the config of this start; a kill leaves the old file or the new one."""
    with atomic_path(folder / CONFIG) as partial:
        OmegaConf.save(cfg, partial, resolve=True)


def _settings(config: Any) -> dict[str, Any]:
    return {key: value for key, value in flatten(config) if not key.startswith(_INCIDENTAL)}
