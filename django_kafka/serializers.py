"""Values to bytes and back: bytes, text, JSON, and with a schema registry Avro, JSON Schema and Protobuf."""

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

from . import cloud_events, conf, events
from .clients import schema_registry
from .clients.schema_registry import Use
from .conf.registries import KINDS
from .exceptions import ConfigurationError, DecodeError, EncodeError, PayloadTooLarge, RegistryUnavailable
from .messages import Message, RawMessage, header_pairs


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
    """Django's encoder, but with the microseconds that it cuts off, and with objects of event types."""

    def default(self, o: Any) -> Any:
        if isinstance(o, datetime | time):
            return o.isoformat()
        found = events.plain(o, text=True)
        return super().default(o) if found is None else found


_ENCODER = _Encoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Json:
    """JSON as UTF-8, with what Django models hold: dates and times, decimals, UUIDs, durations, lazy strings."""

    def __init__(self) -> None:
        self._encoder = _ENCODER

    def encode(self, value: Any, topic: str) -> bytes:
        """Return compact JSON; NaN and infinities are refused, because JSON has none."""
        return self._encoder.encode(value).encode()

    def decode(self, data: bytes, topic: str) -> Any:
        """Return the value."""
        return json.loads(data)


BUILT_IN: dict[str, Callable[[], Serializer]] = {"bytes": Bytes, "text": Text, "json": Json}

WITHOUT_QUOTES = (Bytes, Text, Json, schema_registry.Codec)
"""Those whose errors do not quote values."""


@cache
def get(name: str) -> Serializer:
    """Return the serializer called `name`, built in or named by a dotted path."""
    if name in BUILT_IN:
        return BUILT_IN[name]()
    try:
        made: Serializer = import_string(name)()
    except ImportError as error:
        raise ConfigurationError(
            f"No serializer {name!r}; there are {', '.join((*BUILT_IN, *KINDS))}, or a dotted path."
        ) from error
    return made


def of_part(
    client: conf.Producer | conf.Consumer, own: conf.ProducerTopic | conf.ConsumerTopic | None, topic: str, part: str
) -> Serializer:
    """Return the serializer of the keys or values (`part`) of a topic for a producer or consumer.

    `topic` is named as Kafka knows it, `own` is what settings say of it. Raises `ConfigurationError`.
    """
    prefix = "key_" if part == "key" else ""
    name = _name(client, own, prefix)
    if name not in KINDS:
        return get(name)
    kind = "producers" if isinstance(client, conf.Producer) else "consumers"
    options = client.schema_options if own is None else own.schema_options.over(client.schema_options)
    mine = own and getattr(own, f"{prefix}schema")
    place = f'KAFKA["{kind}"]["{client.name}"]'
    if mine:
        place += f'["topics"]["{getattr(own, "name", _named(topic))}"]'
    use = Use(
        kind=name, cluster=client.cluster, topic=topic, part=part, options=options,
        schema=mine or getattr(client, f"{prefix}schema"), place=f'{place}["{prefix}schema"]',
    )  # fmt: skip
    return schema_registry.codec(use, _ENCODER.default)


def _name(client: Any, own: Any, prefix: str) -> str:
    return str((own and getattr(own, f"{prefix}serializer")) or getattr(client, f"{prefix}serializer"))


def unusable() -> list[str]:
    """Return a sentence for each schema of settings that cannot be read here. Asks no registry."""
    whole, found = conf.kafka(), dict[str, None]()
    clients: list[conf.Producer | conf.Consumer] = [*whole.producers.values(), *whole.consumers.values()]
    for client in clients:
        topics: list[tuple[str, Any]] = list(client.topics.items()) if client.enabled else []
        if isinstance(client, conf.Producer) and client.enabled:
            # Whatever it sends to by its own settings.
            topics.append((client.topic or "any", None))
        for name, own in topics:
            for part in ("key", "value"):
                if _name(client, own, "key_" if part == "key" else "") not in KINDS:
                    continue
                try:
                    serializer = of_part(client, own, whole.prefixed(name), part)
                    if isinstance(serializer, schema_registry.Codec):
                        serializer.check()
                except ConfigurationError as error:
                    found[str(error)] = None
    return list(found)


def _named(topic: str) -> str:
    return topic.removeprefix(conf.kafka().topic_prefix)


def encode(
    serializer: Serializer, value: Any, topic: str, part: str, headers: list[tuple[str, bytes | None]] | None = None
) -> bytes | None:
    """Return what is sent for `value`; `part` is "key" or "value", for the sentence of the `EncodeError`.

    A serializer that writes headers appends them to `headers`.
    """
    if value is None or type(value) is bytes:
        return value
    try:
        if isinstance(serializer, schema_registry.Codec) and type(value) is not dict:
            found = events.plain(value, text=serializer.use.kind != "avro")
            value = value if found is None else found
        if headers is not None and isinstance(serializer, schema_registry.Codec):
            return serializer.encode_with(value, topic, headers)
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


def decode(serializer: Serializer, data: bytes, topic: str, headers: Sequence[tuple[str, bytes | None]]) -> Any:
    """Return the value of bytes that came with these headers; raise as the serializer does."""
    if isinstance(serializer, schema_registry.Codec):
        return serializer.decode_with(data, topic, headers)
    return serializer.decode(data, topic)


PATIENCE = 1.25
"""Seconds that a page waits for a key, and for a value, to be read."""


