"""Delivery reports of records that are a key and a value and no more, told apart by what was sent.

The client hands nothing back that would say whose report it brings, but it hands back the record. An object of our own
for each record, which is touched when it is sent and again when it is reported, costs a third of sending: 100,000 are
under way at a time, and none of them is in the processor's cache any more. So the records of a page share one callable,
and whose report is whose is looked up for those who ask, which most callers do not. Records of one topic with the same
key and the same value are alike: to whom of them a place in the log is given makes no difference to anybody.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Final

from .reports import Origin, Report, Reports
from .signals import record_delivered

LARGEST: Final = 4096
"""Bytes of key and value up to which records are told apart like this: they are kept until their reports have come."""
_NOTHING: Final[Any] = object()
_forked = threading.RLock()
"""The lock of all pages that were made by the process that this one was forked from."""


def _renew() -> None:
    global _forked
    _forked = threading.RLock()


os.register_at_fork(after_in_child=_renew)


class AlikeReports(Reports):
    """A page of such records. Thread-safe."""

    __slots__ = (
        "__weakref__", "_came", "_gone", "_index", "_lock", "_read", "_seen", "_unread", "keys", "places", "shared",
        "values",
    )  # fmt: skip

    def __init__(self, topic: str, origin: Origin, keys: list[Any], values: list[Any]) -> None:
        """Both lists are the page's own from now on, and equally long."""
        super().__init__(topic, origin, len(keys))
        self.keys = keys
        """Those of the records, by place. Where they come one by one, they are entered before the record is sent."""
        self.values = values
        self.places = iter(range(len(keys)))
        """Those that are free, on an empty page; `next` is safe in any number of threads."""
        self._came: list[Any] = []
        self._read = 0
        self._unread: Iterable[int] = range(len(keys))
        self._seen = bytearray(len(keys))
        self._index: dict[tuple[Any, Any], list[int]] = {}
        self._lock = threading.RLock()
        self.shared, self._gone = _taker(self)
        """What the client is to call for each of them."""

    @classmethod
    def empty(cls, topic: str, origin: Origin, size: int) -> AlikeReports:
        """Return a page for records that come one by one: see `places`, `keys` and `values`."""
        return cls(topic, origin, [None] * size, [_NOTHING] * size)

    def report(self, place: int) -> Report:
        """Return what the client is to call for the record at `place`."""
        return self.shared

    def refuse(self, place: int, error: Any) -> None:
        """Note that the client did not take a record, so that it will not report on it."""
        self.forget(place)
        super().refuse(place, error)
        self._gone()

    def forget(self, place: int) -> None:
        """Leave what is reported to others: whoever sent this record heard an error, and has no delivery of it."""
        with self._guard():
            if place < len(self.values):
                places = self._index.get((self.keys[place], self.values[place]), [])
                self.values[place] = _NOTHING
                if place in places:
                    places.remove(place)

    def _guard(self) -> AbstractContextManager[object]:
        # In a child the lock may be held for ever, by a thread that was not forked along.
        return self._lock if self.origin.pid == os.getpid() else _forked

    def state(self, place: int) -> str:
        """Return what `Delivery.state` returns."""
        self.absorb()
        return super().state(place)

    def partition(self, place: int) -> int | None:
        """Return the partition, once acknowledged."""
        self.absorb()
        return super().partition(place)

    def offset(self, place: int) -> int | None:
        """Return the offset, once acknowledged and where Kafka names one."""
        self.absorb()
        return super().offset(place)

    def absorb(self) -> None:
        """Give the reports that have come since to their places."""
        if self._read == len(self._came):
            return
        settled: list[int | None] = []
        try:
            with self._guard():
                self._read_on(settled)
        finally:
            if self.waiters:
                for place in settled:
                    if place is not None:
                        self._wake(place)

    def _read_on(self, settled: list[int | None]) -> None:
        # Not within the `with` statement: what is raised at the jump back of a loop that ends one, as by a signal
        # handler, leaves it without releasing its lock.
        while (number := self._read) < len(self._came):
            settled.append(self._settle(self._came[number], number))

    def settle(self, message: Any) -> int | None:
        """Give a report to its place at once and return that; None when it is of nobody's record."""
        with self._guard():
            place = self._settle(message)
        if place is not None:
            self._wake(place)
        return place

    def _settle(self, message: Any, number: int | None = None) -> int | None:
        places = self._places_of(message)
        partition, offset = message.partition(), message.offset()
        # Nothing is called from here on. Signal handlers (Ctrl-C, the time limits of Celery) run at calls only, as
        # other threads do, which may fork: no report is read by half, or twice.
        if number is not None:
            if number != self._read:
                return None
            self._read = number + 1
        if not places:
            return None
        place = places[0]
        del places[0]
        self._partitions[place] = partition
        self._offsets[place] = offset
        return place

    def place_of(self, message: Any) -> int | None:
        """Return the place of a record that the client reports as failed; None when it is nobody's."""
        with self._guard():
            places = self._places_of(message)
            return places.pop(0) if places else None

    def _places_of(self, message: Any) -> list[int] | None:
        record = message.key(), message.value()
        if not (places := self._index.get(record)):
            self._look_through()
            places = self._index.get(record)
        return places

    def _look_through(self) -> None:
        unread = []
        index, seen = self._index, self._seen
        for place in self._unread:
            value = self.values[place]
            if value is _NOTHING:
                unread.append(place)
            elif not seen[place]:
                # Without a call, as in `_settle`: after an interruption all are looked through again.
                record = self.keys[place], value
                seen[place] = True
                if record in index:
                    index[record] += [place]
                else:
                    index[record] = [place]
        self._unread = unread

    def close(self) -> None:
        """Forget the records, because all reports have come."""
        with self._guard():
            self.absorb()
            self.keys = self.values = []
            self._unread = ()
            self._index = {}
            self._came.clear()
            self._read = 0


def _taker(page: AlikeReports) -> tuple[Report, Callable[[], None]]:
    """Return what the client calls for each record of a page, and what is called for one that it did not take.

    It does not keep the page, which is gone as soon as nobody has a delivery of it.
    """
    topic, origin, tally, waiters, came = page.topic, page.origin, page._tally, page.waiters, page._came
    keep, left, held = came.append, len(page), True

    # Cells of a function, because attributes of an object take longer to reach.
    def take(error: Any, message: Any) -> None:
        nonlocal left
        if error is not None:
            reports = find()
            place = None if reports is None else reports.place_of(message)
            if reports is None or place is None:
                origin.refused(Reports(topic, origin, 1), 0, error)
            else:
                origin.refused(reports, place, error)
            gone()
            return
        size = len(message)
        tally.acknowledged += 1
        tally.bytes += size
        if tally.acknowledged >= tally.due:
            tally.time(message.latency())
        if record_delivered.receivers:
            tell(message)
        elif held:
            keep(message)
        left -= 1
        if waiters or not left:
            look()

    def tell(message: Any) -> None:
        # Of this record and at once: what is kept may be read by anybody, who would not tell of it.
        reports = find()
        place = None if reports is None else reports.settle(message)
        if reports is None or place is None:
            alone = Reports(topic, origin, 1)
            alone.put(0, message)
            origin.delivered(alone, 0)
        else:
            origin.delivered(reports, place)

    def look() -> None:
        reports = find()
        if reports is not None:
            reports.absorb()
            if not left:
                reports.close()

    def gone() -> None:
        nonlocal left
        left -= 1
        if not left:
            look()

    def let_go(_page: object) -> None:
        nonlocal held
        held = False
        came.clear()

    find = weakref.ref(page, let_go)
    return take, gone
