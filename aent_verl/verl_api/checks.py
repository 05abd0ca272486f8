"""Assumptions about another package's API as small objects that can be checked, one by one."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

# A piece of source code, or the forms that it has in different versions of verl, of which one has to be there.
Fragment = str | tuple[str, ...]


@dataclass(frozen=True)
class Assumption:
    """Something about verl that our code relies on.

    Attributes:
        what: the assumption, in words that hold when it holds.
        check: returns None if it holds, else what was found instead; any exception counts as a violation too.
        why: what of ours breaks without it.
    """

    what: str
    check: Callable[[], str | None]
    why: str

    def found_instead(self) -> str | None:
        """Return None if the assumption holds, else what was found, an error included."""
        try:
            return self.check()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def violation(self) -> str | None:
        """Return None, or one line for the user."""
        found = self.found_instead()
        return None if found is None else f"expected: {self.what}; found: {found}; needed because {self.why}"


def resolve(target: str) -> Any:
    """Import the object at ``package.module:Class.attribute``, or at ``package.module:REGISTRY.name``."""
    module, _, path = target.partition(":")
    found = importlib.import_module(module)
    for name in path.split(".") if path else ():
        found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    return found


def overridden(target: str, parameters: str, *fragments: Fragment, why: str) -> Assumption:
    """Assume that a method of verl's that we override has exactly these parameters, or ours would not fit in its place.

    Args:
        target: the method.
        parameters: their names, separated by blanks.
        fragments: what its source does, as for `in_source`.
        why: what of ours breaks otherwise.
    """
    signature = f"({', '.join(parameters.split())})"

    def check() -> str | None:
        found = f"({', '.join(inspect.signature(resolve(target)).parameters)})"
        return found if found != signature else _missing(target, fragments)

    return Assumption(f"{target}{signature}" + (f" does {_all(fragments)}" if fragments else ""), check, why)


def called(target: str, parameters: str, *, why: str) -> Assumption:
    """Assume that a function that we call has these parameters, separated by blanks, and needs no other."""
    given = parameters.split()

    def check() -> str | None:
        signature = inspect.signature(resolve(target))
        there = signature.parameters.values()
        catches_all = any(p.kind is p.VAR_KEYWORD for p in there)
        fits = catches_all or set(given) <= set(signature.parameters)
        needed = {p.name for p in there if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        return None if fits and needed <= {*given, "self"} else f"{signature}"

    return Assumption(f"{target} can be called with ({', '.join(given)})", check, why)


def has_fields(target: str, names: str, *, why: str) -> Assumption:
    """Assume that a dataclass of verl's has these fields, separated by blanks."""

    def check() -> str | None:
        present = {field.name for field in fields(resolve(target))}
        missing = [name for name in names.split() if name not in present]
        return f"no {', '.join(missing)}" if missing else None

    return Assumption(f"dataclass {target} has {', '.join(names.split())}", check, why)


def leads_to(target: str, expected: str, *, why: str) -> Assumption:
    """An attribute, or the entry of a registry, is the object at another place."""

    def check() -> str | None:
        found = resolve(target)
        return None if found is resolve(expected) else repr(found)

    return Assumption(f"{target} is {expected}", check, why)


def in_source(target: str, *fragments: Fragment, why: str) -> Assumption:
    """Assume that a function's source holds these fragments in this order; blanks and line ends do not count."""
    return Assumption(f"{target} does {_all(fragments)}", lambda: _missing(target, fragments), why)


def _missing(target: str, fragments: tuple[Fragment, ...]) -> str | None:
    text = _without_blanks(inspect.getsource(resolve(target))) if fragments else ""
    position = 0
    for fragment in fragments:
        wanted = [_without_blanks(form) for form in _forms(fragment)]
        places = [(place, len(form)) for form in wanted if (place := text.find(form, position)) >= 0]
        if not places:
            elsewhere = any(form in text for form in wanted)
            return f"no {' or '.join(map(repr, _forms(fragment)))} there" + (" at its place" if elsewhere else "")
        position = sum(min(places))
    return None


def _forms(fragment: Fragment) -> tuple[str, ...]:
    return (fragment,) if isinstance(fragment, str) else fragment


def _all(fragments: tuple[Fragment, ...]) -> str:
    return "; ".join(" or ".join(_forms(fragment)) for fragment in fragments)


def _without_blanks(source: str) -> str:
    return "".join(source.split())
