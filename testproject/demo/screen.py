"""What the demo shows while it runs."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

OVER = 3.0
"""Seconds that the rate is the mean of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Where the flights are."""

    sent: int
    """Acknowledged by Kafka."""
    handled: int
    """Rows of flights in the database."""
    dead_lettered: int
    """Rows of dead letters in the database."""
    waiting: int
    """Sent, and not committed by the worker's group."""


class Screen:
    """A progress bar over a table of numbers."""

    def __init__(self, total: int) -> None:
        self._progress = Progress(
            TextColumn("Flights settled"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._task = self._progress.add_task("", total=total)
        self._seen: deque[tuple[float, int]] = deque()

    def show(self, numbers: Numbers) -> Group:
        """Return what to draw for these numbers, now."""
        settled = numbers.handled + numbers.dead_lettered
        self._progress.update(self._task, completed=settled)
        table = Table(expand=True)
        for heading in ("sent", "handled", "dead-lettered", "waiting", "messages/s"):
            table.add_column(heading, justify="right")
        values = (numbers.sent, numbers.handled, numbers.dead_lettered, numbers.waiting, self._rate(settled))
        table.add_row(*(f"{value:,}" for value in values))
        return Group(self._progress, table)

    def _rate(self, settled: int) -> int:
        now = time.monotonic()
        self._seen.append((now, settled))
        while len(self._seen) > 2 and self._seen[1][0] < now - OVER:
            self._seen.popleft()
        then, before = self._seen[0]
        return round((settled - before) / (now - then)) if now > then else 0
