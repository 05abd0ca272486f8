r"""The ground truth in the answer column of a data set: a bare value, `\boxed{...}` in a solution, or after `####`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def whole(value: Any) -> str:
    """The value itself: text without surrounding space and math delimiters, a whole number without ".0".

    A list gives its items joined by commas, so a list of one gives its item. None and NaN give "".

    Raises:
        TypeError: a record or bytes, which have no form that an answer could be compared with.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, Mapping):
        raise TypeError(f"a record with the fields {', '.join(map(repr, value))}")
    if isinstance(value, bytes):
        raise TypeError("bytes")
    if isinstance(value, list | tuple):
        return ", ".join(whole(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _without_delimiters(str(value).strip())


def boxed(value: Any) -> str:
    r"""What stands in the last `\boxed{...}` or `\fbox{...}`, braces inside it included; "" where there is none.

    `\boxed 5`, without braces, holds everything up to the next space or dollar sign.
    """
    text = whole(value)
    starts = [match.end() for match in _BOX.finditer(text)]
    if not starts:
        return ""
    rest = text[starts[-1] :]
    if not rest.startswith("{"):
        return re.split(r"[\s$]", rest, maxsplit=1)[0].rstrip(".,")
    end = _closing_brace(rest)
    return _without_delimiters(rest[1:end].strip()) if end else ""


def after_hashes(value: Any) -> str:
    """What stands after the last `####`, without thousands separators, as in GSM8K; "" where there is none."""
    _, hashes, answer = whole(value).rpartition("####")
    return answer.strip().replace(",", "") if hashes else ""


def automatic(value: Any) -> str:
    r"""`boxed` where there is a `\boxed`, `after_hashes` where there is a `####`, else `whole`."""
    text = whole(value)
    return boxed(text) or after_hashes(text) or text


EXTRACTORS: dict[str, Callable[[Any], str]] = {
    "auto": automatic,
    "whole": whole,
    "boxed": boxed,
    "hashes": after_hashes,
}


def _closing_brace(text: str) -> int | None:
    r"""Where the brace that opens `text` is closed; `\{` and `\}` are characters, not braces."""
    depth, position = 0, 0
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] in "{}":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return position
        position += 1
    return None


def _without_delimiters(text: str) -> str:
    for left, right in _DELIMITERS:
        inner = text.removeprefix(left).removesuffix(right)
        if len(inner) == len(text) - len(left) - len(right) and "$" not in inner and left not in inner:
            return inner.strip()
    return text
