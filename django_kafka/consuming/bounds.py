"""Bounds: how much may be in a worker, and which partitions are paused so that it stays so.

For the poller's thread alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection

from .. import conf
from .lane import Place
from .lanes import Lanes
from .partition import Partition

_SKIP = 1.0
"""Seconds for which a full worker only leaves off fetching. A pause would throw prefetched messages away."""
_WAITS_BEFORE_PAUSE = 3


class Bounds:
    """Keeps messages and bytes of one consumer within `max_in_flight` and `max_in_flight_bytes`."""

    def __init__(self, consumer: conf.Consumer, lanes: Lanes) -> None:
        self.full = False
        """Whether partitions are paused because there is no room, so that polling can go on."""
        self._consumer = consumer
        self._lanes = lanes
        self._full_since: float | None = None
        self._usual_size = math.inf
        """Bytes of a message, as in the last fetch; unknown at first, so that the first fetch takes one message."""

    def held(self) -> tuple[int, int]:
        """Return how many messages are here, and their bytes."""
        return self._lanes.in_flight, self._lanes.bytes

    def held_of(self, partition: Partition) -> tuple[int, int]:
        """Return the same of one partition."""
        return partition.in_flight, partition.bytes

    def room(self) -> int:
        """Return how many messages may be fetched now."""
        count, size = self.held()
        left = self._consumer.max_in_flight_bytes - size
        if left <= 0:
            return 0
        room = min(self._consumer.max_in_flight - count, self._consumer.max_poll_records)
        return max(0, min(room, max(1, int(left / self._usual_size))))

    def fetched(self, count: int, size: int) -> None:
        """Note how many messages a fetch brought, and their bytes."""
        self._usual_size = max(1.0, size / count)

    def found_room(self) -> None:
        """Note that fetching goes on."""
        self._full_since = None

    def left_off(self) -> None:
        """Note that nothing is fetched for now. When that lasts, partitions are to be paused."""
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        elif now - self._full_since >= _SKIP:
            self.full = True

    def below_low_mark(self) -> bool:
        """Tell whether so little is here that fetching pays again."""
        count, size = self.held()
        return count <= self._consumer.max_in_flight / 2 and size <= self._consumer.max_in_flight_bytes / 2

    def changes(self, partitions: Collection[Partition], *, enough: bool) -> tuple[list[Place], list[Place]]:
        """Return which partitions to pause and which to resume, and note it; with `enough` nothing more is fetched.

        Those wait that wait for something else and, when the worker is full, those that fill it.
        """
        if self.full and self.below_low_mark() and not enough:
            self.full = False
        pause: list[Place] = []
        resume: list[Place] = []
        for partition in partitions:
            waits = partition.resting or partition.waits >= _WAITS_BEFORE_PAUSE
            wanted = waits or enough or (self.full and self._fills(partition))
            if wanted != partition.paused:
                partition.paused = wanted
                (pause if wanted else resume).append(partition.place)
        return pause, resume

    def _fills(self, partition: Partition) -> bool:
        """Tell whether a partition holds its share of a full worker.

        The others go on: one that is stuck must not stop them.
        What they fetch may go beyond `max_in_flight`, by half of it at the most.
        """
        share = 2 * len(self._lanes) * (2 if partition.paused else 1)
        count, size = self.held_of(partition)
        return count > self._consumer.max_in_flight // share or size > self._consumer.max_in_flight_bytes // share
