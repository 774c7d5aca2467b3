"""Turns: which lane a thread works on next, and when."""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from .bell import Bell
from .breaker import NOTHING, Permit
from .circuits import Circuit
from .lane import Lane
from .partition import Partition

if TYPE_CHECKING:
    from .gate import Gate

_QUICK = 50e-6
"""Seconds for a message: what takes less waits for nothing, not even for a database, and gains nothing by threads."""
_SLOW = 1e-3
"""Seconds for a message: of what takes longer, keys that share a lane are told apart for threads without work."""


class Turns:
    """Lanes that are ready, or wait for a time, and the threads that wait for one."""

    def __init__(self) -> None:
        self.gate: Gate | None = None
        """What lets one lane of the process run alone."""
        self.circuit: Circuit | None = None
        """What pauses them when handlers fail too often; None: nothing does."""
        self._ready: deque[Lane] = deque()
        self._waiting: list[tuple[float, int, Lane]] = []
        self._stirred: set[Partition] = set()
        """Partitions that run or have changed."""
        self._order = 0
        self._lock = lock = threading.RLock()
        self._changed = threading.Condition(lock)
        # A condition of their own: a worker may have hundreds of threads, and one lane is work for one of them.
        self._work = threading.Condition(lock)
        self.idle = 0
        """How many threads wait for a lane, or places of an event loop are free."""
        self._busy = 0
        self._pace = 1.0
        """Seconds for a message, as of late."""
        self._closed = False

    def _offer(self, lanes: Collection[Lane]) -> None:
        """Let threads take lanes that have messages now."""
        free = [lane for lane in lanes if not lane.halted]
        self._ready.extend(free)
        # Threads that handle quickly only take the interpreter from each other.
        if self._pace > _QUICK or not self._busy:
            self._work.notify(len(free))

    def next(self, timeout: float) -> Lane | None:
        """Return a lane to work on, for the calling thread alone; None after `timeout` seconds without one."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._closed:
                self._wake_due()
                shut = False
                while self._ready:
                    lane = self._ready.popleft()
                    if (only := self._only()) is not None and lane is not only:
                        if only not in self._ready:
                            self._ready.appendleft(lane)
                            break
                        self._ready.append(lane)
                        continue
                    if not lane.halted and lane.slices:
                        if self.circuit is not None and self.circuit.limited and not self._permitted(lane):
                            self._ready.appendleft(lane)
                            settling = self._next_to_settle()
                            if settling is None:
                                shut = True
                                break
                            lane = settling
                        lane.running = True
                        lane.taken = lane.slices[0].done, time.monotonic()
                        lane.partition.busy += 1
                        self._busy += 1
                        self._stirred.add(lane.partition)
                        if self._waiting:
                            # It may have been the one that would have woken when the next wait ends.
                            self._work.notify()
                        return lane
                if timeout and not self._ready and self._pace > _SLOW and self._relieve():
                    continue
                due = self._waiting[0][0] if self._waiting else deadline
                if shut and self.circuit is not None:
                    due = min(due, time.monotonic() + self.circuit.pause())
                remaining = min(due, deadline) - time.monotonic()
                if remaining <= 0 and due >= deadline:
                    return None
                self.idle += 1
                self._work.wait(max(remaining, 0))
                self.idle -= 1
        return None

    def _relieve(self) -> bool:
        """Make a lane of what waits behind another; tell whether there was any."""
        return False

    def _permitted(self, lane: Lane) -> bool:
        """Ask the circuit whether a lane may begin messages, and how many."""
        assert self.circuit is not None
        answer = self.circuit.admit()
        lane.permit = answer if isinstance(answer, Permit) else None
        return answer is not False

    def _only(self) -> Lane | None:
        return None if self.gate is None else self.gate.only

    def _next_to_settle(self) -> Lane | None:
        """Take a lane out that has letters to store or records to wait for, although it may begin nothing."""
        if self._only() is not None:
            return None
        for lane in self._ready:
            first = lane.slices[0] if lane.slices and not lane.halted else None
            if first is not None and (first.failed or first.sent):
                self._ready.remove(lane)
                lane.permit = NOTHING
                return lane
        return None

    def _go_on(self, lane: Lane, wait: float | None) -> None:
        if wait is None:
            self._offer([lane])
            return
        lane.held = True
        self._order += 1
        heapq.heappush(self._waiting, (time.monotonic() + wait, self._order, lane))
        self._work.notify()

    def _wake_due(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            lane = heapq.heappop(self._waiting)[2]
            if lane.held and not lane.halted:
                lane.held = False
                self._ready.append(lane)

    def ring(self, call: Callable[[], None]) -> None:
        """Have `call` called, with locks held, when there may be a lane to take, instead of waking threads."""
        with self._changed:
            self._work = Bell(self._lock, call)

    def due_in(self) -> float:
        """Return after how many seconds, one at most, to ask for a lane again though nobody has rung."""
        with self._changed:
            due = self._waiting[0][0] - time.monotonic() if self._waiting else 1.0
            if self._ready and self.circuit is not None and self.circuit.limited:
                due = min(due, self.circuit.pause())
        return min(max(due, 0.0), 1.0)

    def wake(self) -> None:
        """Have all threads that wait for a lane look again."""
        with self._changed:
            self._work.notify_all()

    def wait_for_room(self, has_room: Callable[[], bool], timeout: float) -> bool:
        """Wait up to `timeout` seconds until `has_room()`; tell whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or has_room(), timeout)

    @property
    def closed(self) -> bool:
        """Whether there will be no more work."""
        return self._closed

    def close(self) -> None:
        """Send all threads that wait for a lane home."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._work.notify_all()
