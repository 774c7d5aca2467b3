"""The schemas of the tests: flights in Avro, JSON Schema and Protobuf."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

AVRO: dict[str, Any] = {
    "type": "record",
    "name": "FlightLanded",
    "namespace": "flights",
    "fields": [
        {"name": "flight", "type": "string"},
        {"name": "delay", "type": ["null", "int"], "default": None},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}, "default": 0},
    ],
}
NEWER: dict[str, Any] = {**AVRO, "fields": [*AVRO["fields"], {"name": "gate", "type": "string", "default": "?"}]}
"""A field more, with a default: old readers and new ones get on."""
INCOMPATIBLE: dict[str, Any] = {**AVRO, "fields": [*AVRO["fields"], {"name": "gate", "type": "string"}]}
"""A field more, without one."""
JSON: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "FlightLanded",
    "type": "object",
    "properties": {
        "flight": {"type": "string"},
        "delay": {"type": ["integer", "null"]},
        "at": {"type": "string"},
    },
    "required": ["flight"],
}


def _message() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="flights/landed.proto", package="flights", syntax="proto3")
    message = file.message_type.add(name="FlightLanded")
    for number, (name, kind) in enumerate((("flight", 9), ("delay", 5)), 1):
        message.field.add(name=name, number=number, type=kind, label=1)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("flights.FlightLanded"))


FlightLanded = _message()
"""As protoc makes it."""
PROTOBUF = f"{__name__}.FlightLanded"
SCHEMAS: dict[str, Any] = {"avro": AVRO, "jsonschema": JSON, "protobuf": PROTOBUF}
"""By serializer."""
