"""The report of a comparison: one self-contained HTML page, its charts as PNGs, and its numbers as JSON."""

from aent_verl.reporting.report import write_report

__all__ = ["write_report"]
