"""From the `entropy_control` block to settings: every error names key, value and allowed range; no effect warns."""

import dataclasses
import importlib
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

from aent_verl._util import number, whole_number
from aent_verl.core.backends import KERNELS, Kernel
from aent_verl.core.controllers import ConstantController, Controller, LinearDecayController, Schedule
from aent_verl.core.controllers.state import field_types, is_finite, is_whole
from aent_verl.core.entropy import check_clamp_p, check_top_p
from aent_verl.methods import axes
from aent_verl.methods.rewards import RewardShaping
from aent_verl.methods.settings import (
    CHOICES,
    FUNCTIONALS,
    NO_SHAPING,
    ROOT,
    AdvantagesConfig,
    BonusConfig,
    EntropyControlConfig,
    FunctionalConfig,
    name_in,
)

# What a setting of a choice must be, by its annotation, where that says it all; a choice checks the range.
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    float: ("a number", is_finite),
    int: ("a whole number", is_whole),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
}
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
    known = (
        "method",
        "functional",
        "bonus",
        "advantages",
        "rewards",
        "kernel",
        "restart_controller",
        "live_changes",
        "token_dump",
        "host",
    )
    values = _fields(block, ROOT, known)
    kernel = _one_of(f"{ROOT}.kernel", values.get("kernel", "auto"), KERNELS)
    switches = {"restart_controller": False, "live_changes": True}
    for key, default in switches.items():
        switches[key] = values.get(key, default)
        if not isinstance(switches[key], bool):
            raise ValueError(f"{ROOT}.{key}={switches[key]!r} is not allowed: must be true or false")
    control = EntropyControlConfig(
        method=str(values.get("method")),
        functional=parse_functional(values.get("functional")),
        bonus=_bonus(values.get("bonus")),
        advantages=_advantages(values.get("advantages", {"name": "none"})),
        rewards=_chosen(values.get("rewards") or {"name": "none"}, f"{ROOT}.rewards"),
        kernel=cast(Kernel, kernel),
        **switches,
        token_dump=whole_number(f"{ROOT}.token_dump", values.get("token_dump", 0)),
        token_dump_dir=(values.get("host") or {}).get("token_dump_dir"),
    )
    _check_anchored(control)
    _warn_of_bonus_without_effect(control.bonus)
    for axis, controller in control.controllers.items():
        _warn_if_it_never_moves(controller, f"{ROOT}.{axis}.controller")
        if controller.knows_its_run:
            _check_state(controller, f"{ROOT}.{axis}.controller.name", control.controller_names[axis])
    _check_state(control.rewards, f"{ROOT}.rewards.name", control.rewards_name)
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
        custom.arguments()  # raises now, not in the workers, if it cannot be imported
        return custom
    _one_of(f"{key}.name", name, (*FUNCTIONALS, "the package.module:name of another"))
    if arguments:
        no_effect(f"{key}.arguments", dict(arguments), f"{key}.name={name} takes none")
    return FunctionalConfig(name, **own)


def _bonus(block: Any) -> BonusConfig:
    key, parts = f"{ROOT}.bonus", ("token_mask", "sample_weight", "loss_agg_mode", "controller")
    form = _chosen(block, key, also=parts)
    mode = block.get("loss_agg_mode")
    mask, weight = block.get("token_mask", {"name": "all"}), block.get("sample_weight", {"name": "uniform"})
    return BonusConfig(
        form=form,
        controller=_chosen(block.get("controller"), f"{key}.controller"),
        token_mask=_chosen(mask, f"{key}.token_mask"),
        sample_weight=_chosen(weight, f"{key}.sample_weight"),
        loss_agg_mode=mode and _one_of(f"{key}.loss_agg_mode", mode, LOSS_AGG_MODES),
    )


def _advantages(block: Any) -> AdvantagesConfig:
    key = f"{ROOT}.advantages"
    shaping = _chosen(block, key, also=("controller",))
    given = block.get("controller") or {"name": "constant", "init": 1.0}
    controller = _chosen(given, f"{key}.controller")
    if not shaping.has_coefficient and controller != NO_SHAPING:
        no_effect(f"{key}.controller", str(controller), f"{key}.name={block['name']} has no coefficient")
        controller = NO_SHAPING
    neutral = shaping.neutral_coefficient
    if neutral is not None and controller == ConstantController(init=neutral):
        no_effect(f"{key}.name", block["name"], f"{key}.controller keeps its coefficient at {neutral:g}")
    _check_range(controller, shaping)
    return AdvantagesConfig(shaping, controller)


