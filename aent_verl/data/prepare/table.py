r"""The public data sets of `data_sets.yaml`, and how their answers are written.

The ground truth in the answer column is a bare value, `\boxed{...}` in a solution, or what stands after `####`.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def whole(value: Any) -> str:
    """Return the value itself: text without surrounding space and math delimiters, a whole number without ".0".

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
    r"""Return what the last `\boxed{...}` or `\fbox{...}` holds, inner braces included; "" where there is none.

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
    """Return what follows the last `####`, without thousands separators, as in GSM8K; "" where there is none."""
    _, hashes, answer = whole(value).rpartition("####")
    return answer.strip().replace(",", "") if hashes else ""


def automatic(value: Any) -> str:
    r"""Return `boxed` where there is a `\boxed`, `after_hashes` where there is a `####`, else `whole`."""
    text = whole(value)
    return boxed(text) or after_hashes(text) or text


EXTRACTORS = {"auto": automatic, "whole": whole, "boxed": boxed, "hashes": after_hashes}


def _closing_brace(text: str) -> int | None:
    r"""Find where the brace that opens `text` is closed; `\{` and `\}` are characters, not braces."""
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text, flags=re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return token.start()
    return None


def _without_delimiters(text: str) -> str:
    for left, right in _DELIMITERS:
        inner = text.removeprefix(left).removesuffix(right)
        if len(inner) == len(text) - len(left) - len(right) and "$" not in inner and left not in inner:
            return inner.strip()
    return text


@dataclass(frozen=True)
class DataSet:
    """A data set of mathematical problems with one final answer each.

    Attributes:
        about: What it is, for `--list`.
        hub: Its id on the Hugging Face hub, with "@" and the commit that is read unless the user names another; without
            one, the newest is.
        rows: Published number of rows of each split that we take, "train" and "test"; another number is reported.
        license: What its card says.
        hub_split: The hub's name of the only split, None where the hub calls the splits as we do.
        config: The hub's configuration, None for the default.
        problem: Column of the problem: text, or chat messages of which the last user message counts.
        answer: Column of the answer; a dot leads into a nested record.
        extract: Takes the ground truth out of the answer column.
        keep: Column to the only value with which a row is kept.
        unwrap: Text that stands before and after every problem and does not belong to it.
    """

    about: str = ""
    hub: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    license: str = ""
    hub_split: str | None = None
    config: str | None = None
    problem: str = "problem"
    answer: str = "answer"
    extract: Callable[[Any], str] = whole
    keep: Mapping[str, Any] = field(default_factory=dict)
    unwrap: Sequence[str] = ("", "")


@functools.cache
def data_sets() -> dict[str, DataSet]:
    """Read the data sets of `data_sets.yaml`, by the name that users type."""
    import yaml

    entries = yaml.safe_load(Path(__file__).with_name("data_sets.yaml").read_text(encoding="utf-8"))
    return {
        name: DataSet(**entry | {"extract": EXTRACTORS[entry.get("extract", "whole")]})
        for name, entry in entries.items()
    }


def listing() -> str:
    """List the table as text: name, rows of each split, what it is, repository and licence."""
    lines = []
    for name, entry in data_sets().items():
        rows = ", ".join(f"{split} {count:,}" for split, count in entry.rows.items())
        rows += " before that choice" if entry.keep else ""
        config = f" ({entry.config})" if entry.config else ""
        repository = entry.hub.partition("@")[0]
        lines += [f"{name}: {entry.about}", f"    {rows}; {repository}{config}; licence: {entry.license}"]
    lines.append("reasoning-gym:NAME: any of reasoning-gym's generators, such as reasoning-gym:countdown")
    return "\n".join([*lines, "FILE.parquet, FILE.jsonl: your own, with --problem and --answer"])


def unknown(name: str) -> ValueError:
    """Make the error for a name that is neither in the table nor a file; it suggests similar names."""
    near = difflib.get_close_matches(name.lower(), data_sets(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ValueError(
        f"{name!r} is neither a data set nor a file: {hint}There are {', '.join(data_sets())}, "
        "reasoning-gym:GENERATOR, and your own .parquet, .jsonl or .json files (aent-verl prepare --list)"
    )
