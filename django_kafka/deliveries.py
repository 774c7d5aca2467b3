"""Deliveries: what became of a record that was sent."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from types import MethodType
from typing import Any, Protocol, overload

from .exceptions import BrokersUnreachable, DeliveryPending, DeliveryTimeout
from .signals import record_delivered
from .tallies import ProducerTally


class Origin(Protocol):
    """What a delivery asks of its producer, and tells it."""

    pid: int
    connection_timeout: float
    tally: ProducerTally

    def unreachable(self) -> str | None: ...
    def hurry(self, waiting: int) -> None: ...
    def delivered(self, delivery: Delivery) -> None: ...
    def refused(self, delivery: Delivery, error: Any) -> None: ...


Report = Callable[[Any, Any], object]
"""What the client calls with its delivery report: an error or None, and the message."""

_UNKNOWN = -(2**63)
"""The offset of a record without a report; Kafka's own are above."""

_ASK_AGAIN = 0.2
"""Seconds between two looks at whether brokers can be reached, once `connection.timeout` has passed."""


class Reports:
    """What became of the records of one page: the client reports by place, deliveries read.

    In pages, because most deliveries are dropped at once: keeping each until its report came, as the client's callback,
    cost more than sending the record.
    """

    # Lists, not arrays: for one thing that is stored and maybe read once an array takes twice as long.
    __slots__ = ("_errors", "_offsets", "_partitions", "_tally", "_uncommitted", "_waiters", "origin", "topic")

    def __init__(self, topic: str, origin: Origin, size: int) -> None:
        self.topic = topic
        """The topic as Kafka knows it, prefix included."""
        self.origin = origin
        """The producer."""
        self._tally = origin.tally
        self._partitions: list[int | None] = [None] * size
        self._offsets: list[int | None] = [_UNKNOWN] * size
        self._errors: dict[int, BaseException] = {}
        self._uncommitted: set[int] = set()
        self._waiters: dict[int, list[Callable[[], object]]] = {}

    def take(self, place: int, error: Any, message: Any) -> None:
        """Take the client's delivery report for the record at `place`."""
        if error is not None:
            self.origin.refused(self.delivery(place), error)
            return
        self._partitions[place] = message.partition()
        self._offsets[place] = message.offset()
        tally = self._tally
        tally.acknowledged += 1
        tally.bytes += len(message)
        if self._waiters:
            self._wake(place)
        if record_delivered.receivers:
            self.origin.delivered(self.delivery(place))

    def __len__(self) -> int:
        return len(self._offsets)

    def takers(self) -> Iterator[MethodType]:
        """Return what the client is to call for each place, in order; `next` is safe in any number of threads.

        Made by the interpreter's own loop, which costs half of a closure for each.
        """
        return map(MethodType, repeat(self.take), range(len(self)))

    def delivery(self, place: int) -> Delivery:
        """Return the delivery of the record at `place`."""
        return Delivery(MethodType(self.take, place))

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
        self._waiters.setdefault(place, []).append(wake)
        if self.state(place) in _DONE:
            self._waiters.pop(place, None)
            wake()

    def _wake(self, place: int) -> None:
        for wake in self._waiters.pop(place, ()):
            wake()


_DONE = ("acknowledged", "failed")


