"""What a check came to, for `train`, `doctor`, `compare` and `evaluate` alike, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO

OK, WARNING, FAILED, NOTE = "ok", "warning", "FAILED", "-"
_WORDS = {OK: "checked", WARNING: "warning", FAILED: "failed", NOTE: "note"}


@dataclass(frozen=True)
class Row:
    """One result of a check.

    Attributes:
        check: what was checked.
        state: `OK`, `WARNING`, `FAILED` or `NOTE` for what could not be checked.
        detail: what was found, for people.
        error: what a failed check raised.
        key: the setting that it is about, where it is about one.
    """

    check: str
    state: str
    detail: str
    error: Exception | None = None
    key: str | None = None


class PreflightFailed(ValueError):
    """Several checks failed; the message has them all, a line each."""


def row_of(check: str, found: str | Exception) -> Row:
    """The row for what a check yielded: a line on what holds, a warning, or an error."""
    if isinstance(found, str):
        return Row(check, OK, found)
    if isinstance(found, Warning):
        return Row(check, WARNING, str(found), key=getattr(found, "key", None))
    named = isinstance(found, ValueError) and type(found).__module__.startswith("aent_verl")
    detail = str(found) if named else f"{type(found).__name__}: {found}"
    return Row(check, FAILED, detail, found, key=getattr(found, "key", None))


def attempt(check: str, function: Callable[[], Iterable[str | Exception]]) -> Iterator[Row]:
    """Rows of a check that yields what it finds; what it raises is the last one."""
    try:
        for found in function():
            yield row_of(check, found)
    except Exception as error:
        yield row_of(check, error)


def say(rows: Iterable[Row], terminal: TextIO, *, about: str = "", words: Callable[[str], str] = str) -> None:
    """Print each result as it comes, and stop if one failed.

    Args:
        rows: results.
        terminal: where people look.
        about: put in front of each line, such as the method that is checked.
        words: rewords each line, for a command with keys of its own.

    Raises:
        Exception: what the only failed check raised.
        PreflightFailed: more than one failed.
    """
    failed = []
    for row in rows:
        if row.state == FAILED:
            failed.append(row)
        else:
            print(f"{_WORDS[row.state]}: {about}{words(row.detail)}", file=terminal)
    if len(failed) == 1 and failed[0].error is not None:
        raise failed[0].error
    if failed:
        raise PreflightFailed("\n  ".join([f"{len(failed)} things do not fit:", *(row.detail for row in failed)]))
