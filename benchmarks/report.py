"""What every benchmark prints around its numbers: where and when they were measured, tables, JSON."""

import argparse
import json
import os
import platform
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from aent_verl import __version__
from benchmarks import record
from benchmarks.measure import Quantiles

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIB = 2**20

Row = list[str]


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the stamp and all numbers, in SI units")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="add the numbers to a file of this machine and commit"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables as GitHub Markdown, for the docs")


def progress(text: str = "") -> None:
    """Show on the terminal what is running, in place of the last text. No spinner: it would take time from a core."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def stamp(device: str, **settings: Any) -> dict[str, Any]:
    """Date, hardware, versions and ``settings``: what one needs to judge the numbers."""
    return {
        "date": record.now(),
        "device": record.processor() if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: record.version(name) for name in ("torch", "verl", "triton", "flash-attn")},
        "aent-verl": __version__,
        **settings,
    }


class Report:
    """Prints tables as they come and keeps the numbers for ``--json`` and ``--record``."""

    def __init__(self, options: argparse.Namespace, stamp: dict[str, Any], section: str = "") -> None:
        # On a bare GPU machine there may be no rich.
        self._markdown, self._file = options.markdown or find_spec("rich") is None, options.json
        self._record, self._section, self._start = options.record, section, time.monotonic()
        self._device = getattr(options, "device", "cpu")
        self._data: dict[str, Any] = {"stamp": stamp}
        self.text(" · ".join(f"{key} {value}" for key, value in stamp.items()))

    def text(self, line: str) -> None:
        progress()
        print(f"{line}\n" if self._markdown else line)

    def table(self, title: str, columns: Row, rows: list[Row]) -> None:
        """One table; a rule separates groups of rows with the same first cell, which is printed once."""
        progress()
        if self._markdown:
            align = ["---", "---", *["---:"] * (len(columns) - 2)]
            print(f"**{title}**\n", *(f"| {' | '.join(row)} |" for row in (columns, align, *rows)), "", sep="\n")
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index > 1 else "left", no_wrap=index < 2)
        previous, grouped = None, len({row[0] for row in rows}) < len(rows)
        for first, *others in rows:
            if grouped and previous not in (None, first):
                table.add_section()
            table.add_row(first if first != previous else "", *others)
            previous = first
        # A pipe has no width to fit into.
        console = Console() if Console().is_terminal else Console(width=160)
        console.print(table)

    def save(self, **data: Any) -> None:
        """Keep ``data``, and write everything so far to the files."""
        self._data |= data
        if self._file:
            self._file.write_text(json.dumps(self._data, indent=1, default=vars) + "\n")
        if self._record:
            seconds = round(time.monotonic() - self._start, 1)
            record.save(self._record, self._device, self._section, {**self._data, "seconds": seconds})


def milliseconds(time: Quantiles) -> str:
    """Median and the range between the quantiles, in three digits."""
    digits = 3 if time.median < 1e-3 else 2 if time.median < 1e-2 else 1 if time.median < 1e-1 else 0
    median, low, high = (f"{1e3 * value:,.{digits}f}" for value in (time.median, time.low, time.high))
    return f"{median} ({low}-{high})"


def mebibytes(size: int | None) -> str:
    return "not measured" if size is None else f"{size / MIB:,.1f}"


def ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value is not None and base else ""
