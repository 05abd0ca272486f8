"""What checks find, an error that stops the run or a warning, and how every command shows it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from omegaconf import DictConfig

from aent_verl.preflight import schema

OK, WARNING, FAILED, NOTE = "ok", "warning", "FAILED", "-"
_WORDS = {OK: "checked", WARNING: "warning", FAILED: "failed", NOTE: "note"}


class _AboutSetting(Exception):
    """What is wrong with a setting.

    Args:
        key: the setting.
        value: what it is set to.
        problem: what is wrong with it.
        expected: what would be right, if there is one answer.
        hint: what to do next.
    """

    def __init__(self, key: str, value: Any, problem: str, *, expected: str | None = None, hint: str) -> None:
        super().__init__(f"{key}={value!r}: {problem}{f'; expected {expected}' if expected else ''}. {hint}")
        self.key = key
        self.value = value


class PreflightError(_AboutSetting, ValueError):
    """A setting does not fit what it points to; nothing was started."""


class PreflightWarning(_AboutSetting, UserWarning):
    """A setting does less than expected, or something else; the run is still what was asked for."""


# A check of settings yields all that it finds, so that one pass over a config names every key.
Finding = PreflightError | PreflightWarning


@dataclass(frozen=True)
class Setting:
    """A key and its value, about which a check has something to say."""

    key: str
    value: Any

    def error(self, problem: str, hint: str, expected: str | None = None) -> PreflightError:
        """Make a finding that stops the run; for the arguments see `PreflightError`."""
        return PreflightError(self.key, self.value, problem, expected=expected, hint=hint)

    def warning(self, problem: str, hint: str, expected: str | None = None) -> PreflightWarning:
        """Make a finding that does not."""
        return PreflightWarning(self.key, self.value, problem, expected=expected, hint=hint)


def at(cfg: DictConfig, key: str) -> Setting:
    """Look up the setting at a dotted key of the config."""
    return Setting(key, schema.value(cfg, key))


def without_effect(cfg: DictConfig, keys: Iterable[str], why: str, hint: str) -> Iterator[PreflightWarning]:
    """Warn of each setting at or below ``keys`` that differs from verl's default."""
    for block in keys:
        for key, given in schema.changed(cfg, block).items():
            yield Setting(key, given).warning(f"has no effect: {why}", hint)


def root_cause(error: Exception) -> Exception:
    """Return the error that a Ray task or Hydra call died of, without Ray's and Hydra's wrappers."""
    while type(error).__module__.partition(".")[0] in ("ray", "hydra"):
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, Exception) or inner is error:
            break
        error = inner
    return error


@dataclass(frozen=True)
class Row:
    """One result of a check.

    Attributes:
        check: what was checked.
        state: `OK`, `WARNING`, `FAILED`, or `NOTE` for what could not be checked.
        detail: what was found, for people.
        error: what a failed check raised.
        key: the setting concerned, if there is one.
    """

    check: str
    state: str
    detail: str
    error: Exception | None = None
    key: str | None = None


class PreflightFailed(ValueError):
    """Several checks failed; the message lists them all, one per line."""


def row_of(check: str, found: str | Exception) -> Row:
    """Make a row of what a check yielded: a line on what holds, a warning, or an error."""
    if isinstance(found, str):
        return Row(check, OK, found)
    key = getattr(found, "key", None)
    if isinstance(found, Warning):
        return Row(check, WARNING, str(found), key=key)
    named = isinstance(found, ValueError) and type(found).__module__.startswith("aent_verl")
    return Row(check, FAILED, str(found) if named else f"{type(found).__name__}: {found}", found, key)


def attempt(check: str, function: Callable[[], Iterable[str | Exception]]) -> Iterator[Row]:
    """Yield a row for each thing that a check finds; what it raises becomes the last row."""
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
