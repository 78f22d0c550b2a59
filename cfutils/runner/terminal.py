"""Tables, as the command line prints them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 400
"""Columns of a table before its cells are folded: lines are never cut, so that they can be searched."""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows in aligned columns as plain text: whole numbers to the right, the rest to the left."""
    columns = len(header) or max(map(len, rows), default=0)
    shown = Table(box=None, show_header=bool(header), pad_edge=False, padding=(0, 2, 0, 0))
    for i in range(columns):
        number = bool(rows) and all(type(row[i]) is int for row in rows)
        shown.add_column(header[i] if header else "", justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, markup=False, emoji=False,
                      highlight=False)  # fmt: skip
    console.print(shown)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def indent(text: str) -> str:
    """Move lines two columns to the right."""
    return textwrap.indent(text, "  ")
