"""The `entropy_control` block as typed, validated objects, and the actor config that carries it to the workers."""

import dataclasses
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from verl.workers.config import FSDPActorConfig

from aent_verl.core.backends import KERNELS, Kernel
from aent_verl.core.controllers import BandController, ConstantController, Controller
from aent_verl.core.entropy import check_clamp_p

ROOT = "entropy_control"
TRAINER_MODES = ("aent_sync",)
STRATEGIES = ("fsdp", "fsdp2")
CONTROLLERS: dict[str, type[Controller]] = {"constant": ConstantController, "band": BandController}


class NoEffectWarning(UserWarning):
    """A setting was given that changes nothing in this combination."""


def no_effect(key: str, value: Any, why: str) -> None:
    """Warn that ``key=value`` changes nothing, and say why."""
    warnings.warn(f"{key}={value!r} has no effect: {why}", NoEffectWarning, stacklevel=3)


def _fields(block: Any, key: str, known: tuple[str, ...]) -> dict[str, Any]:
    """``block`` as a dict whose keys are all in ``known``."""
    if not isinstance(block, Mapping):
        raise ValueError(f"{key}={block!r} is not a block of settings; expected the keys {', '.join(known)}")
    unknown = sorted(set(block) - set(known))
    if unknown:
        raise ValueError(f"{key}.{unknown[0]} is not a known key; {key} has: {', '.join(known)}")
    return dict(block)


