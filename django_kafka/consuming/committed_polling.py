"""Polling where messages are committed before they are handled: a crash loses some, and repeats none."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

from .. import logs
from .bounds import Bounds
from .commits import Commits
from .lane import Place
from .partition import Partition
from .polling import Poller

log = logs.of(__name__)

_MOMENT = 0.005
"""Seconds for which fetching is left off to see whether a partition is done with what it has."""
_AGAIN = 0.5
"""Seconds after which a commit that was refused is made again."""
_POLL, _LEAVING = 0.1, 0.01
"""As in `polling`."""

_Group = tuple[list[Any], int]
"""Messages of one partition that were fetched together, and their bytes."""


class CommittingPoller(Poller):
    """Commits the messages of one fetch of a partition, hands them out, and commits the next when those are done.

    So what a crash loses is one fetch of each partition at the most.
    """

    def __init__(self, *about: Any, **bounds: Any) -> None:
        super().__init__(*about, **bounds)
        self._commits = _Nothing(self._client, self.lanes)
        self._bounds = _Bounds(self)
        self.queues: dict[Partition, deque[_Group]] = {}
        """What was fetched, and is not committed."""
        self._asked: dict[Partition, _Group] = {}
        """What the group was asked to commit."""
        self.queued = self.queued_bytes = 0
        """Messages in both, and their bytes."""
        self._again = math.inf
        self._certain = False
        """Whether a commit that finds nothing to do tells that the one before was taken."""

    def _turn(self) -> None:
        waits = bool(self.queued)
        if waits:
            self.lanes.wait_for_room(self._some_free, _MOMENT)
        self._patience = 0.0 if waits else _POLL
        super()._turn()
        self._release()

    def _give(self, partition: Partition, messages: list[Any], size: int) -> None:
        self.queues.setdefault(partition, deque()).append((messages, size))
        self.queued += len(messages)
        self.queued_bytes += size

    def _free(self) -> list[Partition]:
        return [one for one in self.queues if one not in self._asked and not one.in_flight]

    def _some_free(self) -> bool:
        return not self._client.committing and bool(self._free())

    def _release(self) -> None:
        """Have the next messages committed of partitions that are done with what they had.

        One commit at a time: one that the client sends again would overtake a later one, and the group would be back
        at messages that are handled.
        """
        if self._client.committing:
            return
        moved: dict[Place, Any] = {}
        for partition in self._free():
            queue = self.queues[partition]
            self._asked[partition] = queue.popleft()
            if not queue:
                del self.queues[partition]
            moved[partition.place] = self._asked[partition][0][-1]
        if time.monotonic() >= self._again:
            moved |= {one.place: messages[-1] for one, (messages, _size) in self._asked.items()}
        if not moved:
            return
        self._again = math.inf
        for place in self._client.store(moved):
            if (partition_ := self.lanes.get(place)) is not None:
                self._forget(partition_)
        self._client.commit(wait=False)

    def committed(self, offsets: Mapping[Place, int], refused: str | None, sentence: str) -> None:
        """Hand out what the group has committed; ask again for what it has not."""
        super().committed(offsets, refused, sentence)
        all_taken = self._certain and not offsets and refused is None
        for partition, (messages, size) in list(self._asked.items()):
            if all_taken or offsets.get(partition.place, -1) > (messages[-1].offset() or 0):
                del self._asked[partition]
                self.queued -= len(messages)
                self.queued_bytes -= size
                self.lanes.take(partition, messages, size)
        if refused is not None:
            self._again = time.monotonic() + _AGAIN

    def _forget(self, partition: Partition) -> None:
        """Drop what is not committed: whoever has the partition next reads it."""
        groups = [*self.queues.pop(partition, ()), *filter(None, [self._asked.pop(partition, None)])]
        self.queued -= sum(len(messages) for messages, _size in groups)
        self.queued_bytes -= sum(size for _messages, size in groups)

    def revoked(self, places: list[Place], lost: bool) -> None:
        """Handle what is committed of partitions that leave, as long as there is time, and forget the rest."""
        leaving = [one for place in places if (one := self.lanes.get(place)) is not None]
        for partition in leaving:
            if (queue := self.queues.pop(partition, None)) is not None:
                self.queued -= sum(len(messages) for messages, _size in queue)
                self.queued_bytes -= sum(size for _messages, size in queue)
        try:
            if not lost:
                self._see_through(leaving)
        finally:
            for partition in leaving:
                self._forget(partition)
            self._tell_losses(leaving)
        super().revoked(places, lost)

    def _see_through(self, partitions: Collection[Partition]) -> None:
        if any(one in self._asked for one in partitions):
            self._certain = True
            try:
                self._client.commit(wait=True)
            finally:
                self._certain = False
        self.lanes.wait_for_room(lambda: all(map(self._is_through, partitions)), self._drain_at_most / 2)

    def _tell_losses(self, partitions: Collection[Partition]) -> None:
        left = sum(_left(one) for one in partitions)
        if left:
            log.warning(
                "consumer=%s %s messages are committed and not handled, and nobody will: %s",
                self.consumer.name, left, ", ".join(f"{one.place[0]}[{one.place[1]}]" for one in partitions),
            )  # fmt: skip

    def _leave(self) -> None:
        """Handle what is committed, then leave."""
        partitions = list(self.lanes)
        deadline = time.monotonic() + self._drain_at_most
        try:
            self._client.pause([one.place for one in partitions])
            for partition in partitions:
                if partition not in self._asked:
                    self._forget(partition)
            while time.monotonic() < deadline and not all(map(self._has_ended, partitions)):
                self._client.fetch(1, _LEAVING)
                self._commits.settle(partitions)
            self._tell_losses([one for one in partitions if not one.lost])
        except Exception:
            log.exception("consumer=%s what is committed could not be handled", self.consumer.name)
        finally:
            self.queues.clear()
            self._asked.clear()
            super()._leave()

    def set_aside(self, partition: Partition) -> int | None:
        """Forget what of a partition is not committed, and finish the rest; return the offset of the first of those."""
        queue = self.queues.pop(partition, None)
        if queue is None:
            return partition.expected
        self.queued -= sum(len(messages) for messages, _size in queue)
        self.queued_bytes -= sum(size for _messages, size in queue)
        first: int = queue[0][0][0].offset()
        return first

    def is_through(self, partition: Partition) -> bool:
        """Tell whether everything of it that is committed is handled: nobody else would."""
        return not (partition in self._asked or partition.in_flight or partition.busy)

    def conclude(self, partition: Partition) -> tuple[int | None, set[int]]:
        """Return nothing that is not known: what is handled was committed before."""
        return None, set()

    def _has_ended(self, partition: Partition) -> bool:
        # A commit that is refused while the worker leaves is not made again: the next owner reads what it was for.
        asked = partition in self._asked and self._again == math.inf
        return partition.lost or not (asked or not self._is_through(partition))

    def _is_through(self, partition: Partition) -> bool:
        """Tell whether everything of a partition is handled, but what waits."""
        if partition.busy:
            return False
        if self.lanes.circuit is not None and self.lanes.circuit.limited:
            return True
        return all(one.held or one.halted or not one.slices for one in partition.lanes)

    def _finished(self) -> bool:
        return not self.queued and super()._finished()

    def _wait_for_room(self) -> None:
        """Leave off fetching until a partition may have its next messages, but not for long."""
        self._bounds.left_off()
        self.lanes.wait_for_room(self._some_free, _MOMENT)


def _left(partition: Partition) -> int:
    return sum(len(piece.messages) - piece.done for lane in partition.lanes for piece in lane.slices)


class _Bounds(Bounds):
    """Counts what is fetched and not handed out as well."""

    def __init__(self, poller: CommittingPoller) -> None:
        super().__init__(poller.consumer, poller.lanes)
        self._poller = poller

    def held(self) -> tuple[int, int]:
        count, size = super().held()
        return count + self._poller.queued, size + self._poller.queued_bytes

    def held_of(self, partition: Partition) -> tuple[int, int]:
        count, size = super().held_of(partition)
        queue = self._poller.queues.get(partition, ())
        return count + sum(len(messages) for messages, _size in queue), size + sum(size for _messages, size in queue)


class _Nothing(Commits):
    """Moves watermarks, and commits nothing: that is done before."""

    def settle(self, partitions: Collection[Partition], *, wait: bool = False) -> None:
        """Move the watermarks."""
        for partition in partitions:
            self._lanes.settled(partition)

    def conclude(self, partitions: Collection[Partition], *, poll: object) -> None:
        """Do nothing."""
