"""Does text survive a tokenizer, up to what the tokenizer normalises?

Tokenizers compose accents, fold case, or replace U+2126 by U+03A9, which looks the same: text must come back as the
tokenizer's own normalizer leaves it, not as it was.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

# SentencePiece's mark of a blank.
_MARK = "\u2581"
_CONTEXT = 20


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of the ids, special tokens included."""
    # Where a tokenizer asks for it, the clean-up would remove blanks, and more in some versions.
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of the text alone, nothing before or after it."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def normalise(tokenizer: Any, text: str) -> str:
    """Text as the tokenizer's own normalizer leaves it; its added tokens within the text stay as they are."""
    if hasattr(tokenizer, "backend_tokenizer"):
        own = tokenizer.backend_tokenizer.normalizer
        change = own.normalize_str if own else str
    elif hasattr(tokenizer, "sp_model"):
        change = tokenizer.sp_model.normalize
    else:
        return text
    added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, added))})", text) if added else [text]
    # Every second piece is an added token.
    return "".join(piece if index % 2 else change(piece) for index, piece in enumerate(pieces))


def difference(expected: str, made: str) -> str | None:
    """Describe the first character of ``expected`` that ``made`` does not have in its place; None if it has them all.

    Blanks do not count: templates trim them, and tokenizers add or merge them.
    """
    places = [index for index, character in enumerate(expected) if not _is_blank(character)]
    wanted = "".join(expected[index] for index in places)
    found = "".join(character for character in made if not _is_blank(character))
    if wanted in found:
        return None
    kept = bisect.bisect_left(range(len(wanted)), True, key=lambda end: wanted[: end + 1] not in found)
    place = places[kept]
    described = f"{_name(wanted[kept])} at position {place}, in {_around(expected, place)!r}, is lost"
    after = found.find(wanted[:kept]) + kept
    return f"{described}, and {_name(found[after])} follows" if kept and after < len(found) else described


def _is_blank(character: str) -> bool:
    return character.isspace() or character == _MARK


def _around(text: str, place: int) -> str:
    return text[max(0, place - _CONTEXT) : place + _CONTEXT]


def _name(character: str) -> str:
    return f"U+{ord(character):04X} ({unicodedata.name(character, 'no name')})"
