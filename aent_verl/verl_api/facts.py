"""Facts about another package's API as small objects that can be checked, one by one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Fact:
    """Something about verl that our code relies on.

    Attributes:
        what: the fact, in words that hold when it holds.
        check: returns None if it holds, else what was found instead; any exception counts as a violation too.
        why: what of ours breaks without it.
    """

    what: str
    check: Callable[[], str | None]
    why: str

    def violation(self) -> str | None:
        """None, or one line for the user."""
        try:
            found = self.check()
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        return None if found is None else f"expected: {self.what}; found: {found}; needed because {self.why}"


def resolve(target: str) -> Any:
    """The object at ``package.module:Class.attribute``."""
    module, _, path = target.partition(":")
    found = importlib.import_module(module)
    for name in path.split(".") if path else ():
        found = getattr(found, name)
    return found


def overridden(target: str, *parameters: str, why: str) -> Fact:
    """A method of verl's that we override: exactly these parameters, or ours would not fit in its place."""

    def check() -> str | None:
        found = tuple(inspect.signature(resolve(target)).parameters)
        return None if found == parameters else f"({', '.join(found)})"

    return Fact(f"{target}({', '.join(parameters)})", check, why)


def called(target: str, *parameters: str, why: str) -> Fact:
    """A function that we call with these parameters: it must have them, and need no other."""

    def check() -> str | None:
        signature = inspect.signature(resolve(target))
        catches_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        missing = [] if catches_all else [name for name in parameters if name not in signature.parameters]
        unmet = [
            name
            for name, parameter in signature.parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            and name not in (*parameters, "self")
        ]
        return None if not missing and not unmet else f"{signature}"

    return Fact(f"{target} can be called with ({', '.join(parameters)})", check, why)


def has_fields(target: str, *names: str, why: str) -> Fact:
    """A dataclass of verl's has these fields."""

    def check() -> str | None:
        present = {field.name for field in fields(resolve(target))}
        missing = [name for name in names if name not in present]
        return f"no {', '.join(missing)}" if missing else None

    return Fact(f"dataclass {target} has {', '.join(names)}", check, why)


def in_source(target: str, *fragments: str, why: str) -> Fact:
    """The source of a function holds these fragments in this order; blanks and line ends do not count."""

    def check() -> str | None:
        text = "".join(inspect.getsource(resolve(target)).split())
        position = 0
        for fragment in fragments:
            wanted = "".join(fragment.split())
            position = text.find(wanted, position)
            if position < 0:
                return f"no {fragment!r} there" + ("" if wanted not in text else " at its place")
            position += len(wanted)
        return None

    return Fact(f"{target} does {'; '.join(fragments)}", check, why)
