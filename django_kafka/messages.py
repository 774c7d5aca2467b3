"""Messages: what handlers receive."""

from __future__ import annotations

import gc
import operator
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

LETTER_HEADER: Final = "lynx-kafka-dead-letter"
"""On a record that replays a dead letter to a topic: the id of the letter, so that a new failure comes back to it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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


def header_pairs(raw: RawMessage) -> list[tuple[str, bytes | None]]:
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

    __slots__ = ("_decoder", "_key", "_raw", "_value", "attempt", "deadline")

    attempt: int
    """Which run of a handler on this message this is, from 1."""
    deadline: float
    """When its handler's time is over, by the monotonic clock; not there without a limit. Ask for `time_left`."""

    def __init__(self, raw: RawMessage, decoder: Decoder, attempt: int = 1) -> None:
        self._raw = raw
        self._decoder = decoder
        self.attempt = attempt

    def __repr__(self) -> str:
        return f"<Message {self.topic}[{self.partition}]@{self.offset}>"

    @property
    def time_left(self) -> float | None:
        """How many seconds its handler has left, 0.0 when the time is over; None without a time limit."""
        try:
            return max(0.0, self.deadline - time.monotonic())
        except AttributeError:
            return None

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
        return tuple(header_pairs(self._raw))

    def header(self, name: str) -> bytes | None:
        """Return the last header of that name, as Kafka's own clients do, or None."""
        for candidate, value in reversed(header_pairs(self._raw)):
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
