"""Numbers as the page writes them."""

import math

from aent_verl._util import printable
from aent_verl.comparison.report.accuracy import Accuracy
from aent_verl.comparison.stats.crossed import Estimate

NOTHING = "—"


def decimal(value: float | None, signed: bool = False, digits: int = 3) -> str:
    """Fixed decimals without the zero before the point, one from 10 on, none from 1000 on; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NOTHING
    if abs(value) >= 10:
        return f"{value:{'+' if signed else ''},.{1 if abs(value) < 1000 else 0}f}"
    # Without the sign of what rounds to zero.
    value = round(value, digits) or 0.0
    words = f"{value:{'+' if signed and value else ''}.{digits}f}"
    return words.replace("0.", ".", 1) if abs(value) < 1 else words


def ends(found: Estimate | None, signed: bool = False) -> str:
    """The interval of an estimate in brackets; empty where it has none, as of one seed."""
    if found is None or math.isnan(found.low):
        return ""
    return f"[{decimal(found.low, signed)}, {decimal(found.high, signed)}]"


def p_value(value: float | None) -> str:
    """A p-value; "< .001" below that."""
    return "< .001" if value is not None and value < 0.001 else decimal(value)


def amount(value: float | None) -> str:
    """A large number in three digits and a unit, as "1.23 M"."""
    if value is None or math.isnan(value):
        return NOTHING
    # Before its unit is chosen: 999,600 is a million.
    value = float(f"{value:.3g}")
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Two units of time, as "3 h 20 min"."""
    if seconds is None or math.isnan(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def plain(text: object) -> str:
    """Text that others wrote, with a sign for every character that is not seen."""
    return printable(str(text))


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
