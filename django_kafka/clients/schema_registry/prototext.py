"""Schemas of Protobuf as people read them: what `protoc` would make the same descriptor of, without comments."""

from __future__ import annotations

import base64
import importlib
from collections.abc import Iterator
from typing import Any

_INDENT = "  "


def prototext(schema: str) -> str:
    """Return the source of a schema, which registries have as a file descriptor in base64, or as its source already."""
    if not schema:
        return ""
    found = importlib.import_module("google.protobuf.descriptor_pb2").FileDescriptorProto()
    try:
        found.ParseFromString(base64.b64decode(schema, validate=True))
    except Exception:  # noqa: BLE001  # the library's own error is no ValueError; it is a source then
        return "\n".join(line.rstrip() for line in schema.strip().splitlines())
    return "\n".join(_file(found))


def _file(file: Any) -> Iterator[str]:
    yield f'syntax = "{file.syntax or "proto2"}";'
    if file.package:
        yield f"package {file.package};"
    yield from (f'import "{name}";' for name in file.dependency)
    for message in file.message_type:
        yield from _message(message, "")
    for enum in file.enum_type:
        yield from _enum(enum, "")


def _message(message: Any, indent: str) -> Iterator[str]:
    entries = {one.name: one for one in message.nested_type if one.options.map_entry}
    inner = indent + _INDENT
    yield f"{indent}message {message.name} {{"
    for nested in message.nested_type:
        if nested.name not in entries:
            yield from _message(nested, inner)
    for enum in message.enum_type:
        yield from _enum(enum, inner)
    last = None
    for field in message.field:
        choice = field.oneof_index if field.HasField("oneof_index") and not field.proto3_optional else None
        if choice != last and last is not None:
            yield f"{inner}}}"
        if choice is not None and choice != last:
            yield f"{inner}oneof {message.oneof_decl[choice].name} {{"
        last = choice
        yield f"{inner}{_INDENT if choice is not None else ''}{_field(field, entries, in_oneof=choice is not None)}"
    if last is not None:
        yield f"{inner}}}"
    yield from (f"{inner}reserved {one.start} to {one.end - 1};" for one in message.reserved_range)
    yield from (f'{inner}reserved "{name}";' for name in message.reserved_name)
    yield f"{indent}}}"


def _enum(enum: Any, indent: str) -> Iterator[str]:
    yield f"{indent}enum {enum.name} {{"
    yield from (f"{indent}{_INDENT}{value.name} = {value.number};" for value in enum.value)
    yield f"{indent}}}"


def _field(field: Any, entries: dict[str, Any], *, in_oneof: bool) -> str:
    entry = entries.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = entry.field
        return f"map<{_type(key)}, {_type(value)}> {field.name} = {field.number};"
    label = {field.LABEL_REPEATED: "repeated ", field.LABEL_REQUIRED: "required "}.get(field.label, "")
    if field.proto3_optional and not in_oneof:
        label = "optional "
    default = f" [default = {field.default_value}]" if field.HasField("default_value") else ""
    return f"{label}{_type(field)} {field.name} = {field.number}{default};"


def _type(field: Any) -> str:
    if field.type_name:
        return str(field.type_name).removeprefix(".")
    return str(field.Type.Name(field.type)).removeprefix("TYPE_").lower()