def controller_with(
    settings: Mapping[str, Any], control: EntropyControlConfig, axis: str, controller: Controller
) -> Controller:
    """Build the controller of ``axis`` anew with some of its settings changed, under the checks of the config.

    Raises:
        ValueError: a setting that the config could not have either; names key, value and allowed range.
    """
    key = f"{ROOT}.{axis}.controller"
    changed: Controller = _chosen({"name": control.controller_names[axis], **vars(controller), **settings}, key)
    if axis == "advantages":
        _check_range(changed, control.advantages.shaping)
    _warn_if_it_never_moves(changed, key)
    return changed


def _check_range(controller: Controller, shaping: axes.Shaping) -> None:
    low, high = shaping.coefficient_range
    for bound in ("init", "final", "min", "max"):
        value = getattr(controller, bound, low)
        if not low <= value <= high:
            raise ValueError(
                f"{ROOT}.advantages.controller.{bound}={value!r} is not allowed: must be in [{low:g}, {high:g}], the "
                f"range of the coefficient of {ROOT}.advantages.name={name_in(axes.ADVANTAGES, shaping)}"
            )


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


def _chosen(block: Any, key: str, *, also: tuple[str, ...] = ()) -> Any:
    """Build the dataclass that ``block["name"]`` names, among `CHOICES` or by its path, from the block's other keys.

    A block may hold settings of other choices of its axis, so that presets can be combined: those that are not null are
    named as without effect. Keys in ``also`` are left for the caller.
    """
    settings = {field.name for kind in CHOICES[key][0].values() for field in dataclasses.fields(kind)}
    if not isinstance(block, Mapping):
        _fields(block, key, ("name", *sorted(settings), *also))  # raises
    name = block.get("name")
    kind = class_named(key, name)
    own = {field.name: field for field in dataclasses.fields(kind)}
    values = _fields(block, key, ("name", *sorted(settings | set(own)), *also))
    given = {
        setting: value for setting, value in values.items() if value is not None and setting not in ("name", *also)
    }
    for other in sorted(set(given) - set(own)):
        no_effect(f"{key}.{other}", given.pop(other), f"{key}.name={name} does not use it")
    types, wrong = field_types(kind), None
    for setting, field in own.items():
        wanted, is_one = _KINDS.get(types[setting], ("a value", lambda _: True))
        if setting in given and not is_one(given[setting]):
            wrong = wrong or f"{key}.{setting}={given[setting]!r} is not allowed: must be {wanted}"
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and setting not in given:
            raise ValueError(f"{key}.{setting}=None is not allowed: {key}.name={name} needs {wanted}")
    try:
        choice = kind(**given)
    except ValueError as error:  # the class knows the range as well
        raise ValueError(f"{key}.{error}") from None
    except TypeError as error:
        raise ValueError(wrong or f"{key}: {error}") from None
    if wrong:
        raise ValueError(wrong)
    return choice


def class_named(block: str, path: Any) -> type[Any]:
    """Find the class that a block of `CHOICES` names, or import it by its path ``package.module:Class``.

    Raises:
        ValueError: there is none, or it cannot stand on this axis; names key, value and what is allowed.
    """
    (table, interface), key = CHOICES[block], f"{block}.name"
    if ":" not in str(path):
        return table[_one_of(key, path, (*table, "the package.module:Class of another"))]
    module, _, name = str(path).partition(":")
    must = f"it must be the path package.module:Class of a frozen dataclass derived from {interface.__name__}"
    try:
        kind = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may fail in any way
        raise ValueError(
            f"{key}={path!r} is not allowed: {type(error).__name__}: {error}; {must}, importable on every node"
        ) from error
    parameters = getattr(kind, "__dataclass_params__", None)
    if not (isinstance(kind, type) and issubclass(kind, interface) and parameters and parameters.frozen):
        raise ValueError(f"{key}={path!r} is not allowed: {must} (in {interface.__module__})")
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise ValueError(f"{key}={path!r} is not allowed: it does not define {', '.join(missing)}; {must}")
    return kind


def _check_state(choice: Controller | RewardShaping, key: str, name: str) -> None:
    """Check of a class from elsewhere, before anything is trained, that its state can be saved and read back."""
    if ":" not in name:
        return
    state, kind = choice.initial_state(), choice.state_class
    try:
        same = type(state) is kind and kind.from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False))) == state
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{key}={name!r} is not allowed: its state {state} is not JSON, as a checkpoint needs: {error}"
        ) from None
    if not same:
        raise ValueError(
            f"{key}={name!r} is not allowed: its state {state} does not come back from JSON as the same; initial_state "
            f"must return state_class, {kind.__qualname__}, whose fields are numbers, text, true, false, null or lists"
        )


def _check_anchored(control: EntropyControlConfig) -> None:
    bonus = control.bonus
    if bonus.form.anchored and not isinstance(bonus.controller, Schedule):
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
