"""What travels: records on their way out, their deliveries, and messages on their way in."""

from __future__ import annotations

import asyncio
import gc
import operator
import os
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from .exceptions import BrokersUnreachable, DeliveryPending, DeliveryTimeout
from .signals import record_delivered
from .tallies import ProducerTally

LETTER_HEADER: Final = "lynx-kafka-dead-letter"
"""On a record that replays a dead letter to a topic: the id of the letter, so that a new failure comes back to it."""

Headers = Mapping[str, "bytes | str | None"] | Iterable[tuple[str, "bytes | str | None"]]
"""What callers may give as headers: a mapping, or pairs, which keep order and duplicates. Text is sent as UTF-8."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One thing to send, for `services.produce_batch`."""

    key: Any
    """Serialized by the producer's key serializer; None for no key."""
    value: Any
    """Serialized by the producer's serializer; None is a tombstone."""
    headers: Headers | None = None
    """Pairs of name and bytes, text or None."""
    partition: int | None = None
    """The partition to send to; None lets the producer's routing choose."""
    timestamp: datetime | int | None = None
    """When it happened: a datetime, or milliseconds since the epoch; None for the time of sending."""


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


class RawMessage(Protocol):
    """What a message is read from: the client's own object, or a stored dead letter."""

    def topic(self) -> str | None: ...
    def partition(self) -> int | None: ...
    def offset(self) -> int | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> list[tuple[str, bytes | None]] | None: ...


# Not called directly: the interpreter then skips the check that notices the client's error.
_headers_of: Callable[[RawMessage], list[tuple[str, bytes | None]] | None] = operator.methodcaller("headers")


def _pairs(raw: RawMessage) -> list[tuple[str, bytes | None]]:
    """Return the headers of a message as pairs that can be looked at.

    When a name is not UTF-8, the client raises the first time, and from then on returns a pair with a hole that
    crashes the process that reads it: the garbage collector sees only one object in it, where it should see two.
    """
    try:
        pairs = _headers_of(raw) or []
    except SystemError:
        pairs = _headers_of(raw) or []
    return [pair if len(gc.get_referents(pair)) == len(pair) else ("\ufffd", pair[1]) for pair in pairs]


class Decoder(Protocol):
    """What turns the bytes of one topic into keys and values."""

    def key(self, message: Message) -> Any: ...
    def value(self, message: Message) -> Any: ...


class Message:
    """What a handler receives. Key and value are decoded when first asked for.

    Millions of these are made, so it holds the client's object and reads from it when asked.
    """

    __slots__ = ("_decoder", "_key", "_raw", "_value", "attempt")

    attempt: int
    """Which run of a handler on this message this is, from 1."""

    def __init__(self, raw: RawMessage, decoder: Decoder, attempt: int = 1) -> None:
        self._raw = raw
        self._decoder = decoder
        self.attempt = attempt

    def __repr__(self) -> str:
        return f"<Message {self.topic}[{self.partition}]@{self.offset}>"

    @property
    def topic(self) -> str:
        """The topic as Kafka knows it, prefix included."""
        return self._raw.topic() or ""

    @property
    def partition(self) -> int:
        """The partition it was read from."""
        partition = self._raw.partition()
        return -1 if partition is None else partition

    @property
    def offset(self) -> int:
        """Its place in the partition (64 bits)."""
        offset = self._raw.offset()
        return -1 if offset is None else offset

    @property
    def timestamp_ms(self) -> int | None:
        """When it was made or appended, whichever the topic says, in milliseconds since the epoch."""
        kind, milliseconds = self._raw.timestamp()
        return milliseconds if kind else None

    @property
    def timestamp(self) -> datetime | None:
        """The same as an aware datetime in UTC; None when absent or outside the calendar."""
        milliseconds = self.timestamp_ms
        if milliseconds is None:
            return None
        try:
            return _EPOCH + timedelta(milliseconds=milliseconds)
        except OverflowError:
            return None

    @property
    def raw_key(self) -> bytes | None:
        """The key as it was sent."""
        return self._raw.key()

    @property
    def raw_value(self) -> bytes | None:
        """The value as it was sent; None is a tombstone."""
        return self._raw.value()

    @property
    def headers(self) -> tuple[tuple[str, bytes | None], ...]:
        """All headers in their order, duplicates included; a name that is not UTF-8 reads "\ufffd"."""
        return tuple(_pairs(self._raw))

    def header(self, name: str) -> bytes | None:
        """Return the last header of that name, as Kafka's own clients do, or None."""
        for candidate, value in reversed(_pairs(self._raw)):
            if candidate == name:
                return value
        return None

    @property
    def key(self) -> Any:
        """The decoded key. Raises `DecodeError`."""
        try:
            return self._key
        except AttributeError:
            pass
        self._key: Any = self._decoder.key(self)
        return self._key

    @property
    def value(self) -> Any:
        """The decoded value; None is a tombstone. Raises `DecodeError`."""
        try:
            return self._value
        except AttributeError:
            pass
        self._value: Any = self._decoder.value(self)
        return self._value
