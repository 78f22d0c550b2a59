"""What the command line prints: tables, durations, progress."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

KEPT = ("built ", "damaged", "wait:", "warning", "reused")
"""Beginnings of progress lines that stay on a terminal; others are overwritten by the next one."""
WIDTH = 400
"""Columns of a table before its cells are folded: lines are never cut, so that they can be searched."""


class Terminal:
    """Where progress goes: line by line into a file or pipe, one rewritten line on a terminal."""

    def __init__(self) -> None:
        self.stream = sys.stdout
        self.rewrites = self.stream.isatty()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        print(("\r\x1b[K" if self.rewrites else "") + text, file=self.stream, flush=True)

    def progress(self, prefix: str, text: str) -> None:
        """Show a line of a notebook's output."""
        if not self.rewrites or text.startswith(KEPT):
            self.line(prefix + text)
        else:
            width = shutil.get_terminal_size().columns - 1
            print("\r\x1b[K" + (prefix + text)[:width], end="", file=self.stream, flush=True)


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


def duration(seconds: float) -> str:
    """Return 75 as 1:15 and 3675 as 1:01:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(number: float) -> str:
    """Return a number of bytes as a person reads it: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
