"""How schemas differ: fields that are new, gone or others, in all three kinds."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from django_kafka.clients.schema_registry import prototext
from django_kafka.schema_differences import differences
from tests.registries.schemas import AVRO, JSON, NEWER, FlightLanded


def told(kind: str, old: Any, new: Any) -> list[tuple[str, str, str]]:
    """Return the differences of two schemas, each as JSON has it or as a text."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in (old, new)]
    return [(one.sign, one.place, one.text) for one in differences(kind, *texts)]


def avro(*fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": "Flight", "namespace": "flights", "fields": list(fields), **more}


# Avro


def test_a_new_field_is_shown_with_its_default() -> None:
    assert told("avro", AVRO, NEWER) == [("+", "gate", 'string, default "?"')]
    assert told("avro", NEWER, AVRO) == [("-", "gate", 'string, default "?"')]


def test_a_field_of_another_type_is_shown_from_what_to_what() -> None:
    old = avro({"name": "delay", "type": "int"}, {"name": "at", "type": "long"})
    new = avro(
        {"name": "delay", "type": ["null", "int"], "default": None},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    )
    assert told("avro", old, new) == [
        ("~", "delay", "int → null | int, default null"),
        ("~", "at", "long → long (timestamp-millis)"),
    ]


def test_what_stands_inside_a_field_has_a_path() -> None:
    airport = {"type": "record", "name": "Airport", "fields": [{"name": "code", "type": "string"}]}
    larger = {**airport, "fields": [*airport["fields"], {"name": "city", "type": "string", "default": ""}]}
    for wrap in (lambda one: one, lambda one: ["null", one], lambda one: {"type": "array", "items": one}):
        found = told("avro", avro({"name": "to", "type": wrap(airport)}), avro({"name": "to", "type": wrap(larger)}))
        assert found == [("+", "to.city", 'string, default ""')]


def test_records_of_one_union_are_told_apart() -> None:
    def of(name: str, kind: str) -> dict[str, Any]:
        return {"type": "record", "name": name, "fields": [{"name": "code", "type": kind}]}

    old, new = ([of("A", "string"), of("B", kind)] for kind in ("string", "int"))
    assert told("avro", old, new) == [("~", "B.code", "string → int")]


def test_symbols_names_and_sizes_count() -> None:
    def enum(*symbols: str) -> dict[str, Any]:
        return avro({"name": "state", "type": {"type": "enum", "name": "State", "symbols": list(symbols)}})

    assert told("avro", enum("ON"), enum("ON", "OFF")) == [
        ("~", "state", 'enum State (symbols ["ON"]) → enum State (symbols ["ON", "OFF"])')
    ]
    assert told("avro", avro(), avro(namespace="others")) == [
        ("~", "(schema)", "record flights.Flight → record others.Flight")
    ]
    hashes = [avro({"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": size}}) for size in (16, 32)]
    assert told("avro", *hashes) == [("~", "hash", "fixed Hash (size 16) → fixed Hash (size 32)")]


def test_order_and_blanks_are_no_difference() -> None:
    assert told("avro", AVRO, json.dumps(dict(reversed(AVRO.items())), indent=3)) == []
    assert told("jsonschema", JSON, json.dumps(dict(reversed(JSON.items())), indent=3)) == []


def test_against_nothing_all_is_new() -> None:
    found = told("avro", "", AVRO)
    assert {sign for sign, *_rest in found} == {"+"}
    assert [place for _sign, place, _text in found] == ["(schema)", "flight", "delay", "at"]


def test_what_is_no_json_is_compared_line_by_line() -> None:
    assert told("avro", "{a\nb", "{a\nc") == [(" ", "", "{a"), ("-", "", "b"), ("+", "", "c")]


def test_what_is_long_is_cut_after_it_was_compared() -> None:
    old, new = (avro({"name": "a", "type": "int", "doc": "x" * 500 + end}) for end in ("1", "2"))
    [(sign, place, text)] = told("avro", old, new)
    assert (sign, place, len(text) < 450) == ("~", "a", True)


@pytest.mark.parametrize("odd", [None, 7, "text", [], [[[]]], {"fields": 3}, {"type": "record", "fields": [1, {}]}])
def test_what_is_no_schema_is_no_error(odd: Any) -> None:
    for kind in ("avro", "jsonschema"):
        assert isinstance(told(kind, odd, AVRO), list)


