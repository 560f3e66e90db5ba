"""A report for a terminal."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.table import Table

from .page import HEADINGS, class_row, facts
from .report import TrafficReport

_PAGE_WIDTH = 180


def print_report(report: TrafficReport) -> None:
    """Facts, then a line for each class of turns."""
    known = Table(show_header=False, box=None)
    for name, value in facts(report):
        known.add_row(name, value)
    turns = Table(*HEADINGS, box=None)
    for item in (report.all, *report.priorities, *report.tenants):
        turns.add_row(*class_row(item))
    console = Console(width=None if sys.stdout.isatty() else _PAGE_WIDTH, highlight=False)
    with console.capture() as capture:  # printed at once: rich would end the process itself when a pipe breaks
        console.print(known)
        console.print()
        console.print(turns)
    click.echo(capture.get(), nl=False)
