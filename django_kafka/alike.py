"""Delivery reports of records that are a key and a value and no more, told apart by what was sent.

The client hands nothing back that would say whose report it brings, but it hands back the record. An object of our own
for each record, which is touched when it is sent and again when it is reported, costs a third of sending: 100,000 are
under way at a time, and none of them is in the processor's cache any more. So the records of a page share one callable,
and whose report is whose is looked up for those who ask, which most callers do not. Records of one topic with the same
key and the same value are alike: to whom of them a place in the log is given makes no difference to anybody.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

from .reports import Origin, Report, Reports
from .signals import record_delivered

LARGEST: Final = 4096
"""Bytes of key and value up to which records are told apart like this: they are kept until their reports have come."""
_NOTHING: Final[Any] = object()


class AlikeReports(Reports):
    """A page of such records. Thread-safe."""

    __slots__ = (
        "__weakref__", "_came", "_gone", "_index", "_lock", "_read", "_unread", "keys", "places", "shared", "values",
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

    def withdraw(self, place: int) -> None:
        """Note that a record was not handed over: the next one like it is another."""
        with self._lock:
            if place >= len(self.values) or self.values[place] is _NOTHING:
                # It was before.
                return
            record = self.keys[place], self.values[place]
            self.values[place] = _NOTHING
            if place in self._index.get(record, ()):
                self._take_out(record, place)
        self._gone()

    def refuse(self, place: int, error: Any) -> None:
        """Note that the client did not take a record, so that it will not report on it."""
        super().refuse(place, error)
        self.withdraw(place)

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

    def absorb(self) -> list[int]:
        """Give the reports that have come since to their places, and return those."""
        if self._read == len(self._came):
            return []
        with self._lock:
            self._look_through()
            fresh = self._came[self._read :]
            self._read += len(fresh)
            places = []
            for message in fresh:
                place = self._place_of(message)
                self.put(place, message)
                places.append(place)
        if self.waiters:
            for place in places:
                self._wake(place)
        return places

    def place_of(self, message: Any) -> int:
        """Return the place of a record that the client reports as failed."""
        with self._lock:
            self._look_through()
            return self._place_of(message)

    def _place_of(self, message: Any) -> int:
        record = message.key(), message.value()
        if record not in self._index:
            self._look_through()
        # The last of those that are alike: an earlier one may be left of a sending that was interrupted.
        return self._take_out(record, self._index[record][-1])

    def _take_out(self, record: tuple[Any, Any], place: int) -> int:
        places = self._index[record]
        places.remove(place)
        if not places:
            del self._index[record]
        return place

    def _look_through(self) -> None:
        unread = []
        for place in self._unread:
            value = self.values[place]
            if value is _NOTHING:
                unread.append(place)
            else:
                self._index.setdefault((self.keys[place], value), []).append(place)
        self._unread = unread

    def close(self) -> None:
        """Forget the records, because all reports have come."""
        with self._lock:
            self.absorb()
            self.keys = self.values = []
            self._unread = ()
            self._came.clear()
            self._read = 0


def _taker(page: AlikeReports) -> tuple[Report, Callable[[], None]]:
    """Return what the client calls for each record of a page, and what is called for one that it did not take.

    It does not keep the page, which is gone as soon as nobody has a delivery of it.
    """
    topic, origin, tally, waiters, came = page.topic, page.origin, page.origin.tally, page.waiters, page._came
    keep, left, held = came.append, len(page), True

    # Cells of a function, because attributes of an object take longer to reach.
    def take(error: Any, message: Any) -> None:
        nonlocal left
        if error is not None:
            reports = find()
            if reports is None:
                origin.refused(Reports(topic, origin, 1), 0, error)
            else:
                origin.refused(reports, reports.place_of(message), error)
            gone()
            return
        size = len(message)
        tally.acknowledged += 1
        tally.bytes += size
        if held:
            keep(message)
        elif record_delivered.receivers:
            alone = Reports(topic, origin, 1)
            alone.put(0, message)
            origin.delivered(alone, 0)
        left -= 1
        if waiters or not left or record_delivered.receivers:
            tell()

    def tell() -> None:
        reports = find()
        if reports is not None:
            for place in reports.absorb():
                if record_delivered.receivers:
                    origin.delivered(reports, place)
            if not left:
                reports.close()

    def gone() -> None:
        nonlocal left
        left -= 1
        if not left:
            tell()

    def let_go(_page: object) -> None:
        nonlocal held
        held = False
        came.clear()

    find = weakref.ref(page, let_go)
    return take, gone
