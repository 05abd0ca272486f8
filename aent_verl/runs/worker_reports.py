"""What the workers report at the start of a run: where it is kept, and its summary in one line. Needs no verl."""

from typing import Any

FILE = "entropy_control_report.json"


def banner(reports: list[dict[str, Any]]) -> str:
    """Write one line on what the workers say they run."""
    actors = [report for report in reports if "method" in report]
    if not actors:
        return "no worker reports entropy control"
    first = actors[0]
    coefficient, shaping = first.get("coefficient"), first.get("advantages") or ""
    rewards = first.get("rewards") or ""
    parts = (
        f"method {first['method']}",
        f"functional {first.get('functional')}",
        f"controller {first.get('controller')}",
        f"coefficient {coefficient if coefficient is None else format(coefficient, 'g')}",
        *([] if not shaping or "Unchanged" in shaping else [f"advantages {shaping}"]),
        *([] if not rewards or "AsGiven" in rewards else [f"rewards {rewards}"]),
        f"device {first.get('device')}",
    )
    return f"entropy control active on {len(actors)} rank(s): {', '.join(parts)}"