def _choice(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{key}={value!r} is not allowed: must be one of {', '.join(allowed)}")
    return str(value)


@dataclass(frozen=True)
class FunctionalConfig:
    """Which entropy of a next-token distribution: ``full``, or ``clamped`` with the share ``clamp_p`` removed."""

    name: str
    clamp_p: float | None = None

    @classmethod
    def parse(cls, block: Any, key: str) -> "FunctionalConfig":
        """Build from the block at ``key``; ``ValueError`` names key, value and allowed range."""
        values = _fields(block, key, ("name", "clamp_p"))
        name = _choice(f"{key}.name", values.get("name"), ("full", "clamped"))
        clamp_p = values.get("clamp_p")
        if name == "full":
            if clamp_p is not None:
                no_effect(f"{key}.clamp_p", clamp_p, f"{key}.name=full removes no token")
            return cls(name)
        if not isinstance(clamp_p, int | float) or isinstance(clamp_p, bool):
            raise ValueError(f"{key}.clamp_p={clamp_p!r} is not allowed: must be a number in [0, 1)")
        try:
            check_clamp_p(clamp_p)
        except ValueError as error:
            raise ValueError(f"{key}.{error}") from None
        return cls(name, float(clamp_p))

    def arguments(self) -> dict[str, Any]:
        """How `core.fused` is asked for it."""
        return {"functional": self.name, "clamp_p": self.clamp_p}

    def __str__(self) -> str:
        return self.name if self.clamp_p is None else f"{self.name}(clamp_p={self.clamp_p:g})"


def parse_controller(block: Any, key: str) -> Controller:
    """Build a controller from ``{name: band, init: ...}``; the keys of other controllers may be present but null.

    Raises:
        ValueError: unknown name or key, missing value, or a value outside its range; the message names all three.
    """
    every = {setting.name for kind in CONTROLLERS.values() for setting in dataclasses.fields(kind)}
    values = _fields(block, key, ("name", *sorted(every)))
    name = _choice(f"{key}.name", values.pop("name", None), tuple(CONTROLLERS))
    own = {setting.name: setting for setting in dataclasses.fields(CONTROLLERS[name])}
    given = {setting: value for setting, value in values.items() if value is not None}
    for other in sorted(set(given) - set(own)):
        no_effect(f"{key}.{other}", given.pop(other), f"{key}.name={name} does not use it")
    for setting in own.values():
        if setting.default is dataclasses.MISSING and setting.name not in given:
            raise ValueError(f"{key}.{setting.name}=None is not allowed: {key}.name={name} needs a number")
    try:
        return CONTROLLERS[name](**given)
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from None


@dataclass(frozen=True)
class EntropyControlConfig:
    """One choice on each axis, and what the run does with it.

    Attributes:
        method: the preset's name, for logs and banner.
        functional: the entropy that is measured, rewarded and handed to the controller.
        bonus: name of the bonus form.
        controller: moves the bonus coefficient.
        kernel: what computes log-probs and entropies: ``auto``, ``triton`` or ``torch``.
        restart_controller: on resume, start the controller afresh instead of reading its saved state.
    """

    method: str
    functional: FunctionalConfig
    bonus: str
    controller: Controller
    kernel: Kernel = "auto"
    restart_controller: bool = False

    @property
    def controller_name(self) -> str:
        """The controller's name in the config and in the state file."""
        return next(name for name, kind in CONTROLLERS.items() if isinstance(self.controller, kind))

    @classmethod
    def parse(cls, block: Any) -> "EntropyControlConfig":
        """Build from the `entropy_control` block (any mapping); ``ValueError`` names key, value and allowed range."""
        values = _fields(block, ROOT, ("method", "functional", "bonus", "kernel", "restart_controller", "host"))
        bonus = _fields(values.get("bonus"), f"{ROOT}.bonus", ("name", "controller"))
        kernel = _choice(f"{ROOT}.kernel", values.get("kernel", "auto"), KERNELS)
        if kernel == "triton" and (values.get("host") or {}).get("device") == "cpu":
            raise ValueError(f"{ROOT}.kernel='triton' is not allowed with trainer.device=cpu: use auto or torch")
        restart = values.get("restart_controller", False)
        if not isinstance(restart, bool):
            raise ValueError(f"{ROOT}.restart_controller={restart!r} is not allowed: must be true or false")
        check_host(values.get("host") or {})
        return cls(
            method=str(values.get("method")),
            functional=FunctionalConfig.parse(values.get("functional"), f"{ROOT}.functional"),
            bonus=_choice(f"{ROOT}.bonus.name", bonus.get("name"), ("linear",)),
            controller=parse_controller(bonus.get("controller"), f"{ROOT}.bonus.controller"),
            kernel=cast(Kernel, kernel),
            restart_controller=restart,
        )


def check_host(host: Mapping[str, Any]) -> None:
    """Refuse verl settings under which our code would not run, and training would go on without entropy control.

    `entropy_control.host` holds copies of those settings, by interpolation, so that this check sees them wherever the
    actor's config is built: in our own entry, in verl's ``main_ppo`` and in the workers.
    """
    if not host.get("use_v1", True):
        raise ValueError("trainer.use_v1=False is not allowed with entropy_control: only verl's v1 trainers run it")
    mode = host.get("trainer_mode")
    if mode not in TRAINER_MODES:
        raise ValueError(
            f"trainer.v1.trainer_mode={mode!r} is not allowed with entropy_control: it would train without it; "
            f"use one of {', '.join(TRAINER_MODES)}"
        )
    if host.get("distillation"):
        raise ValueError("distillation.enabled=True is not allowed with entropy_control: its loss replaces ours")


def _check_actor(settings: Mapping[str, Any], attention: str) -> None:
    """Refuse or warn about actor settings that would bypass, duplicate or ignore entropy control."""
    key = "actor_rollout_ref.actor"
    strategy = settings.get("strategy")
    if strategy not in STRATEGIES:
        raise ValueError(f"{key}.strategy={strategy!r} is not allowed with entropy_control: must be fsdp or fsdp2")
    if settings.get("entropy_coeff", 0) != 0:
        raise ValueError(
            f"{key}.entropy_coeff={settings['entropy_coeff']!r} is not allowed with entropy_control: must be 0; "
            f"set the coefficient with entropy_control=entreg entropy_control.bonus.controller.init=..."
        )
    ulysses = max(
        settings.get("ulysses_sequence_parallel_size", 1),
        (settings.get("fsdp_config") or {}).get("ulysses_sequence_parallel_size", 1),
    )
    flash = importlib.util.find_spec("flash_attn") is not None and attention.startswith("flash")
    if ulysses > 1 and not flash:
        raise ValueError(
            f"{key}.ulysses_sequence_parallel_size={ulysses} is not allowed without flash-attn: verl's sequence "
            f"parallelism computes wrong log-probs with other attention kernels (here {attention!r}); install "
            "flash-attn and use it, or set the size to 1"
        )
    if settings.get("calculate_entropy"):
        no_effect(f"{key}.calculate_entropy", True, "the entropy is measured in every update anyway, as aent/entropy")
    for name in ("entropy_from_logits_with_chunking", "entropy_checkpointing"):
        if settings.get(name) or (settings.get("fsdp_config") or {}).get(name):
            no_effect(f"{key}.{name}", True, "log-probs and entropy come from one op that always works in chunks")


@dataclass
class EntropyControlActorConfig(FSDPActorConfig):
    """verl's FSDP actor config with the parsed `entropy_control` block."""

    entropy_control: EntropyControlConfig | None = field(default=None)


def actor_config(*, entropy_control: Any, **settings: Any) -> EntropyControlActorConfig:
    """Hydra target of ``actor_rollout_ref.actor``: check, parse, and build the actor config.

    Raises:
        ValueError: a setting that is illegal, or under which our code would not run.
    """
    host = entropy_control.get("host") or {}
    _check_actor(settings, attention=str(host.get("attention", "flash_attention_2")))
    return EntropyControlActorConfig(entropy_control=EntropyControlConfig.parse(entropy_control), **settings)
