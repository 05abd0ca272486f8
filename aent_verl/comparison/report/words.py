"""Numbers as the page writes them."""

import math

from aent_verl import _util
from aent_verl.comparison.report.accuracy import Accuracy
from aent_verl.comparison.stats.crossed import Estimate
from aent_verl.viewing.pages import NOTHING, decimal


def ends(found: Estimate | None, signed: bool = False) -> str:
    """The interval of an estimate in brackets; empty where it has none, as of one seed."""
    if found is None or math.isnan(found.low):
        return ""
    return f"[{decimal(found.low, signed)}, {decimal(found.high, signed)}]"


def duration(seconds: float | None) -> str:
    """Two units of time, as "3 h 20 min"; a dash for None and NaN."""
    return NOTHING if seconds is None or math.isnan(seconds) else _util.duration(seconds)


def plain(text: object) -> str:
    """Text that others wrote, with a sign for every character that is not seen."""
    return _util.printable(str(text))


def enumerated(items: list[str]) -> str:
    """Items as in "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def headline(accuracy: Accuracy | None, baseline: str | None) -> str:
    """The whole answer in one line."""
    if accuracy is None:
        return "Nothing can be said about accuracy: no run holds an evaluation or validation of its final model."
    if not accuracy.verdicts:
        return "Nothing is compared: that takes a baseline, another method, and several seeds of each."
    by_state: dict[str, list[str]] = {}
    for method, verdict in accuracy.verdicts.items():
        by_state.setdefault(verdict.state, []).append(plain(method))
    parts = [
        f"{enumerated(by_state[state])} {'is' if len(by_state[state]) == 1 else 'are'} {state} than {plain(baseline)}"
        for state in ("better", "worse")
        if state in by_state
    ]
    if "not resolved" in by_state:
        parts.append(f"not resolved: {enumerated(by_state['not resolved'])}")
    if "refused" in by_state:
        parts.append(f"no claim: {enumerated(by_state['refused'])}")
    words = "; ".join(parts)
    return f"{words[0].upper() if parts[0].startswith(('not', 'no ')) else words[0]}{words[1:]}."
