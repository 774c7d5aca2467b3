"""A report of `kafka_doctor` for people: drawn where rich is installed and somebody looks, else in plain lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from ...diagnosis.examining import Part, Report
from ...diagnosis.findings import Finding, State
from ...legible import printable

try:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ImportError:
    Table = None  # type: ignore[assignment,misc]

_MARKS = {
    State.WELL: ("✓", "green"),
    State.NOTE: ("·", "cyan"),
    State.WARNING: ("!", "yellow"),
    State.ERROR: ("✗", "bold red"),
    State.UNSEEN: ("-", "bright_black"),
}
"""How each state is drawn, and in which colour."""


def show(out: Any, report: Report) -> None:
    """Write a report on the command's `out`."""
    if Table is not None and out.isatty():
        console = Console(file=out._out)
        for part in report.parts:
            _draw(console, part)
        console.print(Text(_sum(report), style="bold"))
        return
    for part in report.parts:
        out.write(printable(part.name))
        for name, one in _rows(part):
            out.write(f"  {one.state.value:<13} {printable(name)}: {printable(one.saw)}")
            if one.mend:
                out.write(f"  {'':<13} -> {printable(one.mend)}")
    out.write(_sum(report))


def _draw(console: Console, part: Part) -> None:
    drawn = Table(box=None, show_header=False, padding=(0, 1), title=Text(part.name, style="bold"))
    drawn.title_justify = "left"
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True, overflow="fold")
    drawn.add_column(overflow="fold")
    for name, one in _rows(part):
        mark, colour = _MARKS[one.state]
        # As texts, because square brackets in a name are no markup.
        said = Text(printable(one.saw), style=colour if one.state is State.UNSEEN else "")
        if one.mend:
            said.append(f"\n→ {printable(one.mend)}", style="italic")
        drawn.add_row(Text(mark, style=colour), Text(printable(name), style=colour), said)
    console.print(drawn)
    console.print()


def _rows(part: Part) -> Iterator[tuple[str, Finding]]:
    """Yield findings with their names; what was not looked at for one reason shares a row."""
    for _reason, group in groupby(part.findings, lambda one: one.state is State.UNSEEN and one.saw):
        found = list(group)
        if found[0].state is State.UNSEEN and len(found) > 1:
            yield ", ".join(dict.fromkeys(one.check for one in found)), found[0]
        else:
            yield from ((f"{one.check} {one.of}" if one.of else one.check, one) for one in found)


def _sum(report: Report) -> str:
    counts = Counter(one.state for part in report.parts for one in part.findings)
    errors, warnings, good = counts[State.ERROR], counts[State.WARNING], counts[State.WELL] + counts[State.NOTE]
    said = [f"{errors} error{'s' if errors != 1 else ''}"] if errors else []
    said += [f"{warnings} warning{'s' if warnings != 1 else ''}"] if warnings else []
    said.append(f"{good} well" if said else f"All is well: {good} checks")
    if counts[State.UNSEEN]:
        said.append(f"{counts[State.UNSEEN]} not looked at")
    return f"{', '.join(said)}, in {report.seconds:.1f} s."
