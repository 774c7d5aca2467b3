"""Lanes: the messages of each partition in order, handed over in slices, and the watermark below which all is settled.

The poller opens and halts lanes and gives them slices; handler threads take one lane at a time, work on its first
slice, and give it back. A lane is in at most one thread, which is what keeps its order.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from ..messages import RawMessage
from .breaker import NOTHING, Permit
from .circuits import Circuit
from .lane import Lane, Place
from .patience import Elsewhere
from .slices import Slice

if TYPE_CHECKING:
    from .deaths import Tenures
    from .gate import Gate


class Lanes:
    """All lanes of one consumer in one worker."""

    def __init__(self) -> None:
        self.tenures: Tenures | None = None
        """Who watches for deaths; None: nobody."""
        self.gate: Gate | None = None
        """What lets one lane of the process run alone."""
        self.circuit: Circuit | None = None
        """What pauses them when handlers fail too often; None: nothing does."""
        self.elsewhere = Elsewhere()
        """What is heard of the lanes of other workers."""
        self._lanes: dict[Place, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._waiting: list[tuple[float, int, Lane]] = []
        self._stirred: set[Lane] = set()
        self._order = 0
        self._changed = threading.Condition()
        self._closed = False
        self.in_flight = 0
        """Messages in all lanes that are in slices not finished."""
        self.bytes = 0
        """Their bytes."""

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes.values()))

    def __len__(self) -> int:
        return len(self._lanes)

    def get(self, place: Place) -> Lane | None:
        """Return the lane of a partition, if it is ours."""
        return self._lanes.get(place)

    def stirred(self) -> list[Lane]:
        """Return the lanes that run or have changed since this was asked last: of 1,000 that wait, none."""
        with self._changed:
            # A thread may have given back one that left meanwhile: its offsets are not ours to store.
            found = [lane for lane in self._stirred if self._lanes.get(lane.place) is lane]
            self._stirred = {lane for lane in found if lane.running}
        return found

    def expect(self, place: Place, offset: int) -> None:
        """Note that this worker sent a message to a partition, which may be its own."""
        if (lane := self._lanes.get(place)) is not None:
            lane.awaits = max(lane.awaits, offset)

    def open(self, place: Place) -> Lane:
        """Begin the lane of a partition that was assigned."""
        with self._changed:
            lane = self._lanes[place] = Lane(place)
            self._stirred.add(lane)
            if self.tenures is not None:
                self.tenures.begin(lane)
            return lane

    def take(self, lane: Lane, messages: Sequence[RawMessage], size: int) -> None:
        """Append fetched messages to their lane."""
        with self._changed:
            lane.slices.append(Slice(messages, size))
            self._stirred.add(lane)
            self._count(lane, len(messages), size)
            if not (lane.running or lane.held or lane.halted) and len(lane.slices) == 1:
                self._ready.append(lane)
                self._changed.notify()

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
                        self._stirred.add(lane)
                        return lane
                due = self._waiting[0][0] if self._waiting else deadline
                if shut and self.circuit is not None:
                    due = min(due, time.monotonic() + self.circuit.pause())
                remaining = min(due, deadline) - time.monotonic()
                if remaining <= 0 and due >= deadline:
                    return None
                self._changed.wait(max(remaining, 0))
        return None

    def _only(self) -> Lane | None:
        return None if self.gate is None else self.gate.only

    def _permitted(self, lane: Lane) -> bool:
        """Ask the circuit whether a lane may begin messages, and how many."""
        assert self.circuit is not None
        answer = self.circuit.admit()
        lane.permit = answer if isinstance(answer, Permit) else None
        return answer is not False

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

    def interrupt(self) -> None:
        """Let the lanes that run begin no further message before they are taken again."""
        with self._changed:
            for lane in self._lanes.values():
                lane.interrupted = lane.interrupted or lane.running

    def interrupt_beside(self, only: Lane) -> int:
        """Let no further message begin now in other lanes than `only`; return how many still run."""
        with self._changed:
            others = [lane for lane in self._lanes.values() if lane.running and lane is not only]
            for lane in others:
                lane.interrupted = True
            return len(others)

    def wake(self) -> None:
        """Have all threads that wait for a lane look again."""
        with self._changed:
            self._changed.notify_all()

    def _wake_due(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            lane = heapq.heappop(self._waiting)[2]
            if lane.held and not lane.halted:
                lane.held = False
                self._ready.append(lane)

    def give_back(self, lane: Lane, *, wait: float | None = None) -> None:
        """End the calling thread's work on a lane; with `wait` nobody takes it for so many seconds."""
        with self._changed:
            lane.running = False
            self._stirred.add(lane)
            lane.interrupted = lane.halted
            lane.permit = lane.until = None
            first = lane.slices[0] if lane.slices else None
            if first is not None and first.settled == len(first.messages):
                lane.watermark = first.messages[-1]
                lane.slices.popleft()
                self._count(lane, -len(first.messages), -first.size)
            if lane.lost:
                self._empty(lane)
            if not lane.halted and lane.slices:
                if wait is None:
                    self._ready.append(lane)
                else:
                    lane.held = True
                    self._order += 1
                    heapq.heappush(self._waiting, (time.monotonic() + wait, self._order, lane))
            self._changed.notify_all()

    def halt(self, places: Collection[Place] | None = None) -> list[Lane]:
        """Let no further message begin in these lanes (None: in all) and return them."""
        with self._changed:
            lanes = [lane for place, lane in self._lanes.items() if places is None or place in places]
            for lane in lanes:
                lane.halted = lane.interrupted = True
                lane.held = False
            self._changed.notify_all()
        return lanes

    def drain(self, lanes: Collection[Lane], timeout: float | None) -> bool:
        """Wait up to `timeout` seconds until no thread works on these lanes; tell whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not any(lane.running for lane in lanes), timeout)

    def drop(self, lanes: Collection[Lane]) -> None:
        """Forget lanes that left; what they have not settled belongs to the next owner."""
        with self._changed:
            for lane in lanes:
                lane.lost = True
                if self._lanes.get(lane.place) is lane:
                    del self._lanes[lane.place]
                self._empty(lane)
            self._changed.notify_all()
        if self.tenures is not None:
            self.tenures.leave(lanes)

    def _empty(self, lane: Lane) -> None:
        keep = 1 if lane.running else 0
        while len(lane.slices) > keep:
            dropped = lane.slices.pop()
            self._count(lane, -len(dropped.messages), -dropped.size)

    def _count(self, lane: Lane, messages: int, size: int) -> None:
        lane.in_flight += messages
        lane.bytes += size
        self.in_flight += messages
        self.bytes += size

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
