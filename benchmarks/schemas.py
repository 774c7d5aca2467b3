"""Avro flights to bytes and back: through our serializers, and by the library's called directly. No broker is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from .settings import MESSAGES, REGISTRY, TOPIC

_DISTINCT = 1000
_DAY = datetime(2013, 1, 1, tzinfo=UTC)
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Departure",
    "namespace": "airline",
    "fields": [
        {"name": "carrier", "type": "string"},
        {"name": "number", "type": "int"},
        {"name": "origin", "type": "string"},
        {"name": "destination", "type": "string"},
        {"name": "scheduled", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "left", "type": ["null", "int"], "default": None},
        {"name": "delay", "type": ["null", "int"], "default": None},
    ],
}
FLIGHTS: list[dict[str, Any]] = [
    {
        "carrier": "UA", "number": number, "origin": "EWR", "destination": "IAH",
        "scheduled": _DAY + timedelta(minutes=number),
        "left": None if number % 41 == 0 else 517, "delay": None if number % 41 == 0 else number % 90 - 10,
    }
    for number in range(1, _DISTINCT + 1)
]  # fmt: skip


class Received:
    """What the client hands over, with no key and no headers."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def topic(self) -> str:
        return TOPIC

    def value(self) -> bytes:
        return self._value

    def headers(self) -> None:
        return None


def _library() -> tuple[Any, Any, Any]:
    """Return the library's serializer, its deserializer, and the context that they want."""
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    client = SchemaRegistryClient({"url": REGISTRY})
    context = SerializationContext(TOPIC, MessageField.VALUE)
    return AvroSerializer(client, json.dumps(SCHEMA)), AvroDeserializer(client), context


def _ours() -> tuple[Any, Any]:
    """Return our serializer of a producer, and that of a consumer."""
    from django.conf import settings
    from django.test import override_settings

    from django_kafka import conf, serializers

    kafka = {
        **settings.KAFKA,
        "schema_registry": {"url": REGISTRY, "auto_register": True},
        "producers": {"default": {"serializer": "avro", "schema": SCHEMA}},
        "consumers": {"bench": {"group_id": "bench", "serializer": "avro", "topics": {TOPIC: {}}}},
    }
    override_settings(KAFKA=kafka).enable()
    return (
        serializers.of_part(conf.producer(), None, TOPIC, "value"),
        serializers.of_part(conf.consumer(), None, TOPIC, "value"),
    )


def raw_write_avro() -> Iterator[None]:
    """`AvroSerializer`, called for each flight with one context."""
    write, _read, context = _library()
    write(FLIGHTS[0], context)
    yield
    for _turn in range(MESSAGES // _DISTINCT):
        for flight in FLIGHTS:
            write(flight, context)
    yield


def our_write_avro() -> Iterator[None]:
    """What `produce` does with a value."""
    from django_kafka.serializers import encode

    writer, _reader = _ours()
    encode(writer, FLIGHTS[0], TOPIC, "value", [])
    yield
    for _turn in range(MESSAGES // _DISTINCT):
        for flight in FLIGHTS:
            encode(writer, flight, TOPIC, "value", [])
    yield


def raw_read_avro() -> Iterator[None]:
    """`AvroDeserializer`, called for each message with one context."""
    write, read, context = _library()
    received = [Received(write(flight, context)) for flight in FLIGHTS]
    read(received[0].value(), context)
    yield
    for _turn in range(MESSAGES // _DISTINCT):
        for message in received:
            read(message.value(), context)
    yield


def our_read_avro() -> Iterator[None]:
    """`Message.value`, of a message that is made of what the client hands over."""
    from django_kafka.messages import Message
    from django_kafka.serializers import TopicDecoder

    writer, reader = _ours()
    decoder = TopicDecoder("text", reader)
    received: list[Any] = [Received(writer.encode(flight, TOPIC)) for flight in FLIGHTS]
    assert Message(received[0], decoder).value == FLIGHTS[0]
    yield
    for _turn in range(MESSAGES // _DISTINCT):
        for message in received:
            _ = Message(message, decoder).value
    yield
