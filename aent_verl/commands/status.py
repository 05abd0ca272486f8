"""``aent-verl status``: the runs that train on a Ray cluster, and where their coefficients are."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from aent_verl import _util

DESCRIPTION = """\
Show the runs with entropy control that train on a Ray cluster: method, step, coefficient with its bounds, entropy with
its band, the last steps as small curves. Run it on any node of the cluster.
"""
EXAMPLES = """\
examples:
  aent-verl status                                all runs of the cluster that runs on this machine, or of RAY_ADDRESS
  aent-verl status --watch                        the same, drawn anew every two seconds
  aent-verl status --address head:6379 --run NAME --json
`aent-verl set NAME low=0.1` changes what a run's controller aims at.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="aent-verl status",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="the cluster's head; default: RAY_ADDRESS, or this machine's"
    )
    parser.add_argument("--run", metavar="NAME", help="only this run: its name, project/name, or its job's id")
    parser.add_argument("--json", action="store_true", help="for scripts: a list of objects, one a run")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=2.0,
        metavar="SECONDS",
        help="until Ctrl-C; every 2 seconds if not given",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Print the status, once or until interrupted, and return the process's exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.watch is not None and not options.watch > 0:
        parser.error(f"--watch {options.watch:g}: must be a number of seconds > 0")
    _util.require("verl", "aent-verl status", "ray", "rich")
    from aent_verl.launch import live

    try:
        with live.connected(options.address) as address:
            show(options, address)
    except live.LiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def show(options: argparse.Namespace, address: str) -> None:
    """Print the status in the form that was asked for."""
    from rich.console import Console
    from rich.live import Live

    from aent_verl.launch import live
    from aent_verl.viewing.status import render

    def asked() -> list[dict[str, Any]]:
        runs = live.statuses()
        return [live.chosen(runs, options.run)] if options.run else runs

    if options.json:
        print(json.dumps(without_nan(asked()), indent=2, sort_keys=True, allow_nan=False), flush=True)
        while options.watch is not None:
            time.sleep(options.watch)
            print(json.dumps(without_nan(asked()), sort_keys=True, allow_nan=False), flush=True)
        return
    console = Console()
    look = {"ascii_only": console.options.ascii_only}
    if options.watch is None:
        console.print(render(asked(), address, **look))
        return
    with Live(console=console, auto_refresh=False) as drawn:
        while True:
            drawn.update(render(asked(), address, **look), refresh=True)
            time.sleep(options.watch)


def without_nan(value: Any) -> Any:
    """Replace numbers that JSON does not have, NaN and infinities, by null."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
