"""``aent-verl plot FOLDER``: reward, entropy and coefficient of a run as a PNG."""

import argparse
from typing import Any

from aent_verl import _util


def add_parser(commands: Any) -> None:
    """Add the command to the top-level parser's commands."""
    parser = commands.add_parser("plot", help="draw reward, entropy and coefficient of a run as a PNG")
    parser.add_argument("folder", help="the run's folder (run.dir), with its metrics.jsonl")
    parser.add_argument("--output", help="where to write the PNG; default: in the run's folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Draw the plot and return its path."""
    _util.require("compare", "the plot", "matplotlib", "omegaconf")
    from aent_verl.viewing.plot import plot_run

    return str(plot_run(options.folder, output=options.output))
