"""Never silently off: whoever asks for entropy control gets our trainer, or the run stops and says what to type.

Two sides watch each other. verl's trainers ask `check_config` before they are built, so that an ``entropy_control``
that never became our block stops a run which would train without it. Our plug-in installs that side, which cannot
notice its own absence: so the actor's config asks `require`, which stops a process in which the plug-in is not active.
"""

import difflib
import functools
import importlib
import importlib.resources
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl._util import DISABLE_ENV, is_disabled

logger = logging.getLogger(__name__)

BLOCK = "entropy_control"
PLUGIN = "aent_verl.plugin.entry_point"
LINE = "hydra.searchpath=[pkg://aent_verl._config] +entropy_control=aent"
# Top-level blocks that Hydra's composing and our commands add to verl's.
OWN_BLOCKS = ("run", "recommended", "evaluation", "model_engine", "hydra")
# Every trainer of verl's starts in one of these constructors, whose argument `config` is the whole config.
TRAINERS = {"verl.trainer.ppo.v1.trainer_base": "PPOTrainer", "verl.trainer.ppo.ray_trainer": "RayPPOTrainer"}


class PlugInNotActiveError(RuntimeError):
    """Our code would not run, or did not; to continue would train without entropy control."""


def install() -> None:
    """Have verl's trainers ask `check_config` as soon as they are imported; may be called again."""
    import wrapt

    for module in TRAINERS:
        wrapt.register_post_import_hook(_watch, module)


def refuse_if_disabled() -> None:
    """Stop a command of ours in an environment that switches aent_verl off.

    Raises:
        PlugInNotActiveError: names the variable.
    """
    if is_disabled():
        raise PlugInNotActiveError(
            f"{DISABLE_ENV}={os.environ[DISABLE_ENV]} switches aent_verl off, and {BLOCK} asks for it: unset "
            f"{DISABLE_ENV}, or train without aent_verl: python -m verl.trainer.main_ppo without {BLOCK}"
        )


def require() -> None:
    """Stop unless our plug-in is active in this process.

    Raises:
        PlugInNotActiveError: it is switched off, verl did not load it, or it failed; the message says which.
    """
    refuse_if_disabled()
    if PLUGIN in sys.modules:
        return
    try:
        # verl logs the failure of a plug-in at DEBUG only: here it is raised.
        importlib.import_module(PLUGIN)
    except Exception as error:
        raise PlugInNotActiveError(
            f"aent_verl's plug-in cannot be loaded ({type(error).__name__}: {error}): fix that, or install aent_verl "
            "again with what it needs"
        ) from error
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS")
    if policy is not None and "aent_verl" not in policy and policy.strip().lower() != "auto":
        cure = f"VERL_USE_EXTERNAL_PLUGINS={policy!r} leaves it out: add aent_verl to it"
    else:
        cure = f"install aent_verl in this environment, or set VERL_USE_EXTERNAL_MODULES={PLUGIN}"
    raise PlugInNotActiveError(f"verl has not loaded aent_verl's plug-in in this process; {cure}")


def check_config(config: Any, *, ours: bool = False) -> None:
    """Stop a trainer that is not ours where the config asks for entropy control, and name blocks that nothing reads.

    Args:
        config: verl's whole config.
        ours: whether the trainer is ours.

    Raises:
        PlugInNotActiveError: with the key, its value, and the line to type.
    """
    if not isinstance(config, Mapping | DictConfig):
        return
    for key in map(str, config):
        if key == BLOCK:
            if not ours:
                raise PlugInNotActiveError(_not_ours(config[key], config))
        elif difflib.get_close_matches(key, [BLOCK], cutoff=0.8):
            effect = "" if ours else ", and the run would train without entropy control"
            raise PlugInNotActiveError(
                f"{key}={config[key]!s:.60}: nothing reads it{effect}; did you mean {BLOCK}? Type\n  {LINE}\n"
                "or leave it out"
            )
        elif key not in OWN_BLOCKS and key not in _verls_blocks():
            logger.warning("%s=%s: nothing in verl or aent_verl reads this block", key, f"{config[key]!s:.60}")


@functools.cache
def _verls_blocks() -> frozenset[str]:
    """Return the top-level blocks of verl's config."""
    file = importlib.resources.files("verl.trainer.config") / "_generated_ppo_trainer.yaml"
    return frozenset(map(str, OmegaConf.create(file.read_text(encoding="utf-8"))))


def _not_ours(value: Any, config: Any) -> str:
    if isinstance(value, Mapping | DictConfig) and "method" in value:
        mode = config.trainer.get("v1", {}).get("trainer_mode")
        return (
            f"{BLOCK}={value.get('method')} is set, and trainer.v1.trainer_mode={mode!r} would train without it: leave "
            "trainer.v1.trainer_mode to the preset, which sets aent_sync, and trainer.use_v1 at true"
        )
    word = isinstance(value, str)
    what = "is a bare word and not a method's settings" if word else "names no method"
    line = LINE.replace("=aent", f"={value}") if word else LINE
    return (
        f"{BLOCK}={value!s:.60} {what}, because Hydra has not found our configuration or was given no preset: the "
        f"run would train without entropy control. Type\n  {line}\nand compare the search path letter by letter; or "
        "leave the key out"
    )


def _watch(module: Any) -> None:
    """Put `check_config` in front of the constructor of the module's trainer, once."""
    import wrapt

    trainer = getattr(module, TRAINERS[module.__name__])
    if isinstance(trainer.__dict__["__init__"], wrapt.FunctionWrapper):
        return
    wrapt.wrap_function_wrapper(trainer, "__init__", _ask_first)
    logger.info("%s.%s asks aent_verl whether its config wants entropy control", module.__name__, trainer.__name__)


def _ask_first(build: Any, trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    config = kwargs.get("config", args[0] if args else None)
    check_config(config, ours=hasattr(trainer, "use_entropy_control"))
    build(*args, **kwargs)
