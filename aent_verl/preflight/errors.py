"""The one error of all checks."""

from typing import Any


class PreflightError(ValueError):
    """A setting does not fit what it points to; nothing was started.

    Args:
        key: the setting.
        value: what it is set to.
        problem: what is wrong with it.
        expected: what would be right.
        hint: what to do next.
    """

    def __init__(self, key: str, value: Any, problem: str, *, expected: str, hint: str) -> None:
        super().__init__(f"{key}={value!r}: {problem}; expected {expected}. {hint}")
        self.key = key
        self.value = value
