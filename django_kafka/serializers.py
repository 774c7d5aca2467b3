"""Values to bytes and back: bytes, text, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from functools import cache
from typing import Any, Protocol
from uuid import UUID

from django.core.serializers.json import DjangoJSONEncoder
from django.utils.functional import Promise
from django.utils.module_loading import import_string

from .exceptions import ConfigurationError, DecodeError, EncodeError, PayloadTooLarge
from .messages import Message, RawMessage


class Serializer(Protocol):
    """Turns values of one topic into bytes and back. A dotted path in settings may name a class of your own.

    What is `bytes` already is sent as it is, and None is sent as None (no key, or a tombstone): neither gets here.
    """

    def encode(self, value: Any, topic: str) -> bytes:
        """Return the bytes for `value`; raise `TypeError` or `ValueError` for what cannot be sent."""

    def decode(self, data: bytes, topic: str) -> Any:
        """Return the value of `data`; raise `ValueError` for what cannot be read."""


class Bytes:
    """Bytes, untouched."""

    def encode(self, value: Any, topic: str) -> bytes:
        """Return any bytes-like value as bytes."""
        if isinstance(value, bytearray | memoryview):
            return bytes(value)
        raise TypeError("the serializer 'bytes' takes bytes")

    def decode(self, data: bytes, topic: str) -> bytes:
        """Return the bytes."""
        return data


class Text:
    """Text as UTF-8. Numbers, UUIDs, dates and lazy strings, as keys often are, are sent as their text."""

    def encode(self, value: Any, topic: str) -> bytes:
        """Return the text of `value` as UTF-8."""
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, datetime | date | time):
            return value.isoformat().encode()
        if isinstance(value, int | Decimal | UUID | Promise) and not isinstance(value, bool):
            return str(value).encode()
        raise TypeError("the serializer 'text' takes text, whole numbers, decimals, UUIDs and dates")

    def decode(self, data: bytes, topic: str) -> str:
        """Return the text."""
        return data.decode()


class _Encoder(DjangoJSONEncoder):
    """Django's encoder, but with the microseconds that it cuts off."""

    def default(self, o: Any) -> Any:
        if isinstance(o, datetime | time):
            return o.isoformat()
        return super().default(o)


class Json:
    """JSON as UTF-8, with what Django models hold: dates and times, decimals, UUIDs, durations, lazy strings."""

    def __init__(self) -> None:
        self._encoder = _Encoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    def encode(self, value: Any, topic: str) -> bytes:
        """Return compact JSON; NaN and infinities are refused, because JSON has none."""
        return self._encoder.encode(value).encode()

    def decode(self, data: bytes, topic: str) -> Any:
        """Return the value."""
        return json.loads(data)


BUILT_IN: dict[str, Callable[[], Serializer]] = {"bytes": Bytes, "text": Text, "json": Json}


@cache
def get(name: str) -> Serializer:
    """Return the serializer called `name`, built in or named by a dotted path."""
    if name in BUILT_IN:
        return BUILT_IN[name]()
    try:
        made: Serializer = import_string(name)()
    except ImportError as error:
        raise ConfigurationError(
            f"No serializer {name!r}; there are {', '.join(BUILT_IN)}, or a dotted path."
        ) from error
    return made


def encode(serializer: Serializer, value: Any, topic: str, part: str) -> bytes | None:
    """Return what is sent for `value`; `part` is "key" or "value", for the sentence of the `EncodeError`."""
    if value is None or type(value) is bytes:
        return value
    try:
        return _bytes(serializer.encode(value, topic))
    except (TypeError, ValueError, RecursionError) as error:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise EncodeError(f"The {part} for {topic!r}, of type {kind}, does not serialize: {error}") from error


def _bytes(encoded: Any) -> bytes | None:
    # Of a serializer of the project's own, which may return text as the client takes it, too: reports bring bytes.
    if encoded is None or type(encoded) is bytes:
        return encoded
    if isinstance(encoded, str):
        return encoded.encode()
    if isinstance(encoded, bytes | bytearray | memoryview):
        return bytes(encoded)
    raise TypeError(f"its serializer returned {type(encoded).__name__}; it must return bytes")


class TopicDecoder:
    """Reads keys and values of one topic of one consumer."""

    __slots__ = ("_key", "_most", "_value")

    def __init__(self, key_serializer: str, serializer: str, most: int | None = None) -> None:
        """With `most`, a key or value of more bytes than that is not read."""
        self._key = get(key_serializer)
        self._value = get(serializer)
        self._most = _ANY_SIZE if most is None else most

    def key(self, message: Message) -> Any:
        """Return the decoded key of `message`; raise `DecodeError`."""
        return _decode(self._key, message.raw_key, message, "key", self._most)

    def value(self, message: Message) -> Any:
        """Return the decoded value of `message`; raise `DecodeError`."""
        return _decode(self._value, message.raw_value, message, "value", self._most)

    def keys(self, raws: Sequence[RawMessage]) -> list[Any]:
        """Return the decoded keys of messages of one topic, without making those; raise `DecodeError`."""
        try:
            return _decode_all(self._key, raws, [raw.key() for raw in raws], self._most)
        except _UNREADABLE:
            # Which one it is, and where it is from.
            return [self.key(Message(raw, self)) for raw in raws]

    def values(self, raws: Sequence[RawMessage]) -> list[Any]:
        """Return the decoded values of messages of one topic, without making those; raise `DecodeError`."""
        try:
            return _decode_all(self._value, raws, [raw.value() for raw in raws], self._most)
        except _UNREADABLE:
            return [self.value(Message(raw, self)) for raw in raws]


_UNREADABLE = (ValueError, TypeError, RecursionError)
"""What a serializer raises for bytes that it cannot read."""
_ANY_SIZE = sys.maxsize


def _decode_all(
    serializer: Serializer, raws: Sequence[RawMessage], parts: Sequence[bytes | None], most: int
) -> list[Any]:
    if max(map(len, filter(None, parts)), default=0) > most:
        raise ValueError("one of them is too large")
    topic, decode = (raws[0].topic() or "") if raws else "", serializer.decode
    return [None if part is None else decode(part, topic) for part in parts]


def _decode(serializer: Serializer, data: bytes | None, message: Message, part: str, most: int) -> Any:
    if data is None:
        return None
    if len(data) > most:
        raise PayloadTooLarge(
            f"The {part} of {message.topic}[{message.partition}]@{message.offset} has {len(data)} bytes, and "
            f"`max_payload` of its consumer is {most}: it is not read.",
            place=(message.topic, message.partition, message.offset),
        )
    try:
        return serializer.decode(data, message.topic)
    except _UNREADABLE as error:
        # The reason may quote the payload, which belongs in the dead letter but in no log: name the kind only.
        reason = f"{error.msg} at {error.pos}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise DecodeError(
            f"The {part} of {message.topic}[{message.partition}]@{message.offset} cannot be read as "
            f"{type(serializer).__name__.lower()}: {reason}",
            place=(message.topic, message.partition, message.offset),
        ) from None