def test_what_is_too_deep_is_compared_as_text() -> None:
    deep = '{"type":' * 5000 + '"int"' + "}" * 5000
    assert differences("avro", deep, deep) == []
    assert differences("avro", deep, '"int"') != []


# JSON Schema


def test_properties_are_shown_by_name() -> None:
    new = {
        **JSON,
        "properties": {**JSON["properties"], "delay": {"type": "integer", "minimum": 0}, "gate": {"type": "string"}},
        "required": ["flight", "gate"],
    }
    assert told("jsonschema", JSON, new) == [
        ("~", "delay", "integer | null → integer, minimum 0"),
        ("+", "gate", "string, required"),
    ]


def test_what_stands_inside_a_property_has_a_path_too() -> None:
    def of(kind: str) -> dict[str, Any]:
        leg = {"type": "object", "properties": {"to": {"type": kind}}}
        return {"type": "object", "properties": {"legs": {"type": "array", "items": leg}}, "$defs": {"Leg": leg}}

    assert told("jsonschema", of("string"), of("null")) == [
        ("~", "legs[].to", "string → null"),
        ("~", "$defs.Leg.to", "string → null"),
    ]


def test_what_is_required_without_being_described_counts() -> None:
    assert told("jsonschema", {"type": "object"}, {"type": "object", "required": ["a"]}) == [
        ("~", "(schema)", 'object → object, required ["a"]')
    ]
    assert told("jsonschema", True, {"additionalProperties": {"type": "string"}}) == [
        ("~", "(schema)", "true → anything"),
        ("+", "additionalProperties", "string"),
    ]


# Protobuf


def descriptor(**more: Any) -> str:
    """Return the flight's file as a registry has it, with a field more."""
    file = descriptor_pb2.FileDescriptorProto()
    FlightLanded.DESCRIPTOR.file.CopyToProto(file)
    if more:
        file.message_type[0].field.add(label=1, **more)
    return base64.b64encode(file.SerializeToString()).decode()


def test_messages_are_compared_line_by_line() -> None:
    assert told("protobuf", descriptor(), descriptor(name="gate", number=3, type=9)) == [
        (" ", "", "  string flight = 1;"),
        (" ", "", "  int32 delay = 2;"),
        ("+", "", "  string gate = 3;"),
        (" ", "", "}"),
    ]


def test_a_source_is_as_good_as_a_descriptor() -> None:
    source = (
        'syntax = "proto3";\npackage flights;\nmessage FlightLanded {\n  string flight = 1;\n  int32 delay = 2;\n}\n'
    )
    assert told("protobuf", source, descriptor()) == []
    assert told("protobuf", "", descriptor())[0] == ("+", "", 'syntax = "proto3";')


def test_all_that_messages_may_have_is_written() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="a.proto", package="a", syntax="proto3", dependency=["b.proto"])
    message = file.message_type.add(name="M")
    message.oneof_decl.add(name="choice")
    message.oneof_decl.add(name="_maybe")
    message.field.add(name="one", number=1, type=9, label=1, oneof_index=0)
    message.field.add(name="two", number=2, type=11, label=1, type_name=".b.N", oneof_index=0)
    message.field.add(name="maybe", number=3, type=5, label=1, oneof_index=1, proto3_optional=True)
    message.field.add(name="many", number=4, type=9, label=3)
    message.field.add(name="by_name", number=5, type=11, label=3, type_name=".a.M.ByNameEntry")
    entry = message.nested_type.add(name="ByNameEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=3, label=1)
    message.nested_type.add(name="Inner").field.add(name="x", number=1, type=8, label=1)
    message.enum_type.add(name="E").value.add(name="NONE", number=0)
    message.reserved_range.add(start=8, end=11)
    message.reserved_name.append("old")
    file.enum_type.add(name="F").value.add(name="ZERO", number=0)
    assert prototext(base64.b64encode(file.SerializeToString()).decode()).splitlines() == [
        'syntax = "proto3";',
        "package a;",
        'import "b.proto";',
        "message M {",
        "  message Inner {",
        "    bool x = 1;",
        "  }",
        "  enum E {",
        "    NONE = 0;",
        "  }",
        "  oneof choice {",
        "    string one = 1;",
        "    b.N two = 2;",
        "  }",
        "  optional int32 maybe = 3;",
        "  repeated string many = 4;",
        "  map<string, int64> by_name = 5;",
        "  reserved 8 to 10;",
        '  reserved "old";',
        "}",
        "enum F {",
        "  ZERO = 0;",
        "}",
    ]
