"""The report of a comparison: one self-contained HTML page, its charts as PNGs, and its numbers as JSON."""

from aent_verl.comparison.report.contents import build
from aent_verl.comparison.report.write import answer, write_report

__all__ = ["answer", "build", "write_report"]
