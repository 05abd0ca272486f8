"""Do our settings and verl's pass their own validation, and which of them lose work or have no effect?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.findings import PreflightWarning, at, root_cause

if TYPE_CHECKING:
    from aent_verl.methods.settings import EntropyControlConfig


def check(cfg: DictConfig) -> Iterator[str | Exception]:
    """Build the actor's config as the workers will, and let verl validate the whole.

    Returns:
        What has no effect or loses work, then what is invalid, or a line on the method.
    """
    from aent_verl.methods.parsing import NoEffectWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result: str | Exception = _validate(cfg)
        except Exception as error:
            result = root_cause(error)
    # verl and ours build the actor's config more than once.
    yield from {
        str(item.message): item.message for item in caught if issubclass(item.category, NoEffectWarning)
    }.values()
    yield from _losses(cfg)
    yield result


def control_of(cfg: DictConfig) -> EntropyControlConfig:
    """Build the entropy control that the workers will run.

    Raises:
        ValueError: an invalid setting, or one under which our code would not run.
        PlugInNotActiveError: the config has none.
    """
    from verl.utils.config import omega_conf_to_dataclass

    from aent_verl.plugin.guard import LINE, PlugInNotActiveError, check_config

    actor = omega_conf_to_dataclass(cfg.actor_rollout_ref.actor)
    control: EntropyControlConfig | None = getattr(actor, "entropy_control", None)
    if control is None:
        check_config(cfg)
        raise PlugInNotActiveError(f"this config trains without entropy control; add\n  {LINE}")
    return control


def _validate(cfg: DictConfig) -> str:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    control = control_of(cfg)
    validate_config(config=cfg, use_reference_policy=need_reference_policy(cfg), use_critic=need_critic(cfg))
    return f"method {control.method}, functional {control.functional}, controller {control.bonus.controller}"


def _losses(cfg: DictConfig) -> Iterator[PreflightWarning]:
    """Find settings, including verl's defaults, that lose work."""
    loggers, save = at(cfg, "trainer.logger"), at(cfg, "trainer.save_freq")
    if OmegaConf.select(cfg, "run.progress") and "file" not in loggers.value:
        yield loggers.warning(
            "the progress table and the plot stay empty", f"Set {loggers.key}=[console,file]", "'file' in it"
        )
    if save.value <= 0:
        yield save.warning(
            "saves no checkpoint: a killed run starts over, nothing can be evaluated",
            f"Set {save.key}=20, for example",
        )
