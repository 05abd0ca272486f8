"""The tables of docs/statistics.md are those of `python -m benchmarks.statistics --markdown`."""

from pathlib import Path

import pytest

from benchmarks.statistics import TABLES

DOCS = (Path(__file__).parents[4] / "docs/statistics.md").read_text(encoding="utf-8")


def documented(title):
    """Head and rows below a title, as cells."""
    _, _, below = DOCS.partition(f"**{title}**\n\n")
    lines = below.partition("\n\n")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return head, rows


@pytest.mark.parametrize("name", TABLES)
def test_the_docs_hold_every_row_that_the_command_prints(name):
    table = TABLES[name]
    head, rows = documented(table.title)
    assert head == list(table.columns)
    assert [row[0] for row in rows] == list(table.rows)
    assert {len(row) for row in rows} == {len(head)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row"),
    [("coverage", "20 hard problems"), ("false alarms", "3 and 10, 20 problems"), ("power", "3 each")],
)
def test_the_command_still_computes_what_the_docs_say(name, row):
    """A row of those that take a second. To a hundredth: other processors may round another way."""
    table = TABLES[name]
    printed = table.rows[row](table.experiments)
    _, rows = documented(table.title)
    (stated,) = (cells for first, *cells in rows if first == row)
    for cell, other in zip(printed, stated, strict=True):
        assert [*map(float, cell.split())] == pytest.approx([*map(float, other.split())], abs=0.01)
