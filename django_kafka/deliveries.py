"""Deliveries: what became of a record that was sent."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Protocol

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


_UNCOMMITTED, _PENDING, _ACKNOWLEDGED, _FAILED = "uncommitted", "pending", "acknowledged", "failed"
# Taken only by those who wait, never by the thread that settles deliveries: that one writes the state first and reads
# the waiters afterwards, a waiter enters itself first and reads the state afterwards, so neither can miss the other.
_waiting = threading.Lock()


def _forget_waiting() -> None:
    # A thread that exists in the parent only may have held it.
    global _waiting
    _waiting = threading.Lock()


os.register_at_fork(after_in_child=_forget_waiting)

_ASK_AGAIN = 0.2
"""Seconds between two looks at whether brokers can be reached, once `connection.timeout` has passed."""


class Delivery:
    """The promise of a sent record: acknowledged with partition and offset, or failed.

    Made by `services.produce`, not by hand. `result()` waits in threads, `await delivery` in event loops.
    """

    # Unset until there is something to say: a million deliveries are made a second, and each store counts.
    __slots__ = ("__weakref__", "_error", "_offset", "_origin", "_partition", "_state", "_waiters", "topic")

    topic: str
    """The topic as Kafka knows it, prefix included."""

    def __init__(self, topic: str, origin: Origin, *, uncommitted: bool = False) -> None:
        self.topic = topic
        self._origin = origin
        self._state = _UNCOMMITTED if uncommitted else _PENDING
        self._waiters: list[Callable[[], object]] | None = None

    @property
    def partition(self) -> int | None:
        """The partition, once acknowledged."""
        return getattr(self, "_partition", None)

    @property
    def offset(self) -> int | None:
        """The offset, once acknowledged (None with `acks: "0"`, where Kafka names none)."""
        offset: int | None = getattr(self, "_offset", None)
        return None if offset is None or offset < 0 else offset

    @property
    def error(self) -> BaseException | None:
        """Why it failed, once it has."""
        return getattr(self, "_error", None)

    def __repr__(self) -> str:
        return f"<Delivery {self._state} topic={self.topic} partition={self.partition} offset={self.offset}>"

    @property
    def state(self) -> str:
        """One of "uncommitted", "pending", "acknowledged", "failed"."""
        return self._state

    def done(self) -> bool:
        """Tell whether it is acknowledged or failed."""
        return self._state is _ACKNOWLEDGED or self._state is _FAILED

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
            self._when_done(settled.set)
            self._origin.hurry(1)
            wait = self._origin.connection_timeout if timeout is None else timeout
            try:
                while not settled.wait(wait):
                    self._still_waiting(timeout)
                    wait = min(wait, _ASK_AGAIN)
            finally:
                self._origin.hurry(-1)
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
            self._when_done(lambda: _wake(loop, settled))
            self._origin.hurry(1)
            wait = self._origin.connection_timeout
            try:
                while not await _is_set(settled, wait):
                    self._still_waiting(None)
                    wait = min(wait, _ASK_AGAIN)
            finally:
                self._origin.hurry(-1)
        return self.result()

    def _refuse_before_commit(self) -> None:
        if self._state is _UNCOMMITTED:
            raise DeliveryPending(
                f"The record for {self.topic!r} is sent when the surrounding transaction commits; ask for its result "
                'after that, or use a producer with "send": "immediate".'
            )
        if self._origin.pid != os.getpid():
            raise DeliveryTimeout(f"The record for {self.topic!r} was sent by another process, before a fork.")

    def _still_waiting(self, timeout: float | None) -> None:
        if reason := self._origin.unreachable():
            raise BrokersUnreachable(f"The record for {self.topic!r} waits for a broker: {reason}")
        if timeout is not None:
            raise DeliveryTimeout(
                f"No answer for the record for {self.topic!r} after {timeout} s; it is still on its way."
            )

    def _when_done(self, wake: Callable[[], object]) -> None:
        with _waiting:
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(wake)
        if self.done():
            wake()

    def queued(self) -> None:
        """Note that the surrounding transaction committed and the record is on its way."""
        self._state = _PENDING

    def __call__(self, error: Any, message: Any) -> None:
        """Take the client's delivery report.

        The delivery itself is the client's callback and counts itself, because a second object and a second call for
        each of millions of records cost a quarter of the speed.
        """
        origin = self._origin
        if error is not None:
            origin.refused(self, error)
            return
        self._partition = message.partition()
        self._offset = message.offset()
        tally = origin.tally
        tally.acknowledged += 1
        tally.bytes += len(message)
        self._state = _ACKNOWLEDGED
        if self._waiters is not None:
            self._wake_all()
        if record_delivered.receivers:
            origin.delivered(self)

    def fail(self, error: BaseException) -> None:
        """Note that the record was given up."""
        self._error = error
        self._state = _FAILED
        if self._waiters is not None:
            self._wake_all()

    def _wake_all(self) -> None:
        for wake in tuple(self._waiters or ()):
            wake()


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
