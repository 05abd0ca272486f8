"""Console script ``aent-verl``."""

import argparse
import importlib
import sys

from aent_verl import __version__
from aent_verl.commands import methods, plot, prepare, tokens

# Commands that parse their own arguments.
SUMMARIES = {
    "train": "train with Hydra overrides; aent-verl train --help",
    "compare": "train, evaluate and compare methods x seeds; compare --help",
    "doctor": "check versions, plug-in, settings, data, model, reward and machines; doctor --help",
    "status": "show the runs that train on a Ray cluster; status --help",
    "set": "change the controllers of a run while it trains; set --help",
    "evaluate": "sample, score and summarise a model's answers; evaluate --help",
}


def build_parser() -> argparse.ArgumentParser:
    """Build the top-level parser; commands that take Hydra overrides parse their arguments themselves."""
    parser = argparse.ArgumentParser(
        prog="aent-verl", description="Entropy control for reinforcement learning in verl."
    )
    parser.add_argument("--version", action="version", version=f"aent-verl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, summary in SUMMARIES.items():
        commands.add_parser(name, help=summary, add_help=False)
    for command in (methods, plot, prepare, tokens):
        command.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the process's exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    name = arguments[0] if arguments else ""
    if name in SUMMARIES:
        try:
            return int(importlib.import_module(f"aent_verl.commands.{name}").main(arguments[1:]))
        except ImportError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    options = build_parser().parse_args(arguments)
    try:
        print(options.run(options))
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
