"""``aent-verl doctor [key=value ...]``: is everything in place for a run with these settings?"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aent_verl import _util

if TYPE_CHECKING:
    from aent_verl.preflight.findings import Row

DESCRIPTION = """\
Check everything that a training run needs, without starting it: versions, plug-in, verl's API, every setting, data,
model, reward function and machines. Takes the overrides of `aent-verl train`, or a whole command, also verl's, old or
new: it names each key that verl no longer has, and what the command lacks for entropy control.
"""
EXAMPLES = """\
examples:
  aent-verl doctor experiment=cpu_arithmetic
  aent-verl doctor --assume gpus=8,nodes=2 experiment=qwen2.5_math_1.5b_math data.train_files=...   on a login node
  aent-verl doctor python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo data.train_files=...
"""


def main(arguments: Sequence[str]) -> int:
    """Print the report for a training command; return 0 if nothing failed, else 1."""
    parser = argparse.ArgumentParser(
        prog="aent-verl doctor",
        usage="%(prog)s [--cluster] [--assume gpus=8,nodes=2] [key=value ... | a training command]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--cluster", action="store_true", help="start or join Ray, and ask every node")
    parser.add_argument("--assume", metavar="gpus=8,nodes=2", help="check for these machines instead of this one")
    # The rest are overrides, or another command's words with its own flags.
    options, words = parser.parse_known_args(arguments)
    _util.require("verl", "aent-verl doctor")
    # Nearly all of its time is spent on imports, whose objects live until it ends: a collection would free nothing.
    gc.disable()
    from aent_verl.launch import doctor
    from aent_verl.preflight.findings import FAILED, WARNING

    try:
        assume = doctor.Machines.parse(options.assume) if options.assume else None
    except ValueError as error:
        parser.error(str(error))
    rows = list(doctor.examine(words, cluster=options.cluster, assume=assume))
    show(rows)
    failed, warned = (sum(row.state == state for row in rows) for state in (FAILED, WARNING))
    tail = f", {warned} warning{'s' * (warned > 1)}" if warned else ""
    print(f"{failed} of {len(rows)} checks failed{tail}" if failed else f"all {len(rows)} checks passed{tail}")
    return 1 if failed else 0


def show(rows: Sequence[Row]) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from aent_verl.preflight.findings import FAILED, NOTE, OK, WARNING

    table = Table(box=None, pad_edge=False)
    for heading in ("check", "result", "detail"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "result")
    styles = {OK: "green", WARNING: "yellow", FAILED: "bold red", NOTE: "yellow"}
    for row in rows:
        table.add_row(row.check, Text(row.state, style=styles[row.state]), Text(row.detail))
    Console().print(table)
