"""The lanes of a worker: what they have, and how far they are.

The poller opens and halts partitions and gives them what was fetched; handler threads take one lane at a time, work on
its first slice, and give it back. A lane is in at most one thread, which is what keeps its order.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

from ..messages import RawMessage
from .lane import Lane, Place
from .partition import Partition
from .patience import Elsewhere
from .slices import Slice
from .turns import Turns

if TYPE_CHECKING:
    from .deaths import Tenures

_SMOOTHED = 10
"""Turns of threads over which the time for a message is averaged."""


class Lanes(Turns):
    """All partitions of one consumer in one worker, and their lanes."""

    def __init__(self, ordering: str = "partition", width: int = 1, in_order: Collection[str] = ()) -> None:
        """`width` is how many lanes a partition is dealt to; topics of `in_order` are not, whatever the ordering."""
        super().__init__()
        self._ordering = ordering
        self.splits = ordering != "partition"
        """Whether it has partitions whose messages are dealt to lanes."""
        self._width = width
        self._in_order = frozenset(in_order)
        self.tenures: Tenures | None = None
        """Who watches for deaths; None: nobody."""
        self.elsewhere = Elsewhere()
        """What is heard of the lanes of other workers."""
        self._partitions: dict[Place, Partition] = {}
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
