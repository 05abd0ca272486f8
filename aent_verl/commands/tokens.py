"""``aent-verl tokens PATH ...``: a page of a run's responses, each token coloured by its entropy."""

import argparse
from typing import Any

from aent_verl import _util

HELP = """\
Write a page of responses whose tokens are coloured by entropy, advantage or policy weight; it opens in any browser.
The run must have been trained with entropy_control.token_dump=4 (responses per step).
"""
EXAMPLES = """\
examples:
  aent-verl tokens outputs/aent_verl/cpu_arithmetic_aent                      the whole dump of a run
  aent-verl tokens outputs/aent_verl/cpu_arithmetic_aent --step 1 20 40       three of its steps
  aent-verl tokens outputs/aent_verl/cpu_arithmetic_aent/tokens -o page.html  the dump's folder; where the page goes
"""


def add_parser(commands: Any) -> None:
    """Add the command to the top-level parser's commands."""
    parser = commands.add_parser(
        "tokens",
        help="show a run's responses, each token coloured by its entropy, as an HTML page",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run's folder, its folder `tokens`, or files in it")
    parser.add_argument("-o", "--output", help="where to write the page; default: tokens.html in the first folder")
    parser.add_argument("--step", nargs="+", type=int, metavar="N", help="only these training steps")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Write the page; return its path and how many responses it has."""
    _util.require("compare", "the page of tokens", "jinja2", "markupsafe", "numpy")
    from aent_verl.viewing.tokens.page import write_page

    page, count = write_page(options.paths, output=options.output, steps=options.step)
    return f"{page}: {count} response{'s' if count != 1 else ''}"