class Delivery:
    """The promise of a sent record: acknowledged with partition and offset, or failed.

    Made by `services.produce`, not by hand. `result()` waits in threads, `await delivery` in event loops.
    """

    __slots__ = ("report",)

    def __init__(self, report: MethodType) -> None:
        self.report = report
        """What the client calls when it knows; one of `Reports.takers`."""

    @property
    def _reports(self) -> Reports:
        return self.report.__func__.__self__  # type: ignore[attr-defined,no-any-return]

    @property
    def _place(self) -> int:
        return self.report.__self__  # type: ignore[return-value]

    def __eq__(self, other: object) -> bool:
        # Not their reports: methods are equal when they belong to the same object, and equal numbers are not the same.
        if not isinstance(other, Delivery):
            return NotImplemented
        return self._reports is other._reports and self._place == other._place

    def __hash__(self) -> int:
        return hash((id(self._reports), self._place))

    def __repr__(self) -> str:
        return f"<Delivery {self.state} topic={self.topic} partition={self.partition} offset={self.offset}>"

    @property
    def topic(self) -> str:
        """The topic as Kafka knows it, prefix included."""
        return self._reports.topic

    @property
    def partition(self) -> int | None:
        """The partition, once acknowledged."""
        return self._reports.partition(self._place)

    @property
    def offset(self) -> int | None:
        """The offset, once acknowledged (None with `acks: "0"`, where Kafka names none)."""
        return self._reports.offset(self._place)

    @property
    def error(self) -> BaseException | None:
        """Why it failed, once it has."""
        return self._reports.error(self._place)

    @property
    def state(self) -> str:
        """One of "uncommitted", "pending", "acknowledged", "failed"."""
        return self._reports.state(self._place)

    def done(self) -> bool:
        """Tell whether it is acknowledged or failed."""
        return self.state in _DONE

    def result(self, timeout: float | None = None) -> Delivery:
        """Wait until Kafka has the record and return this delivery; `timeout` in seconds.

        Raises what failed it: `DeliveryFailed`, `DeliveryDiscarded`. Before the surrounding commit it raises
        `DeliveryPending`. `DeliveryTimeout` says that there is no answer yet, which is not a failure;
        `BrokersUnreachable`, one of those, comes after `connection.timeout` when no broker can be reached. Without a
        timeout the wait ends at the latest when the producer's `delivery_timeout` gives the record up.
        """
        if not self.done():
            self._refuse_before_commit()
            settled = threading.Event()
            self._reports.when_done(self._place, settled.set)
            self._reports.origin.hurry(1)
            wait = self._reports.origin.connection_timeout if timeout is None else timeout
            try:
                while not settled.wait(wait):
                    self._still_waiting(timeout)
                    wait = min(wait, _ASK_AGAIN)
            finally:
                self._reports.origin.hurry(-1)
        if self.error is not None:
            raise self.error
        return self

    def __await__(self) -> Generator[Any, None, Delivery]:
        return self._awaited().__await__()

    async def _awaited(self) -> Delivery:
        if not self.done():
            self._refuse_before_commit()
            loop = asyncio.get_running_loop()
            settled = asyncio.Event()
            self._reports.when_done(self._place, lambda: _wake(loop, settled))
            self._reports.origin.hurry(1)
            wait = self._reports.origin.connection_timeout
            try:
                while not await _is_set(settled, wait):
                    self._still_waiting(None)
                    wait = min(wait, _ASK_AGAIN)
            finally:
                self._reports.origin.hurry(-1)
        return self.result()

    def _refuse_before_commit(self) -> None:
        if self.state == "uncommitted":
            raise DeliveryPending(
                f"The record for {self.topic!r} is sent when the surrounding transaction commits; ask for its result "
                'after that, or use a producer with "send": "immediate".'
            )
        if self._reports.origin.pid != os.getpid():
            raise DeliveryTimeout(f"The record for {self.topic!r} was sent by another process, before a fork.")

    def _still_waiting(self, timeout: float | None) -> None:
        if reason := self._reports.origin.unreachable():
            raise BrokersUnreachable(f"The record for {self.topic!r} waits for a broker: {reason}")
        if timeout is not None:
            raise DeliveryTimeout(
                f"No answer for the record for {self.topic!r} after {timeout} s; it is still on its way."
            )

    def promise(self) -> None:
        """Note that the record waits for the surrounding transaction."""
        self._reports.promise(self._place)

    def queued(self) -> None:
        """Note that the surrounding transaction committed and the record is on its way."""
        self._reports.queued(self._place)

    def fail(self, error: BaseException) -> None:
        """Note that the record was given up."""
        self._reports.fail(self._place, error)


class Deliveries(Sequence[Delivery]):
    """The deliveries of a batch, in the order of its records; each is made when it is asked for."""

    __slots__ = ("_reports",)

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    def __len__(self) -> int:
        return len(self._reports)

    def __repr__(self) -> str:
        return f"<Deliveries {len(self)} topic={self._reports.topic}>"

    @overload
    def __getitem__(self, index: int) -> Delivery: ...
    @overload
    def __getitem__(self, index: slice) -> list[Delivery]: ...
    def __getitem__(self, index: int | slice) -> Delivery | list[Delivery]:
        places = range(len(self))[index]
        if isinstance(places, int):
            return self._reports.delivery(places)
        return [self._reports.delivery(place) for place in places]


async def _is_set(settled: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await settled.wait()
    except TimeoutError:
        return settled.is_set()


def _wake(loop: asyncio.AbstractEventLoop, settled: asyncio.Event) -> None:
    # The loop may be closed at any moment, and nothing may leave the client's callback, in which this runs.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(settled.set)
