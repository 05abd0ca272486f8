"""Text: what others wrote, such as a model, made safe to look at; long lists by their beginning; values for Hydra."""

import re
from collections.abc import Sequence
from pathlib import Path

# What cannot be written, reorders text or is not seen: C0 and C1 but newline and tab, bidi controls, surrogates.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def name_hidden(text: str) -> str:
    """The text with a sign for each control character, bidi control and lone surrogate; newlines and tabs stay."""
    return _HIDDEN.sub(_name, text)


def some(items: Sequence[str], most: int = 6) -> str:
    """The first items, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def quoted(text: str | Path) -> str:
    """A text as the value of a Hydra override, whatever characters are in it.

    Hydra takes a backslash for one unless it stands before a quote, or before others that do.
    """
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(text)) + "'"


def _name(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"
