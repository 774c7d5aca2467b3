"""The lanes of a worker: who may work on which one next.

The poller opens and halts partitions and gives them what was fetched; handler threads take one lane at a time, work on
its first slice, and give it back. A lane is in at most one thread, which is what keeps its order.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

from ..messages import RawMessage
from .bell import Bell
from .breaker import NOTHING, Permit
from .circuits import Circuit
from .lane import Lane, Place
from .partition import Partition
from .patience import Elsewhere
from .slices import Slice

if TYPE_CHECKING:
    from .deaths import Tenures
    from .gate import Gate


_QUICK = 50e-6
"""Seconds for a message: what takes less waits for nothing, not even for a database, and gains nothing by threads."""
_SLOW = 1e-3
"""Seconds for a message: of what takes longer, keys that share a lane are told apart for threads without work."""
_SMOOTHED = 10
"""Turns of threads over which the time for a message is averaged."""


class Lanes:
    """All partitions of one consumer in one worker, and their lanes."""

    def __init__(self, ordering: str = "partition", width: int = 1, in_order: Collection[str] = ()) -> None:
        """`width` is how many lanes a partition is dealt to; topics of `in_order` are not, whatever the ordering."""
        self._ordering = ordering
        self.splits = ordering != "partition"
        """Whether it has partitions whose messages are dealt to lanes."""
        self._width = width
        self._in_order = frozenset(in_order)
        self.tenures: Tenures | None = None
        """Who watches for deaths; None: nobody."""
        self.gate: Gate | None = None
        """What lets one lane of the process run alone."""
        self.circuit: Circuit | None = None
        """What pauses them when handlers fail too often; None: nothing does."""
        self.elsewhere = Elsewhere()
        """What is heard of the lanes of other workers."""
        self._partitions: dict[Place, Partition] = {}
        self._ready: deque[Lane] = deque()
        self._waiting: list[tuple[float, int, Lane]] = []
        self._stirred: set[Partition] = set()
        self._order = 0
        self._lock = lock = threading.RLock()
        self._changed = threading.Condition(lock)
        # A condition of their own: a worker may have hundreds of threads, and one lane is work for one of them.
        self._work = threading.Condition(lock)
        self.idle = 0
        """How many threads wait for a lane, or places of an event loop are free."""
        self._busy = 0
        self._pace = 1.0
        self._closed = False
        self.in_flight = 0
        """Messages in all lanes that are in slices not finished."""
        self.bytes = 0
        """Their bytes."""

    def __iter__(self) -> Iterator[Partition]:
        return iter(list(self._partitions.values()))

    def __len__(self) -> int:
        return len(self._partitions)

    def get(self, place: Place) -> Partition | None:
        """Return a partition, if it is ours."""
        return self._partitions.get(place)

    def stirred(self) -> list[Partition]:
        """Return the partitions that run or have changed since this was asked last: of 1,000 that wait, none."""
        with self._changed:
            # A thread may have given back one that left meanwhile: its offsets are not ours to store.
            found = [one for one in self._stirred if self._partitions.get(one.place) is one]
            self._stirred = {one for one in found if one.busy}
        return found

    def expect(self, place: Place, offset: int) -> None:
        """Note that this worker sent a message to a partition, which may be its own."""
        if (partition := self._partitions.get(place)) is not None:
            partition.awaits = max(partition.awaits, offset)

    def open(self, place: Place) -> Partition:
        """Begin a partition that was assigned."""
        with self._changed:
            ordering = "partition" if place[0] in self._in_order else self._ordering
            partition = self._partitions[place] = Partition(place, ordering, self._width)
            self._stirred.add(partition)
            if self.tenures is not None:
                self.tenures.begin(partition)
            return partition

    def take(self, partition: Partition, messages: list[RawMessage], size: int) -> None:
        """Append fetched messages to the lanes of their partition."""
        with self._changed:
            self._stirred.add(partition)
            fetched = messages
            if partition.done_before:
                messages = partition.undone(messages)
            if partition.splits:
                # With those that were settled before: the watermark has to pass them.
                self._count(partition, len(fetched), size)
                partition.fetch(fetched, size)
            elif messages:
                self._count(partition, len(messages), size)
            if partition.dealing:
                self._offer(partition.deal(messages))
            elif messages:
                partition.slices.append(Slice(messages, size))
                if len(partition.slices) == 1:
                    partition.occupied.add(partition)
                    if not (partition.running or partition.held):
                        self._offer([partition])
            if self._ready:
                # All that work may be at messages that take long.
                self._work.notify()

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

    def width(self) -> int:
        """Return how many lanes there are for messages."""
        return sum(one.width if one.splits else 1 for one in self)

    def waiting(self) -> int:
        """Return how many of them wait for an outage to end."""
        return sum(lane.outage is not None for one in self for lane in one.lanes)

    def interrupt(self) -> None:
        """Let the lanes that run begin no further message before they are taken again."""
        with self._changed:
            for lane in self._all():
                lane.interrupted = lane.interrupted or lane.running

    def _all(self) -> Iterator[Lane]:
        return chain.from_iterable(partition.lanes for partition in self._partitions.values())

    def interrupt_beside(self, only: Lane) -> int:
        """Let no further message begin now in other lanes than `only`; return how many still run."""
        with self._changed:
            others = [lane for lane in self._all() if lane.running and lane is not only]
            for lane in others:
                lane.interrupted = True
            return len(others)

    def wake(self) -> None:
        """Have all threads that wait for a lane look again."""
        with self._changed:
            self._work.notify_all()

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
            partition = lane.partition
            lane.running = False
            partition.busy -= 1
            self._busy -= 1
            self._stirred.add(partition)
            lane.interrupted = lane.halted
            lane.permit = lane.until = None
            begun = self._finish(lane)
            if partition.lost:
                self._empty(partition)
            elif begun and lane is partition and partition.may_split():
                self._offer(partition.split())
            elif wait and (lane.full or not lane.waits):
                # What fails by itself waits by itself; an outage is waited for by all.
                self._set_apart(lane)
            if not lane.slices:
                partition.vacate(lane)
            elif not lane.halted:
                self._go_on(lane, wait)
            if self.circuit is not None and self.circuit.limited:
                self._work.notify_all()
            self._changed.notify_all()

    def _finish(self, lane: Lane) -> bool:
        """Be done with the first slice of a lane if it is settled; tell whether any of it is done."""
        first = lane.slices[0] if lane.slices else None
        if first is None:
            return False
        before, since = lane.taken
        if first.done > before:
            self._pace += ((time.monotonic() - since) / (first.done - before) - self._pace) / _SMOOTHED
        if first.settled == len(first.messages):
            lane.slices.popleft()
            if not lane.partition.splits:
                lane.partition.watermark = first.messages[-1]
                self._count(lane.partition, -len(first.messages), -first.size)
        return first.done > 0

    def _go_on(self, lane: Lane, wait: float | None) -> None:
        if wait is None:
            self._offer([lane])
            return
        lane.held = True
        self._order += 1
        heapq.heappush(self._waiting, (time.monotonic() + wait, self._order, lane))
        self._work.notify()

    def _set_apart(self, lane: Lane) -> None:
        if lane.partition.dealing and lane.slices and (rest := lane.partition.set_apart(lane)) is not None:
            self._offer([rest])

    def spread(self, partitions: Collection[Partition]) -> None:
        """While threads are idle, set apart what ran at the last look already, and holds up others behind it."""
        with self._changed:
            if not self.idle:
                return
            if self._ready:
                # The threads at work are too few for what there is: one of them may be at a message that takes long.
                self._work.notify()
                return
            for partition in partitions:
                for lane in list(partition.occupied) if partition.dealing else ():
                    if not lane.running or lane.halted or lane.number is None:
                        continue
                    first = lane.slices[0]
                    now = first, first.done
                    if lane.seen is not None and lane.seen[0] is first and lane.seen[1] == first.done:
                        # First, so that its thread begins nothing after the message that runs now.
                        lane.interrupted = True
                        if lane.several:
                            # Their keys run in one transaction: it ends after the message that runs.
                            continue
                        self._set_apart(lane)
                    lane.seen = now

    def _relieve(self) -> bool:
        """Make a lane of what waits behind the longest of those that run; tell whether there was any.

        Keys that share a lane wait for each other without need when threads have nothing else to do.
        """
        partitions = [partition for partition in self._partitions.values() if partition.dealing]
        running = [
            lane for lane in chain.from_iterable(partition.occupied for partition in partitions)
            if lane.running and lane.number is not None and not (lane.halted or lane.several)
        ]  # fmt: skip
        longest = max(running, key=attrgetter("behind"), default=None)
        if longest is None or longest.behind <= 0:
            return False
        # First, as in `spread`.
        longest.interrupted = True
        if not longest.several:
            self._set_apart(longest)
        return bool(self._ready)

    def settled(self, partition: Partition) -> RawMessage | None:
        """Return the last message below the watermark of a partition; for the poller."""
        if not partition.splits:
            return partition.settled_message()
        with self._changed:
            if not partition.lost:
                messages, size = partition.advance()
                self._count(partition, -messages, -size)
            return partition.watermark

    def halt(self, places: Collection[Place] | None = None) -> list[Partition]:
        """Let no further message begin in these partitions (None: in all) and return them."""
        with self._changed:
            partitions = [one for place, one in self._partitions.items() if places is None or place in places]
            for lane in chain.from_iterable(partition.lanes for partition in partitions):
                lane.halted = lane.interrupted = True
                lane.held = False
            self._changed.notify_all()
        return partitions

    def drain(self, partitions: Collection[Partition], timeout: float | None) -> bool:
        """Wait up to `timeout` seconds until no thread works on these partitions; tell whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not any(one.busy for one in partitions), timeout)

    def drop(self, partitions: Collection[Partition]) -> None:
        """Forget partitions that left; what they have not settled belongs to the next owner."""
        with self._changed:
            for partition in partitions:
                partition.lost = True
                if self._partitions.get(partition.place) is partition:
                    del self._partitions[partition.place]
                self._empty(partition)
            self._changed.notify_all()
        if self.tenures is not None:
            self.tenures.leave(partitions)

    def _empty(self, partition: Partition) -> None:
        partition.forget()
        left = [piece for lane in partition.lanes for piece in lane.slices]
        messages, size = sum(len(piece.messages) for piece in left), sum(piece.size for piece in left)
        self._count(partition, messages - partition.in_flight, size - partition.bytes)

    def _count(self, partition: Partition, messages: int, size: int) -> None:
        partition.in_flight += messages
        partition.bytes += size
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
            self._work.notify_all()
