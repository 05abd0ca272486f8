"""From the `entropy_control` block to settings: every error names key, value and allowed range; no effect warns."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from aent_verl._util import number, whole_number
from aent_verl.core.backends import KERNELS, Kernel
from aent_verl.core.controllers import ConstantController, Controller, LinearDecayController
from aent_verl.core.entropy import check_clamp_p, check_top_p
from aent_verl.methods import axes
from aent_verl.methods.settings import (
    ADVANTAGES_CONTROLLERS,
    BONUS_CONTROLLERS,
    FUNCTIONALS,
    NO_SHAPING,
    ROOT,
    AdvantagesConfig,
    BonusConfig,
    EntropyControlConfig,
    FunctionalConfig,
)

Choice = TypeVar("Choice")
LOSS_AGG_MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
# Parameter of a functional -> that functional, the values allowed, what checks them.
PARAMETERS: dict[str, tuple[str, str, Callable[[float], None]]] = {
    "clamp_p": ("clamped", "a number in [0, 1)", check_clamp_p),
    "top_p": ("nucleus", "a number in (0, 1)", check_top_p),
}


class NoEffectWarning(UserWarning):
    """A setting was given that changes nothing in this combination."""


def no_effect(key: str, value: Any, why: str) -> None:
    """Warn that ``key=value`` changes nothing, and say why."""
    warnings.warn(f"{key}={value!r} has no effect: {why}", NoEffectWarning, stacklevel=3)


def parse(block: Any) -> EntropyControlConfig:
    """Build the settings from the `entropy_control` block, any mapping.

    Raises:
        ValueError: a setting that is invalid, or a pair without meaning; names key, value and allowed range.
    """
    known = ("method", "functional", "bonus", "advantages", "kernel", "restart_controller", "token_dump", "host")
    values = _fields(block, ROOT, known)
    kernel = _one_of(f"{ROOT}.kernel", values.get("kernel", "auto"), KERNELS)
    restart = values.get("restart_controller", False)
    if not isinstance(restart, bool):
        raise ValueError(f"{ROOT}.restart_controller={restart!r} is not allowed: must be true or false")
    control = EntropyControlConfig(
        method=str(values.get("method")),
        functional=parse_functional(values.get("functional")),
        bonus=_bonus(values.get("bonus")),
        advantages=_advantages(values.get("advantages", {"name": "none"})),
        kernel=cast(Kernel, kernel),
        restart_controller=restart,
        token_dump=whole_number(f"{ROOT}.token_dump", values.get("token_dump", 0)),
        token_dump_dir=(values.get("host") or {}).get("token_dump_dir"),
    )
    _check_anchored(control)
    _warn_of_bonus_without_effect(control.bonus)
    for axis, controller in control.controllers.items():
        _warn_if_it_never_moves(controller, f"{ROOT}.{axis}.controller")
    return control


def parse_functional(block: Any) -> FunctionalConfig:
    """Build from the block `entropy_control.functional`; ``ValueError`` names key, value and allowed range."""
    key = f"{ROOT}.functional"
    values = _fields(block, key, ("name", *PARAMETERS, "arguments"))
    name, arguments = str(values.get("name")), values.get("arguments") or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{key}.arguments={arguments!r} is not a block of keyword arguments, such as {{q: 2.0}}")
    own: dict[str, Any] = {}
    for setting, (of, allowed, check) in PARAMETERS.items():
        value = values.get(setting)
        if of == name:
            own[setting] = number(f"{key}.{setting}", value, allowed=allowed)
            try:
                check(own[setting])
            except ValueError as error:
                raise ValueError(f"{key}.{error}") from None
        elif value is not None:
            no_effect(f"{key}.{setting}", value, f"{key}.name={name} does not use it")
    if ":" in name:
        custom = FunctionalConfig(name, given=tuple(sorted(dict(arguments).items())))
        # Whether it can be imported is to be known now, not in the workers.
        assert custom.function is not None
        return custom
    _one_of(f"{key}.name", name, (*FUNCTIONALS, "a function's package.module:name"))
    if arguments:
        no_effect(f"{key}.arguments", dict(arguments), f"{key}.name={name} takes none")
    return FunctionalConfig(name, **own)


def _bonus(block: Any) -> BonusConfig:
    key, parts = f"{ROOT}.bonus", ("token_mask", "sample_weight", "loss_agg_mode", "controller")
    form = _chosen(block, key, axes.BONUSES, also=parts)
    mode, weight = block.get("loss_agg_mode"), block.get("sample_weight", {"name": "uniform"})
    return BonusConfig(
        form=form,
        controller=_chosen(block.get("controller"), f"{key}.controller", BONUS_CONTROLLERS),
        token_mask=_chosen(block.get("token_mask", {"name": "all"}), f"{key}.token_mask", axes.TOKEN_MASKS),
        sample_weight=_chosen(weight, f"{key}.sample_weight", axes.SAMPLE_WEIGHTS),
        loss_agg_mode=mode and _one_of(f"{key}.loss_agg_mode", mode, LOSS_AGG_MODES),
    )


def _advantages(block: Any) -> AdvantagesConfig:
    key = f"{ROOT}.advantages"
    shaping = _chosen(block, key, axes.ADVANTAGES, also=("controller",))
    given = block.get("controller") or {"name": "constant", "init": 1.0}
    controller = _chosen(given, f"{key}.controller", ADVANTAGES_CONTROLLERS)
    if not shaping.has_coefficient and controller != NO_SHAPING:
        no_effect(f"{key}.controller", str(controller), f"{key}.name={block['name']} has no coefficient")
        controller = NO_SHAPING
    if shaping.has_coefficient and controller == NO_SHAPING:
        no_effect(f"{key}.name", block["name"], f"{key}.controller keeps its coefficient at 1")
    for bound in ("init", "final", "min", "max"):
        value = getattr(controller, bound, 0.0)
        if not 0 <= value <= 1:
            raise ValueError(
                f"{key}.controller.{bound}={value!r} is not allowed: must be in [0, 1], it bounds the weight of "
                "positive advantages"
            )
    return AdvantagesConfig(shaping, controller)


def _fields(block: Any, key: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Copy ``block`` to a dict, whose keys must all be in ``known``."""
    if not isinstance(block, Mapping):
        raise ValueError(f"{key}={block!r} is not a block of settings; expected the keys {', '.join(known)}")
    unknown = sorted(set(block) - set(known))
    if unknown:
        raise ValueError(f"{key}.{unknown[0]} is not a known key; {key} has: {', '.join(known)}")
    return dict(block)


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{key}={value!r} is not allowed: must be one of {', '.join(allowed)}")
    return str(value)


