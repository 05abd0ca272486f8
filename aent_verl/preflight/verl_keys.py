"""Keys of verl's config that nothing reads, and keys of older versions of verl, from `verl_keys.yaml`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Unread:
    """What becomes of a key that nothing reads.

    Attributes:
        effect: what happens, whatever the key says.
        instead: the key that is read in its place.
        stops: whether the run would compute something other than asked.
        unless: a key that, where true, leaves the run what was asked.
        harmless: values other than the default that ask for what happens anyway.
    """

    effect: str
    instead: str | None = None
    stops: bool = False
    unless: str | None = None
    harmless: Sequence[object] = ()


_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
UNREAD = {key: Unread(**entry) for key, entry in _TABLES["unread"].items()}
# The key that does the same today, by the block where a whole block moved.
MOVED: dict[str, str] = _TABLES["moved"]
# What to know instead, by the key or block that has no successor.
GONE: dict[str, str] = {key: why for why, keys in _TABLES["gone"].items() for key in keys}
