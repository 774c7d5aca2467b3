"""Records: what callers give, checked and turned into what goes over the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from . import serializers
from .exceptions import ConfigurationError, EncodeError, KafkaError, RecordTooLarge
from .producer import Route

Headers = Mapping[str, "bytes | str | None"] | Iterable[tuple[str, "bytes | str | None"]]
"""What callers may give as headers: a mapping, or pairs, which keep order and duplicates. Text is sent as UTF-8."""

Wire = tuple["bytes | None", "bytes | None", int, "list[tuple[str, bytes | None]] | None", int]
"""A record as the client takes it: value, key, partition (-1: by routing), headers, timestamp (0: now)."""

_HEADER_OVERHEAD = 10
"""Bytes that Kafka adds to a header, at the most (librdkafka counts them too)."""


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


FIELDS = tuple(one.name for one in fields(Record))
"""In the order in which `prepare` and `fields_of` have them."""


def fields_of(record: Record | Mapping[str, Any]) -> Sequence[Any]:
    """Return what `prepare` takes for a record of a batch: key and value, and maybe the rest."""
    if isinstance(record, Record):
        return record.key, record.value, record.headers, record.partition, record.timestamp
    # dict first: asking whether something is a Mapping takes as long as all the rest.
    if not isinstance(record, dict) and not isinstance(record, Mapping):
        raise ConfigurationError(
            f"A record of the batch is {type(record).__name__}; it must be a Record, or a mapping."
        )
    try:
        found = record["key"], record["value"]
    except KeyError as missing:
        raise ConfigurationError(f"A record of the batch has no {missing}; it has: {', '.join(record)}.") from missing
    if len(record) == len(found):
        return found
    if unknown := set(record) - set(FIELDS):
        raise ConfigurationError(f"A record of the batch has {sorted(unknown)}; it may have: {', '.join(FIELDS)}.")
    return [record.get(name) for name in FIELDS]


def prepare(
    route: Route,
    key: Any,
    value: Any,
    headers: Headers | None = None,
    partition: int | None = None,
    timestamp: datetime | int | None = None,
) -> Wire:
    """Return a record as it goes over the wire, or raise what is wrong with it."""
    try:
        named: list[tuple[str, bytes | None]] = []
        if key is not None and type(key) is not bytes:
            key = serializers.encode(route.key, key, route.topic, "key", named)
        if route.envelope is not None:
            value = route.envelope.close(value, named)
        elif value is not None and type(value) is not bytes:
            value = serializers.encode(route.value, value, route.topic, "value", named)
        if named:
            # The ids of schemas; what a caller calls so is another one's.
            headers = [*(pair for pair in _given(headers, route.topic) if pair[0] not in dict(named)), *named]
        size = (0 if value is None else len(value)) + (0 if key is None else len(key))
        if headers is None and partition is None and timestamp is None:
            if size > route.producer.max_bytes:
                raise _too_large(route, size)
            return value, key, -1, None, 0
        pairs = None if headers is None else _headers(headers, route.topic)
        if pairs:
            size += sum(len(name) + len(content or b"") + _HEADER_OVERHEAD for name, content in pairs)
        if size > route.producer.max_bytes:
            raise _too_large(route, size)
        if partition is not None and (
            isinstance(partition, bool) or not isinstance(partition, int) or not 0 <= partition < 2**31
        ):
            raise ConfigurationError(
                f"The partition for {route.topic!r} is {partition!r}; it must be 0 to 2147483647, or None."
            )
        when = 0 if timestamp is None else _milliseconds(timestamp, route.topic)
        return value, key, -1 if partition is None else partition, pairs, when
    except KafkaError as error:
        route.producer.counted(route.topic, error)
        raise


def with_headers(route: Route, wire: Wire, more: Sequence[tuple[str, bytes | None]]) -> Wire:
    """Return a record with headers that nobody asked for: without them when it would be too large with them."""
    value, key, partition, headers, when = wire
    pairs = [*(headers or ()), *more]
    size = sum(len(name) + len(content or b"") + _HEADER_OVERHEAD for name, content in pairs)
    if not more or size + len(value or b"") + len(key or b"") > route.producer.max_bytes:
        return wire
    return value, key, partition, pairs, when


def _too_large(route: Route, size: int) -> RecordTooLarge:
    return RecordTooLarge(
        f"The record for {route.topic!r} has {size} bytes; producer {route.producer.name!r} sends up to "
        f'{route.producer.max_bytes} (its option "message.max.bytes" less what Kafka adds).'
    )


def _headers(headers: Headers, topic: str) -> list[tuple[str, bytes | None]]:
    encoded: list[tuple[str, bytes | None]] = []
    for name, value in _pairs(headers, topic):
        # The client crashes the process on a name that is no UTF-8, and cuts one off at its NUL.
        if not isinstance(name, str) or "\0" in name or _utf8(name) is None:
            raise EncodeError(
                f"A header for {topic!r} is called {name!r}; a name is text without NUL or lone surrogates."
            )
        content = _utf8(value) if isinstance(value, str) else value
        if not isinstance(content, bytes) and value is not None:
            raise EncodeError(
                f"The header {name!r} for {topic!r} is {type(value).__name__}; it must be bytes, text (without lone "
                "surrogates) or None."
            )
        encoded.append((name, content))
    return encoded


def _given(headers: Headers | None, topic: str) -> list[tuple[Any, Any]]:
    return [] if headers is None else _pairs(headers, topic)


def _pairs(headers: Headers, topic: str) -> list[tuple[Any, Any]]:
    try:
        return [(name, value) for name, value in (headers.items() if isinstance(headers, Mapping) else headers)]
    except (TypeError, ValueError) as error:
        kind = type(headers).__name__
        raise EncodeError(
            f"The headers for {topic!r} are no mapping and no pairs of name and value, but {kind}."
        ) from error


def _utf8(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


def _milliseconds(timestamp: datetime | int, topic: str) -> int:
    given = round(timestamp.timestamp() * 1000) if isinstance(timestamp, datetime) else timestamp
    if isinstance(given, int) and not isinstance(given, bool) and 0 < given < 2**63:
        return given
    raise ConfigurationError(
        f"The timestamp for {topic!r} is {timestamp!r}; it must be a datetime after 1970, or milliseconds since then."
    )
