"""Avro values are read without the library once their schema is known: the same values, the same errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from confluent_kafka.schema_registry import RuleSet, Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.schema_registry.rule_registry import RuleRegistry
from confluent_kafka.serialization import MessageField, SerializationContext
from pytest_django import Settings

from django_kafka import conf, serializers
from django_kafka.clients.schema_registry import Codec, avro
from django_kafka.exceptions import DecodeError
from tests.registries.schemas import AVRO, NEWER
from tests.servers.registry import Registry

FLIGHT = {"flight": "UA 1", "delay": None, "at": datetime(2013, 1, 1, 5, 17, tzinfo=UTC)}
START = b"\0\0\0\0\1"


def codecs(settings: Settings, registry: Registry, schema: Any, topic: str, wanted: Any = None) -> tuple[Codec, Codec]:
    """Return what writes values with a schema, and what reads them."""
    settings.KAFKA = {
        "schema_registry": {"url": registry.url, "auto_register": True},
        "producers": {"default": {"serializer": "avro", "schema": schema}},
        "consumers": {"ops": {"group_id": "g", "serializer": "avro", "schema": wanted, "topics": {topic: {}}}},
    }
    writer, reader = (
        serializers.of_part(one, None, topic, "value") for one in (conf.producer(), conf.consumer())
    )  # fmt: skip
    assert isinstance(writer, Codec)
    assert isinstance(reader, Codec)
    return writer, reader


def reads_directly(codec: Codec, data: bytes) -> bool:
    return codec._readers[data[:5]] != codec._by_library


def record(kind: Any, **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": "R", "namespace": "a.b", "fields": [{"name": "v", "type": kind, **more}]}


NODE = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
ENUM = {"type": "enum", "name": "State", "symbols": ["ON", "OFF"]}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (AVRO, FLIGHT),
        (record(["null", "int", "string"]), {"v": "text"}),
        (record({"type": "array", "items": ENUM}), {"v": ["ON", "OFF"]}),
        (record({"type": "map", "values": "double"}), {"v": {"a": 1.5}}),
        (record({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}), {"v": Decimal("12.50")}),
        (record({"type": "int", "logicalType": "date"}), {"v": date(2013, 1, 1)}),
        (record({"type": "string", "logicalType": "uuid"}), {"v": UUID(int=7)}),
        (record({"type": "fixed", "name": "F", "size": 3}), {"v": b"abc"}),
        (record(NODE), {"v": {"next": {"next": None}}}),
        (record("bytes"), {"v": b"\0\xff"}),
    ],
)
def test_a_value_is_read_as_the_library_reads_it(
    registry: Registry, settings: Settings, topic: Callable[..., str], schema: Any, value: Any
) -> None:
    name = topic()
    writer, reader = codecs(settings, registry, schema, name)
    data = writer.encode(value, name)
    with SchemaRegistryClient({"url": registry.url}) as client:
        theirs = AvroDeserializer(client)(data, SerializationContext(name, MessageField.VALUE))
    assert [reader.decode(data, name) for _once in range(2)] == [theirs, theirs] == [value, value]
    assert reads_directly(reader, data)


@pytest.mark.parametrize(
    ("schema", "value"), [({"type": "string"}, "UA"), ({"type": "bytes"}, b"abc"), ([AVRO, "null"], FLIGHT)]
)
def test_what_is_no_record_is_left_to_the_library(
    registry: Registry, settings: Settings, topic: Callable[..., str], schema: Any, value: Any
) -> None:
    name = topic()
    writer, reader = codecs(settings, registry, schema, name)
    data = writer.encode(value, name)
    assert [reader.decode(data, name) for _once in range(2)] == [value, value]
    assert not reads_directly(reader, data)


def test_readers_get_what_they_want_whatever_was_written(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic()
    writer, reader = codecs(settings, registry, AVRO, name, NEWER)
    data = writer.encode(FLIGHT, name)
    assert [reader.decode(data, name) for _once in range(2)] == [{**FLIGHT, "gate": "?"}] * 2
    assert reads_directly(reader, data)


def test_each_schema_of_a_topic_has_its_own_way(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic()
    old = codecs(settings, registry, AVRO, name)[0].encode(FLIGHT, name)
    writer, reader = codecs(settings, registry, NEWER, name)
    new = writer.encode({**FLIGHT, "gate": "C"}, name)
    for _once in range(2):
        assert [reader.decode(one, name) for one in (old, new)] == [FLIGHT, {**FLIGHT, "gate": "C"}]


def test_bytes_that_do_not_fit_are_poison_and_make_the_others_no_slower(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name = topic()
    writer, reader = codecs(settings, registry, AVRO, name)
    data = writer.encode(FLIGHT, name)
    for _once in range(2):
        for bad in (data[:-3], data[:5], data[:5] + b"\xff" * 12):
            with pytest.raises(DecodeError, match="with schema id"):
                reader.decode(bad, name)
    assert reader.decode(data, name) == FLIGHT
    assert reads_directly(reader, data)


class Kept:
    """What remembers one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def get_schema(self, *_asked: Any) -> Schema:
        return self._schema


@pytest.fixture
def carries_out_rules() -> Iterator[None]:
    """A project that has registered something that carries out rules."""
    from confluent_kafka.schema_registry.serde import RuleExecutor

    class Encrypts(RuleExecutor):
        def type(self) -> str:
            return "TEST"

        def transform(self, ctx: Any, message: Any) -> Any:
            return message

    rules = RuleRegistry.get_global_instance()
    rules.register_executor(Encrypts())
    yield
    rules.clear()


def test_schemas_with_rules_or_references_are_left_to_the_library() -> None:
    text = json.dumps(AVRO)
    plain = Schema(text, "AVRO")
    assert avro.reader(Kept(plain), START, None, None) is not None
    ruled = Schema(text, "AVRO", rule_set=RuleSet(None, []))
    referring = Schema(text, "AVRO", [SchemaReference("a.B", "b", 1)])
    for other in (ruled, referring):
        assert avro.reader(Kept(other), START, None, None) is None
        assert avro.reader(Kept(plain), START, None, other) is None
    assert avro.reader(Kept(plain), b"\1" + b"\0" * 16, None, None) is None


def test_where_rules_are_carried_out_all_is_left_to_the_library(carries_out_rules: None) -> None:
    assert avro.reader(Kept(Schema(json.dumps(AVRO), "AVRO")), START, None, None) is None


def test_a_file_that_ends_with_a_line_break_is_the_same_schema(
    registry: Registry, settings: Settings, topic: Callable[..., str]
) -> None:
    name, text = topic(), json.dumps(AVRO)
    plain, broken = (codecs(settings, registry, one, name)[0].encode(FLIGHT, name) for one in (text, f"{text}\n"))
    assert plain == broken
