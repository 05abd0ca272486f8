"""``aent-verl methods``: the presets and the choices on each axis that are installed, with their settings."""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

HELP = """\
List the presets that are installed, ours and those of other packages, and on each axis the choices with their settings.
"""
EXAMPLES = """\
examples:
  aent-verl methods                              then: aent-verl train ... entropy_control=NAME
  aent-verl train ... entropy_control=aent entropy_control/advantages=steer entropy_control.advantages.w_min=0.9
"""


def add_parser(commands: Any) -> None:
    """Add the command to the top-level parser's commands."""
    parser = commands.add_parser(
        "methods",
        help="list the presets, and the choices on each axis with their settings",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Return the lists as text."""
    from aent_verl.methods import presets
    from aent_verl.methods.settings import CHOICES, ROOT

    lines = ["presets: entropy_control=NAME"]
    for preset in presets.installed():
        source = "" if preset.package == presets.OURS else f" [{preset.package}]"
        lines.append(f"  {preset.name:<16}{preset.about}{source}")
    lines += ["", "functional: entropy_control/functional=full, clamped (clamp_p) or nucleus (top_p)"]
    for block, (table, _) in CHOICES.items():
        # What chooses in the bonus has a group of its own name: token_mask, but advantages_controller.
        group = block.removeprefix(f"{ROOT}.").removeprefix("bonus.").replace(".", "_")
        lines += ["", f"{group}: entropy_control/{group}=NAME", *_choices(table)]
    lines += ["", "A choice of your own: its path package.module:Class as the name, see docs/methods.md"]
    return "\n".join(lines)


def _choices(table: Mapping[str, type[Any]]) -> Iterator[str]:
    for name, kind in table.items():
        about = (kind.__doc__ or "").partition("\n")[0].replace("`", "")
        settings = ", ".join(field.name for field in dataclasses.fields(kind))
        yield f"  {name:<22}{about}" + (f" Settings: {settings}" if settings else "")
