"""Reading blocks of settings: every message names key, value and allowed range; what has no effect warns."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Choice = TypeVar("Choice")


class NoEffectWarning(UserWarning):
    """A setting was given that changes nothing in this combination."""


def no_effect(key: str, value: Any, why: str) -> None:
    """Warn that ``key=value`` changes nothing, and say why."""
    warnings.warn(f"{key}={value!r} has no effect: {why}", NoEffectWarning, stacklevel=3)


def fields(block: Any, key: str, known: tuple[str, ...]) -> dict[str, Any]:
    """``block`` as a dict whose keys are all in ``known``."""
    if not isinstance(block, Mapping):
        raise ValueError(f"{key}={block!r} is not a block of settings; expected the keys {', '.join(known)}")
    unknown = sorted(set(block) - set(known))
    if unknown:
        raise ValueError(f"{key}.{unknown[0]} is not a known key; {key} has: {', '.join(known)}")
    return dict(block)


def choice(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    """``value``, which must be one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{key}={value!r} is not allowed: must be one of {', '.join(allowed)}")
    return str(value)


def boolean(key: str, value: Any) -> bool:
    """``value``, which must be true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{key}={value!r} is not allowed: must be true or false")
    return value


def number(key: str, value: Any, ok: Callable[[float], bool] = lambda _: True, *, allowed: str) -> float:
    """``value`` as a float; ``ok`` says whether a number is inside the range that ``allowed`` describes."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not ok(value):
        raise ValueError(f"{key}={value!r} is not allowed: must be {allowed}")
    return float(value)


def chosen(block: Any, key: str, table: Mapping[str, type[Choice]], *, also: tuple[str, ...] = ()) -> Choice:
    """Build the dataclass that ``block["name"]`` names in ``table`` from the block's other keys.

    A block carries the settings of all choices of its axis, so that each can be overridden; those of the others may be
    present but null. Keys in ``also`` are left for the caller.

    Raises:
        ValueError: unknown name or key, missing value, or a value outside its range; the message names all three.
    """
    every = {setting.name for kind in table.values() for setting in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = fields(block, key, ("name", *sorted(every), *also))
    name = choice(f"{key}.name", values.pop("name", None), tuple(table))
    own = {setting.name: setting for setting in dataclasses.fields(table[name])}  # type: ignore[arg-type]
    given = {setting: value for setting, value in values.items() if value is not None and setting not in also}
    for other in sorted(set(given) - set(own)):
        no_effect(f"{key}.{other}", given.pop(other), f"{key}.name={name} does not use it")
    for setting in own.values():
        if setting.default is dataclasses.MISSING and setting.name not in given:
            raise ValueError(f"{key}.{setting.name}=None is not allowed: {key}.name={name} needs a number")
    try:
        return table[name](**given)
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from None


def name_in(table: Mapping[str, type[Any]], thing: Any) -> str:
    """The name under which the class of ``thing`` stands in ``table``."""
    return next(name for name, kind in table.items() if type(thing) is kind)