def _chosen(block: Any, key: str, table: Mapping[str, type[Choice]], *, also: tuple[str, ...] = ()) -> Choice:
    """Build the dataclass that ``block["name"]`` names in ``table`` from the block's other keys.

    A block carries the settings of all choices of its axis, so that each can be overridden; those of the others may be
    present but null. Keys in ``also`` are left for the caller.
    """
    fields = {name: dataclasses.fields(cast(Any, kind)) for name, kind in table.items()}
    every = sorted({setting.name for settings in fields.values() for setting in settings})
    values = _fields(block, key, ("name", *every, *also))
    name = _one_of(f"{key}.name", values.pop("name", None), tuple(table))
    given = {setting: value for setting, value in values.items() if value is not None and setting not in also}
    for other in sorted(set(given) - {setting.name for setting in fields[name]}):
        no_effect(f"{key}.{other}", given.pop(other), f"{key}.name={name} does not use it")
    for setting in fields[name]:
        if setting.default is dataclasses.MISSING and setting.name not in given:
            raise ValueError(f"{key}.{setting.name}=None is not allowed: {key}.name={name} needs a number")
    try:
        return table[name](**given)
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from None


def _check_anchored(control: EntropyControlConfig) -> None:
    bonus = control.bonus
    if bonus.form.anchored and not isinstance(bonus.controller, ConstantController | LinearDecayController):
        raise ValueError(
            f"{ROOT}.bonus.controller.name={control.controller_names['bonus']} is not allowed with "
            f"{ROOT}.bonus.name=anchored: a controller that measures the entropy takes a larger coefficient to mean "
            "more entropy, and an anchored bonus pulls down as well as up; "
            f"use {ROOT}/controller=constant or linear_decay"
        )


def _warn_of_bonus_without_effect(bonus: BonusConfig) -> None:
    key, controller = f"{ROOT}.bonus", bonus.controller
    if isinstance(controller, LinearDecayController) and controller.init == controller.final:
        no_effect(f"{key}.controller.final", controller.final, f"{key}.controller.init is the same")
    stays_zero = getattr(controller, "min", None) == getattr(controller, "max", None) == 0
    if controller not in (ConstantController(init=0.0), LinearDecayController(init=0.0, final=0.0)) and not stays_zero:
        return
    why = f"{key}.controller keeps the coefficient at 0, which adds no bonus to the loss"
    plain = BonusConfig(axes.Linear(), controller)
    for name in ("form", "token_mask", "sample_weight", "loss_agg_mode"):
        if (value := getattr(bonus, name)) != getattr(plain, name):
            no_effect(f"{key}.{'name' if name == 'form' else name}", str(value), why)


def _warn_if_it_never_moves(controller: Controller, key: str) -> None:
    """Warn of a controller that measures the entropy and has no room, or no step, to react."""
    for name in ("lr", "step_size", "eta"):
        if getattr(controller, name, None) == 0:
            no_effect(f"{key}.{name}", 0.0, "the coefficient never moves; entropy_control/controller=constant says so")
    low, high = (getattr(controller, end, None) for end in ("min", "max"))
    if low is not None and low == high:
        no_effect(f"{key}.max", high, f"{key}.min is the same, and the coefficient never moves")
