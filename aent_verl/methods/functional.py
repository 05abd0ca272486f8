"""Which entropy of a next-token distribution: one of ours, or a function of yours by its import path."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from aent_verl.core.custom import Functional
from aent_verl.core.entropy import check_clamp_p, check_top_p
from aent_verl.methods import blocks

NAMES = ("full", "clamped", "nucleus")
# Parameter -> the functional that it belongs to, the values allowed, what checks them.
PARAMETERS: dict[str, tuple[str, str, Callable[[float], None]]] = {
    "clamp_p": ("clamped", "a number in [0, 1)", check_clamp_p),
    "top_p": ("nucleus", "a number in (0, 1)", check_top_p),
}


@dataclass(frozen=True)
class FunctionalConfig:
    """``full``; ``clamped`` without the share ``clamp_p`` of lowest logits; ``nucleus`` of mass ``top_p``.

    Any other ``name`` is a path ``package.module:function`` to a differentiable function of logits ``[N, V] -> [N]``,
    called with ``given`` as keyword arguments.
    """

    name: str
    clamp_p: float | None = None
    top_p: float | None = None
    given: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, block: Any, key: str) -> "FunctionalConfig":
        """Build from the block at ``key``; ``ValueError`` names key, value and allowed range."""
        values = blocks.fields(block, key, ("name", *PARAMETERS, "arguments"))
        name, arguments = str(values.get("name")), values.get("arguments") or {}
        if not isinstance(arguments, Mapping):
            raise ValueError(f"{key}.arguments={arguments!r} is not a block of keyword arguments, such as {{q: 2.0}}")
        own: dict[str, Any] = {}
        for setting, (of, allowed, check) in PARAMETERS.items():
            value = values.get(setting)
            if of != name:
                if value is not None:
                    blocks.no_effect(f"{key}.{setting}", value, f"{key}.name={name} does not use it")
                continue
            own[setting] = blocks.number(f"{key}.{setting}", value, allowed=allowed)
            try:
                check(own[setting])
            except ValueError as error:
                raise ValueError(f"{key}.{error}") from None
        if ":" in name:
            own["given"] = tuple(sorted(dict(arguments).items()))
            _function(name, dict(arguments), key)
        else:
            blocks.choice(f"{key}.name", name, (*NAMES, "a function's package.module:name"))
            if arguments:
                blocks.no_effect(f"{key}.arguments", dict(arguments), f"{key}.name={name} takes none")
        return cls(name, **own)

    @property
    def function(self) -> Functional | None:
        """The function of yours with its arguments, or None for one of ours."""
        return _function(self.name, dict(self.given), "entropy_control.functional") if ":" in self.name else None

    def arguments(self) -> dict[str, Any]:
        """How `core.fused` is asked for one of ours."""
        return {"functional": self.name, "clamp_p": self.clamp_p, "top_p": self.top_p}

    def __str__(self) -> str:
        own = {key: value for key in PARAMETERS if (value := getattr(self, key)) is not None}
        given = [f"{key}={value:g}" for key, value in own.items()] + [f"{key}={value}" for key, value in self.given]
        return f"{self.name}({', '.join(given)})" if given else self.name


def _function(path: str, arguments: Mapping[str, Any], key: str) -> Callable[[Tensor], Tensor]:
    """The function at ``package.module:function`` with its keyword arguments.

    Raises:
        ValueError: it cannot be imported, is no function, or does not take these arguments.
    """
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
        inspect.signature(function).bind(None, **arguments)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{key}.name={path!r} is not allowed with arguments {dict(arguments)}: {error}; it must be the path "
            "package.module:function of a function of logits [N, V], importable on every node"
        ) from None
    return partial(function, **arguments)
