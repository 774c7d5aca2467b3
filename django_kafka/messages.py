"""Messages: what handlers receive."""

from __future__ import annotations

import gc
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol, cast, overload

from .cloud_events import CloudEvent

LETTER_HEADER: Final = "lynx-kafka-dead-letter"
"""On a record that replays a dead letter to a topic: the id of the letter, so that a new failure comes back to it."""
MESSAGE_ID_HEADER: Final = "lynx-kafka-message-id"
"""On a record that was edited before it was sent to a topic: its own id, because it is another one than the original.

The id stays the same when the record is sent again because whoever sent it was killed.
"""

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


class Kind(NamedTuple):
    """What a message says that it is, where handlers ask."""

    type: str | None
    """Its type; None: it says none."""
    version: int | None
    """The version of that; None: no handler of its topic has versions of this type."""


class Decoder(Protocol):
    """What turns the bytes of one topic into keys and values."""

    def key(self, message: Message) -> Any: ...
    def value(self, message: Message) -> Any: ...
    def event(self, message: Message) -> CloudEvent | None: ...


class ListDecoder(Decoder, Protocol):
    """The same for lists of messages of that topic."""

    def keys(self, raws: Sequence[RawMessage]) -> list[Any]: ...
    def values(self, raws: Sequence[RawMessage]) -> list[Any]: ...


class Message:
    """What a handler receives. Key and value are decoded when first asked for.

    Millions of these are made, so it holds the client's object and reads from it when asked.
    """

    __slots__ = ("_decoder", "_key", "_raw", "_value", "attempt", "deadline", "kind")

    attempt: int
    """Which run of a handler on this message this is, from 1."""
    deadline: float
    """When its handler's time is over, by the monotonic clock; not there without a limit. Ask for `time_left`."""
    kind: Kind
    """What it is; there when somebody had to know."""

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

    @property
    def cloud_event(self) -> CloudEvent | None:
        """What it says of itself as a CloudEvent, whose data is the value; None when it is none.

        Raises `DecodeError` where that is around the value, and this cannot be read.
        """
        return self._decoder.event(self)


class Messages(Sequence[Message]):
    """What a handler of lists receives: messages of one partition, in their order. It cannot be changed.

    Each is made when it is first looked at, and is the same object from then on, in slices too: to make them all takes
    a quarter of the time that the client needs to receive them. Who asks for `values()` and `keys()` only makes none.
    """

    __slots__ = ("_decoder", "_made", "_places", "_raws")

    def __init__(self, raws: Sequence[RawMessage], decoder: ListDecoder) -> None:
        self._raws = raws
        self._decoder = decoder
        self._made: list[Message | None] = [None] * len(raws)
        """Those that were looked at; a slice has the same list."""
        self._places = range(len(raws))
        """Where each has its place in that."""

    @classmethod
    def alone(cls, message: Message) -> Messages:
        """Return a sequence of this one message, whose decoder reads lists."""
        made = cls((message._raw,), cast("ListDecoder", message._decoder))
        made._made[0] = message
        return made

    def __repr__(self) -> str:
        return f"<Messages: {len(self)} from {self[0]!r} to {self[-1]!r}>" if self else "<Messages: none>"

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int, /) -> Message: ...
    @overload
    def __getitem__(self, index: slice, /) -> Messages: ...
    def __getitem__(self, index: int | slice, /) -> Message | Messages:
        if isinstance(index, slice):
            part = Messages(self._raws[index], self._decoder)
            part._made, part._places = self._made, self._places[index]
            return part
        place = self._places[index]
        message = self._made[place]
        if message is None:
            message = self._made[place] = Message(self._raws[index], self._decoder)
        return message

    def __iter__(self) -> Iterator[Message]:
        made, decoder = self._made, self._decoder
        for place, raw in zip(self._places, self._raws, strict=True):
            message = made[place]
            if message is None:
                message = made[place] = Message(raw, decoder)
            yield message

    def __eq__(self, other: object) -> bool:
        """Tell whether the other is a list, or another of these, of the same messages."""
        return list(self) == list(other) if isinstance(other, Messages | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def keys(self) -> list[Any]:
        """Return the decoded keys in their order, None where there is none. Raises `DecodeError`."""
        return self._decoder.keys(self._raws)

    def values(self) -> list[Any]:
        """Return the decoded values in their order, None for a tombstone. Raises `DecodeError`.

        They are decoded anew at each call: what is done to one of them is not seen in the `value` of its message.
        """
        return self._decoder.values(self._raws)

    def raw_keys(self) -> list[bytes | None]:
        """Return the keys as they were sent."""
        return [raw.key() for raw in self._raws]

    def raw_values(self) -> list[bytes | None]:
        """Return the values as they were sent; None is a tombstone."""
        return [raw.value() for raw in self._raws]
