"""What a check has to say about a setting: an error stops the run, a warning goes with it."""

from __future__ import annotations

from typing import Any


class _AboutSetting(Exception):
    """What is wrong with a setting.

    Args:
        key: the setting.
        value: what it is set to.
        problem: what is wrong with it.
        expected: what would be right, where there is one answer.
        hint: what to do next.
    """

    def __init__(self, key: str, value: Any, problem: str, *, expected: str | None = None, hint: str) -> None:
        super().__init__(f"{key}={value!r}: {problem}{f'; expected {expected}' if expected else ''}. {hint}")
        self.key = key
        self.value = value


class PreflightError(_AboutSetting, ValueError):
    """A setting does not fit what it points to; nothing was started."""


class PreflightWarning(_AboutSetting, UserWarning):
    """A setting does less than one may think, or something else; the run is still what was asked for."""


# A check of settings yields all that it finds, so that one look at a config names every key.
Finding = PreflightError | PreflightWarning


def root_cause(error: Exception) -> Exception:
    """Return the error that a Ray task or Hydra call died of, without what Ray and Hydra put around it."""
    while type(error).__module__.partition(".")[0] in ("ray", "hydra"):
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, Exception) or inner is error:
            break
        error = inner
    return error
