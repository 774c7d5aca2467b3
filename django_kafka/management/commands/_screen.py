"""The picture of `kafka_status` as rich draws it. Imported only where rich is installed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from django.utils import timezone
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from ...legible import printable
from ...monitoring.overview import Cluster, Consumer, Overview
from . import _status
from ._moments import span
from ._status import Column, Row, Signs

_WIDE = 120
"""Columns of a terminal from which on every column of the tables is shown."""
_ARROWS = Signs(growing="↑", shrinking="↓", steady="→")
_ASCII = Signs(growing="up", shrinking="down", steady="even")
_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_LONGEST, _SHORTEST = 30, 8
"""Columns that history takes."""
_UNBOUNDED = 10_000
_SPACIOUS = 140
"""Columns from which on there are two, not one, from one cell to the next."""
_HISTORY_FROM = 10.0
"""Seconds from which on there is history to draw."""
_STALE = 15.0
"""Seconds from which on it is said how old an answer is."""


def console(out: Any, *, no_color: bool) -> Console:
    """Return rich's console on the command's `out`."""
    # None leaves it to the environment: NO_COLOR.
    return Console(file=out._out, no_color=no_color or None, highlight=False, markup=False, emoji=False)


class Picture:
    """An overview, as wide as the terminal is."""

    def __init__(self, overview: Overview, *, most: int | None, warning: str = "") -> None:
        self._overview = overview
        self._most = most
        """How many partitions, workers and sentences are shown; None: all."""
        self._warning = warning

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pen, overview = _Pen(console, options), self._overview
        yield pen.head(overview)
        if self._warning:
            yield pen.text(self._warning, "yellow")
        if overview.consumers:
            yield from ("", pen.consumers(overview))
        partitions, others = _status.partitions(overview, self._most)
        if partitions:
            yield from ("", pen.table(_status.PARTITIONS, partitions))
        if others:
            yield pen.text(others, "dim")
        workers, others = _status.workers(overview, self._most)
        if workers:
            yield from ("", pen.table(_status.worker_columns(overview.paces), workers))
        if others:
            yield pen.text(others, "dim")
        sentences = [*_status.missing(overview), *(f"! {one}" for one in _status.sentences(overview))]
        if sentences:
            yield ""
        for sentence in sentences[: self._most]:
            yield pen.text(sentence, "yellow" if sentence.startswith("!") else "")
        if self._most is not None and len(sentences) > self._most:
            yield pen.text(f"and {len(sentences) - self._most:,} more lines", "dim")


class _Pen:
    """Draws for one terminal."""

    def __init__(self, console: Console, options: ConsoleOptions) -> None:
        self._console = console
        self._options = options
        self._encoding = options.encoding
        self._ascii = options.ascii_only
        self._wide = options.max_width >= _WIDE
        self._gap = 2 if options.max_width >= _SPACIOUS else 1
        self._signs = _ASCII if self._ascii else _ARROWS

    def text(self, text: str, style: str = "") -> Text:
        """Return a text as it may be shown: of strangers, or with letters that the terminal lacks."""
        shown = printable(text)
        if self._ascii:
            shown = shown.encode(self._encoding, "backslashreplace").decode(self._encoding)
        return Text(shown, style=style)

    def head(self, overview: Overview) -> Text:
        """Return the line that says when and where."""
        head = Text(f"Kafka {timezone.localtime(overview.at):%H:%M:%S}", style="bold")
        for cluster in overview.clusters:
            head.append_text(self.text(f"   {cluster.name}: {self._standing(cluster, overview)}", "not bold"))
        return head

    def _standing(self, cluster: Cluster, overview: Overview) -> str:
        if cluster.asked_at is None:
            return f"asking{self._dots}"
        topics = f"{cluster.topics:,} topic{'s' * (cluster.topics != 1)}" if cluster.topics is not None else "no answer"
        age = (overview.at - cluster.asked_at).total_seconds()
        return f"{topics}, {span(age)} ago" if age > _STALE else topics

    @property
    def _dots(self) -> str:
        return "..." if self._ascii else "…"

    def consumers(self, overview: Overview) -> Table:
        """Return the table of consumers, with the history of their lag where there is room for it."""
        columns = _status.consumer_columns(_status.asking(overview))
        times = [at for one in overview.consumers for at, _lag in one.history]
        since, until = min(times, default=0.0), max(times, default=0.0)
        without = self.table(columns, overview.consumers)
        heading = f"last {span(until - since)}"
        needed = self._console.measure(without, options=self._options.update(width=_UNBOUNDED)).maximum
        room = min(_LONGEST, self._options.max_width - needed - self._gap)
        if room < max(_SHORTEST, len(heading)) or until - since < _HISTORY_FROM:
            return without
        blocks = _ASCII_BLOCKS if self._ascii else _BLOCKS
        history = Column[Consumer](
            heading=heading, text=lambda one, _: sparkline(one.history, since, until, room, blocks)
        )
        return self.table((*columns, history), overview.consumers)

    def table(self, columns: Sequence[Column[Row]], rows: Sequence[Row]) -> Table:
        """Return a table of those columns for which there is room."""
        shown = [one for one in columns if self._wide or not one.wide]
        # Rich draws lines between cells where it may only use ASCII.
        lines, gap = (None, self._gap) if self._ascii else (box.SIMPLE_HEAD, self._gap - 1)
        drawn = Table(box=lines, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
        for one in shown:
            # Where it is narrow, names are cut and numbers are not.
            drawn.add_column(one.heading, justify="right" if one.right else "left", no_wrap=not one.name)
        for row in rows:
            drawn.add_row(*(self._cell(one, row) for one in shown))
        return drawn

    def _cell(self, column: Column[Row], row: Row) -> Text:
        cell = self.text(column.text(row, self._signs), "bold red" if column.wrong(row) else "")
        cell.no_wrap, cell.overflow = True, "crop" if self._ascii else "ellipsis"
        return cell


def sparkline(history: Sequence[tuple[float, int]], since: float, until: float, width: int, blocks: str) -> str:
    """Return lag from `since` to `until`, in seconds, as blocks; where it was not known yet, as blanks."""
    most = max((lag for _at, lag in history), default=0)
    drawn, known, rest = "", None, deque(history)
    for number in range(1, width + 1):
        while rest and rest[0][0] <= since + (until - since) * number / width:
            known = rest.popleft()[1]
        drawn += " " if known is None else blocks[(len(blocks) - 1) * known // most if most else 0]
    return drawn
