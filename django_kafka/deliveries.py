"""Deliveries: what became of a record that was sent."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any, overload

from .exceptions import BrokersUnreachable, DeliveryPending, DeliveryTimeout, LoginRefused
from .reports import DONE, PAGE, Report, Reports

_ASK_AGAIN = 0.2
"""Seconds between two looks at whether brokers can be reached, once `connection.timeout` has passed."""


class Delivery:
    """The promise of a sent record: acknowledged with partition and offset, or failed.

    Made by `services.produce`, not by hand. `result()` waits in threads, `await delivery` in event loops.
    """

    __slots__ = ("place", "reports")

    # Without __init__, whose call takes as long as all the rest of making one: see `delivery_of`.
    reports: Reports
    """The page that knows of it, and of others."""
    place: int
    """Its place there."""

    @property
    def report(self) -> Report:
        """What the client is to call when it knows."""
        return self.reports.report(self.place)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Delivery):
            return NotImplemented
        return self.reports is other.reports and self.place == other.place

    def __hash__(self) -> int:
        return hash((id(self.reports), self.place))

    def __repr__(self) -> str:
        return f"<Delivery {self.state} topic={self.topic} partition={self.partition} offset={self.offset}>"

    @property
    def topic(self) -> str:
        """The topic as Kafka knows it, prefix included."""
        return self.reports.topic

    @property
    def partition(self) -> int | None:
        """The partition, once acknowledged."""
        return self.reports.partition(self.place)

    @property
    def offset(self) -> int | None:
        """The offset, once acknowledged (None with `acks: "0"`, where Kafka names none)."""
        return self.reports.offset(self.place)

    @property
    def error(self) -> BaseException | None:
        """Why it failed, once it has."""
        return self.reports.error(self.place)

    @property
    def state(self) -> str:
        """One of "uncommitted", "pending", "acknowledged", "failed"."""
        return self.reports.state(self.place)

    def done(self) -> bool:
        """Tell whether it is acknowledged or failed."""
        return self.state in DONE

    def result(self, timeout: float | None = None) -> Delivery:
        """Wait until Kafka has the record and return this delivery; `timeout` in seconds.

        Raises what failed it: `DeliveryFailed`, `DeliveryDiscarded`. Before the surrounding commit it raises
        `DeliveryPending`. `DeliveryTimeout` says that there is no answer yet, which is not a failure;
        `BrokersUnreachable`, one of those, comes after `connection.timeout` when no broker can be reached, and
        `LoginRefused`, one of these, when that is because of the login or a certificate. Without a timeout the wait
        ends at the latest when the producer's `delivery_timeout` gives the record up.
        """
        if not self.done():
            self._refuse_before_commit()
            settled = threading.Event()
            self.reports.when_done(self.place, settled.set)
            self.reports.origin.hurry(1)
            wait = self.reports.origin.connection_timeout if timeout is None else timeout
            try:
                while not settled.wait(wait):
                    self._still_waiting(timeout)
                    wait = min(wait, _ASK_AGAIN)
            finally:
                self.reports.origin.hurry(-1)
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
            self.reports.when_done(self.place, lambda: _wake(loop, settled))
            self.reports.origin.hurry(1)
            wait = self.reports.origin.connection_timeout
            try:
                while not await _is_set(settled, wait):
                    self._still_waiting(None)
                    wait = min(wait, _ASK_AGAIN)
            finally:
                self.reports.origin.hurry(-1)
        return self.result()

    def _refuse_before_commit(self) -> None:
        if self.state == "uncommitted":
            raise DeliveryPending(
                f"The record for {self.topic!r} is sent when the surrounding transaction commits; ask for its result "
                'after that, or use a producer with "send": "immediate".'
            )
        if self.reports.origin.pid != os.getpid():
            raise DeliveryTimeout(f"The record for {self.topic!r} was sent by another process, before a fork.")

    def _still_waiting(self, timeout: float | None) -> None:
        if refused := self.reports.origin.refused_login():
            raise LoginRefused(f"The record for {self.topic!r} waits for a login: {refused}")
        if reason := self.reports.origin.unreachable():
            raise BrokersUnreachable(f"The record for {self.topic!r} waits for a broker: {reason}")
        if timeout is not None:
            raise DeliveryTimeout(
                f"No answer for the record for {self.topic!r} after {timeout} s; it is still on its way."
            )

    def promise(self) -> None:
        """Note that the record waits for the surrounding transaction."""
        self.reports.promise(self.place)

    def queued(self) -> None:
        """Note that the surrounding transaction committed and the record is on its way."""
        self.reports.queued(self.place)

    def fail(self, error: BaseException) -> None:
        """Note that the record was given up."""
        self.reports.fail(self.place, error)

    def refuse(self, error: BaseException) -> None:
        """Note that the client does not take the record."""
        self.reports.refuse(self.place, error)


def delivery_of(reports: Reports, place: int) -> Delivery:
    """Return the delivery of the record at a place of a page."""
    delivery = Delivery()
    delivery.reports = reports
    delivery.place = place
    return delivery


class Deliveries(Sequence[Delivery]):
    """The deliveries of a batch, in the order of its records; each is made when it is asked for."""

    __slots__ = ("_pages", "_size")

    def __init__(self, pages: Sequence[Reports], size: int) -> None:
        """`pages` have `PAGE` records each, the last one what is left."""
        self._pages = pages
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"<Deliveries {len(self)}{f' topic={self._pages[0].topic}' if self._pages else ''}>"

    @overload
    def __getitem__(self, index: int) -> Delivery: ...
    @overload
    def __getitem__(self, index: slice) -> list[Delivery]: ...
    def __getitem__(self, index: int | slice) -> Delivery | list[Delivery]:
        places = range(self._size)[index]
        return self._at(places) if isinstance(places, int) else [self._at(place) for place in places]

    def _at(self, number: int) -> Delivery:
        page, place = divmod(number, PAGE)
        return delivery_of(self._pages[page], place)


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
