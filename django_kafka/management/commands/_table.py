"""A table on the command line: drawn where rich is installed and somebody looks, else in plain columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...legible import printable

try:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ImportError:
    Table = None  # type: ignore[assignment,misc]


def table(out: Any, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows below their columns on the command's `out`."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if Table is None or not out.isatty():
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for row in (columns, *cells):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            out.write(line.rstrip())
        return
    drawn = Table(*columns)
    for row in cells:
        # As texts, because square brackets in a name are no markup.
        drawn.add_row(*map(Text, row))
    Console(file=out._out).print(drawn)
