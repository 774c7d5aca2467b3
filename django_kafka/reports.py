"""Delivery reports: what the client calls when it knows what became of a record, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from types import MethodType
from typing import Any, Protocol

from .signals import record_delivered
from .tallies import ProducedTopic, ProducerTally

PAGE = 1000
"""Records whose reports are kept together at most."""
DONE = ("acknowledged", "failed")
"""The states in which a record stays."""
Report = Callable[[Any, Any], object]
"""What the client calls with its delivery report: an error or None, and the message."""

_UNKNOWN = -(2**63)
"""The offset of a record without a report; Kafka's own are above."""


class Origin(Protocol):
    """What a delivery asks of its producer, and tells it."""

    pid: int
    connection_timeout: float
    tally: ProducerTally

    def unreachable(self) -> str | None: ...
    def refused_login(self) -> str | None: ...
    def hurry(self, waiting: int) -> None: ...
    def delivered(self, reports: Reports, place: int) -> None: ...
    def refused(self, reports: Reports, place: int, error: Any) -> None: ...


class Reports:
    """What became of the records of one page: the client reports by place, deliveries read.

    In pages, because most deliveries are dropped at once, long before there is anything to tell them.
    """

    # Lists, not arrays: for one thing that is stored and maybe read once an array takes twice as long.
    __slots__ = ("_errors", "_offsets", "_partitions", "_tally", "_uncommitted", "origin", "topic", "waiters")

    def __init__(self, topic: str, origin: Origin, size: int) -> None:
        self.topic = topic
        """The topic as Kafka knows it, prefix included."""
        self.origin = origin
        """The producer."""
        self.waiters: dict[int, list[Callable[[], object]]] = {}
        """What is to be called for which record."""
        self._tally: ProducedTopic = origin.tally.of_topic(topic)
        self._partitions: list[int | None] = [None] * size
        self._offsets: list[int | None] = [_UNKNOWN] * size
        self._errors: dict[int, BaseException] = {}
        self._uncommitted: set[int] = set()

    def __len__(self) -> int:
        return len(self._offsets)

    def take(self, place: int, error: Any, message: Any) -> None:
        """Take the client's delivery report for the record at `place`."""
        if error is not None:
            self.origin.refused(self, place, error)
            return
        self.put(place, message)
        tally, size = self._tally, len(message)
        tally.acknowledged += 1
        tally.bytes += size
        if tally.acknowledged >= tally.due:
            tally.time(message.latency())
        if self.waiters:
            self._wake(place)
        if record_delivered.receivers:
            self.origin.delivered(self, place)

    def put(self, place: int, message: Any) -> None:
        """Note what the client's message says of the record at `place`."""
        self._partitions[place] = message.partition()
        # Last, because it tells that there was a report.
        self._offsets[place] = message.offset()

    def report(self, place: int) -> Report:
        """Return what the client is to call for the record at `place`."""
        return MethodType(self.take, place)

    def takers(self) -> Iterator[Report]:
        """Return what the client is to call for each place, in order.

        Made by the interpreter's own loop, which costs half of a closure for each.
        """
        return map(MethodType, repeat(self.take), range(len(self)))

    def refuse(self, place: int, error: Any) -> None:
        """Note that the client did not take a record, so that it will not report on it."""
        self.origin.refused(self, place, error)

    def forget(self, place: int) -> None:
        """Note that whoever sent a record heard an error, and has no delivery of it."""

    def state(self, place: int) -> str:
        """Return what `Delivery.state` returns."""
        if self._offsets[place] != _UNKNOWN:
            return "acknowledged"
        if place in self._errors:
            return "failed"
        return "uncommitted" if place in self._uncommitted else "pending"

    def partition(self, place: int) -> int | None:
        """Return the partition, once acknowledged."""
        return self._partitions[place]

    def offset(self, place: int) -> int | None:
        """Return the offset, once acknowledged and where Kafka names one."""
        offset = self._offsets[place]
        return None if offset is None or offset < 0 else offset

    def error(self, place: int) -> BaseException | None:
        """Return why the record was given up."""
        return self._errors.get(place)

    def promise(self, place: int) -> None:
        """Note that a record waits for the surrounding transaction."""
        self._uncommitted.add(place)

    def queued(self, place: int) -> None:
        """Note that the surrounding transaction committed."""
        self._uncommitted.discard(place)

    def fail(self, place: int, error: BaseException) -> None:
        """Note that a record was given up."""
        self._errors[place] = error
        self._wake(place)

    def when_done(self, place: int, wake: Callable[[], object]) -> None:
        """Call `wake` as soon as the record is acknowledged or failed; at once when it is."""
        # No lock: the settling thread writes the state first and reads the waiters afterwards, a waiter enters itself
        # first and reads the state afterwards, so neither can miss the other.
        self.waiters.setdefault(place, []).append(wake)
        if self.state(place) in DONE:
            self.waiters.pop(place, None)
            wake()

    def _wake(self, place: int) -> None:
        for wake in self.waiters.pop(place, ()):
            wake()
