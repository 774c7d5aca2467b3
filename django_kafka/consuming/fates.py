"""What became of the worker whose name stands in a tenure: told by its heartbeats."""

from __future__ import annotations

import time
from datetime import datetime
from enum import Enum, auto

from .. import conf
from ..models import Worker
from ..monitoring.heartbeats import STALE_AFTER, alive_since

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
        seen_at = Worker.objects.using(database).filter(pk=worker).values_list("seen_at", flat=True).first()
        if seen_at is None:
            return Fate.DEAD
        now = time.monotonic()
        if self._seen is None:
            self._seen = seen_at, now
        if seen_at != self._seen[0]:
            return Fate.ALIVE
        # Its clock may be ahead of ours: its silence counts as well.
        silent = now - self._seen[1] > conf.kafka().heartbeats.interval * STALE_AFTER
        return Fate.DEAD if silent or seen_at < alive_since() else Fate.UNKNOWN

    def pause(self) -> float:
        """Return how many seconds to wait before the next look."""
        # Soon at first: in an orderly rebalance the former worker is about to take its name out.
        waited = time.monotonic() - self._seen[1] if self._seen is not None else 0.0
        return min(max(0.05, waited), 1.0, conf.kafka().heartbeats.interval / 2)
