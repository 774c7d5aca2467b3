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
from .patience import Elsewhere, Outage
from .slices import Slice

if TYPE_CHECKING:
    from .deaths import Holding, Tenures
    from .gate import Gate

Place = tuple[str, int]
"""A topic and a partition."""


class Lane:
    """The messages of one partition that this worker has and has not settled."""

    __slots__ = (
        "at_end", "awaits", "bytes", "expected", "failing", "full", "halted", "held", "held_keys", "in_flight",
        "interrupted", "lost", "outage", "paused", "permit", "place", "reason", "resting", "running", "slices",
        "stored", "tenure", "until",
        "waits", "wary", "watermark",
    )  # fmt: skip

    def __init__(self, place: Place) -> None:
        self.place = place
        self.slices: deque[Slice] = deque()
        self.in_flight = 0
        """Messages in its slices."""
        self.bytes = 0
        """Their bytes."""
        self.expected: int | None = None
        """The offset that the next fetched message should have."""
        self.watermark: RawMessage | None = None
        """The last message of all slices that are settled whole."""
        self.stored = -1
        """The offset that was last handed to the client for committing."""
        self.running = False
        """Whether a handler thread has it."""
        self.halted = False
        """Whether no further message may be begun: the partition leaves, or the worker stops."""
        self.interrupted = False
        """Whether its thread may begin no further message now: it is halted, a circuit opened, another runs alone."""
        self.lost = False
        """Whether the partition belongs to somebody else, so that nothing may be stored for it."""
        self.held = False
        """Whether it waits: for an outage to end, or until its message is tried again."""
        self.waits = 0
        """How many times in a row it waited."""
        self.failing = 0
        """How many of its messages became dead letters, one after another."""
        self.reason = ""
        """What it waited for last."""
        self.outage: Outage | None = None
        """What its first message waits for, while it meets an outage."""
        self.permit: Permit | None = None
        """Leave of the circuit to begin some messages; None: it may begin all."""
        self.until: int | None = None
        """The index in its first slice up to which it may begin messages; None: all of them."""
        self.paused = False
        """Whether fetching for it is paused."""
        self.at_end = False
        """Whether the broker said that there is nothing more for now."""
        self.awaits = -1
        """The offset up to which this worker itself has sent messages here, so that there is more before that."""
        self.resting = False
        """Whether its next message is not due for long enough to fetch no more."""
        self.tenure: Holding | None = None
        """What `deaths` knows of it; None when nobody watches for deaths."""
        self.wary = False
        """Whether `deaths` must be asked before the next message."""
        self.held_keys: dict[bytes, int] | None = None
        """Keys that are held, or were lately, and how many messages are parked behind each at most; None: not read."""
        self.full = False
        """Whether it waits because as many messages of a key are parked as may be."""

    def __repr__(self) -> str:
        return f"<Lane {self.place[0]}[{self.place[1]}]>"

    def settled_message(self) -> RawMessage | None:
        """Return the last message below the watermark.

        Read by the poller while a handler thread writes: the finished slices last, so that one that is finished in
        between never leads back behind what was seen before.
        """
        try:
            first = self.slices[0]
        except IndexError:
            return self.watermark
        settled = first.settled
        return first.messages[settled - 1] if settled else self.watermark


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

    def expect(self, place: Place, offset: int) -> None:
        """Note that this worker sent a message to a partition, which may be its own."""
        if (lane := self._lanes.get(place)) is not None:
            lane.awaits = max(lane.awaits, offset)

    def open(self, place: Place) -> Lane:
        """Begin the lane of a partition that was assigned."""
        with self._changed:
            lane = self._lanes[place] = Lane(place)
            if self.tenures is not None:
                self.tenures.begin(lane)
            return lane

    def take(self, lane: Lane, messages: Sequence[RawMessage], size: int) -> None:
        """Append fetched messages to their lane."""
        with self._changed:
            lane.slices.append(Slice(messages, size))
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
