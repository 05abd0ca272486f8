"""``aent-verl set RUN key=value ...``: change the controllers of a run while it trains."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from aent_verl import _util

DESCRIPTION = """\
Change the entropy controllers of a run while it trains: band, target, bounds, step size, or the coefficient itself.
The settings are checked as those of the config are, all of them or none, and are in force from the next training step
on. The change is logged with who made it, is part of the checkpoints, and is marked in the plot.
"""
EXAMPLES = """\
examples:
  aent-verl set NAME low=0.1 high=0.3             the band of AEnt's controller
  aent-verl set NAME coefficient=0.02             the coefficient; the controller goes on from there
  aent-verl set NAME advantages.target=0.4        where both controllers have the setting, the axis before it
`aent-verl status` lists the names; entropy_control.live_changes=false forbids it for a run.
"""


def main(arguments: Sequence[str]) -> int:
    """Change the run and return the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="aent-verl set",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="its name, project/name, or its job's id")
    parser.add_argument("settings", nargs="+", metavar="key=value", help="settings of its controllers, or coefficient")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="the cluster's head; default: RAY_ADDRESS, or this machine's"
    )
    options = parser.parse_args(arguments)
    _util.require("verl", "aent-verl set", "ray", "omegaconf")
    from aent_verl.launch import live

    try:
        settings = parse(options.settings)
        with live.connected(options.address):
            answer = live.change(options.run, settings)
    except (ValueError, live.LiveError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for warning in answer["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print("\n".join(answer["changes"]) or "nothing changes: these values are in force already")
    return 0


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` words; values are numbers, true, false or text, as in a Hydra override.

    Raises:
        ValueError: a word of another form, or a key that is given twice.
    """
    from omegaconf import OmegaConf

    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise ValueError(f"{word!r} is not of the form key=value, as in low=0.1")
        if key in settings:
            raise ValueError(f"{key} is given twice")
        settings[key] = OmegaConf.from_dotlist([f"value={value}"]).value
    return settings