def patiently(decoder: TopicDecoder, read: Callable[[], Any]) -> Any:
    """Return what `read` reads with a decoder, for a page: raise `RegistryUnavailable` when a registry is slow."""
    if not decoder.asks:
        # In this thread: a serializer of the project's own may use its database.
        return read()
    try:
        return schema_registry.within(PATIENCE, read)
    except schema_registry.TooSlow as error:
        raise RegistryUnavailable(f"The schema registry is slow. {error}") from None


def presentable(value: Any) -> Any:
    """Return a decoded value as JSON can have it, where that is another one: messages of Protobuf as dicts."""
    return schema_registry.as_dict(value) if schema_registry.is_message(value) else value


class TopicDecoder:
    """Reads keys and values of one topic of one consumer."""

    __slots__ = ("_key", "_most", "_value")

    def __init__(self, key_serializer: str | Serializer, serializer: str | Serializer, most: int | None = None) -> None:
        """With `most`, a key or value of more bytes than that is not read."""
        self._key = get(key_serializer) if isinstance(key_serializer, str) else key_serializer
        self._value = get(serializer) if isinstance(serializer, str) else serializer
        self._most = _ANY_SIZE if most is None else most

    @property
    def asks(self) -> bool:
        """Whether a schema registry may have to be asked."""
        return any(isinstance(one, schema_registry.Codec) for one in (self._key, self._value))

    @property
    def encrypts(self) -> bool:
        """Whether messages of this topic come encrypted, or some of their fields."""
        return False

    def outside(self) -> TopicDecoder:
        """Return what reads as much as everybody may see who sees the bytes: nothing is decrypted."""
        return self

    def encrypted(self, message: Message) -> list[Any]:
        """Return what was encrypted of a message; raise what `value` raises."""
        return []

    def event(self, message: Message) -> cloud_events.CloudEvent | None:
        """Return what a message says of itself as a CloudEvent; None when it is none."""
        return cloud_events.of_headers(message.headers)

    def key(self, message: Message) -> Any:
        """Return the decoded key of `message`; raise `DecodeError`."""
        return _decode(self._key, message.raw_key, message, "key", self._most)

    def value(self, message: Message) -> Any:
        """Return the decoded value of `message`; raise `DecodeError`."""
        return _decode(self._value, message.raw_value, message, "value", self._most)

    def _refuse_large(self, data: bytes, message: Message) -> None:
        _refuse_large(data, message, "value", self._most)

    def _decoded(self, data: bytes | None, message: Message) -> Any:
        return _decode(self._value, data, message, "value", self._most)

    def encode(self, value: Any, topic: str, part: str) -> bytes | None:
        """Return bytes that read as `value`, which is the key or the value as `part` says; raise `EncodeError`."""
        return encode(self._key if part == "key" else self._value, value, topic, part)

    def keys(self, raws: Sequence[RawMessage]) -> list[Any]:
        """Return the decoded keys of messages of one topic, without making those; raise `DecodeError`."""
        try:
            return _decode_all(self._key, raws, [raw.key() for raw in raws], self._most)
        except UNREADABLE:
            # Which one it is, and where it is from.
            return [self.key(Message(raw, self)) for raw in raws]

    def values(self, raws: Sequence[RawMessage]) -> list[Any]:
        """Return the decoded values of messages of one topic, without making those; raise `DecodeError`."""
        try:
            return _decode_all(self._value, raws, [raw.value() for raw in raws], self._most)
        except UNREADABLE:
            return [self.value(Message(raw, self)) for raw in raws]


UNREADABLE = (ValueError, TypeError, RecursionError, DecodeError)
"""What a serializer raises for bytes that it cannot read."""
_ANY_SIZE = sys.maxsize


def _decode_all(
    serializer: Serializer, raws: Sequence[RawMessage], parts: Sequence[bytes | None], most: int
) -> list[Any]:
    if max(map(len, filter(None, parts)), default=0) > most:
        raise ValueError("one of them is too large")
    topic = (raws[0].topic() or "") if raws else ""
    if isinstance(serializer, schema_registry.Codec):
        read = serializer.decode_with
        pairs = zip(raws, parts, strict=True)
        return [None if part is None else read(part, topic, header_pairs(raw)) for raw, part in pairs]
    decode = serializer.decode
    return [None if part is None else decode(part, topic) for part in parts]


def _refuse_large(data: bytes, message: Message, part: str, most: int) -> None:
    if len(data) > most:
        raise PayloadTooLarge(
            f"The {part} of {message.topic}[{message.partition}]@{message.offset} has {len(data)} bytes, and "
            f"`max_payload` of its consumer is {most}: it is not read.",
            place=(message.topic, message.partition, message.offset),
        )


def _decode(serializer: Serializer, data: bytes | None, message: Message, part: str, most: int) -> Any:
    if data is None:
        return None
    _refuse_large(data, message, part, most)
    try:
        if isinstance(serializer, schema_registry.Codec):
            return serializer.decode_with(data, message.topic, header_pairs(message._raw))
        return serializer.decode(data, message.topic)
    except UNREADABLE as error:
        place = message.topic, message.partition, message.offset
        made = type(error) if isinstance(error, DecodeError) else DecodeError
        sentence = (
            f"The {part} of {message.topic}[{message.partition}]@{message.offset} cannot be read as "
            f"{_kind(serializer)}: {_reason(error)}"
        )
    raise made(sentence, place=place)


def _kind(serializer: Serializer) -> str:
    return serializer.use.kind if isinstance(serializer, schema_registry.Codec) else type(serializer).__name__.lower()


def _reason(error: Exception) -> str:
    # What others say may quote the payload, which belongs in the dead letter but in no log: name the kind only.
    if isinstance(error, DecodeError):
        return str(error)
    return f"{error.msg} at {error.pos}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
