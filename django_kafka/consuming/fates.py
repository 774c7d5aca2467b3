"""What became of the worker whose name stands in a tenure: told by its heartbeats."""

from __future__ import annotations

import time
from datetime import datetime
from enum import Enum, auto

from ..models import Worker
from ..monitoring.heartbeats import is_alive, silence, with_clock

KILLED = "killed"
"""Stands for the name of a worker that a message stopped, which nobody hears of."""


class Fate(Enum):
    """What is known of a worker."""

    ALIVE = auto()
    DEAD = auto()
    UNKNOWN = auto()


class Former:
    """The former worker of a partition, as the next one sees it."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: tuple[datetime, float] | None = None
        """When it was last heard of at our first look, and when that was by the monotonic clock."""

    def fate(self, worker: str, database: str) -> Fate:
        """Tell what became of it.

        Its row is gone when it was stopped by a message, or died long ago: an orderly end takes its name out first.
        """
        row = with_clock(Worker.objects.using(database)).filter(pk=worker).first()
        if row is None:
            return Fate.DEAD
        now = time.monotonic()
        if self._seen is None:
            self._seen = row.seen_at, now
        if row.seen_at != self._seen[0]:
            return Fate.ALIVE
        # The clock of the database may have been set back: its silence counts as well.
        silent = now - self._seen[1] > silence().total_seconds()
        return Fate.DEAD if silent or not is_alive(row) else Fate.UNKNOWN

    def pause(self) -> float:
        """Return how many seconds to wait before the next look."""
        # Soon at first: in an orderly rebalance the former worker is about to take its name out.
        waited = time.monotonic() - self._seen[1] if self._seen is not None else 0.0
        return min(max(0.05, waited), 1.0, silence().total_seconds() / 6)
