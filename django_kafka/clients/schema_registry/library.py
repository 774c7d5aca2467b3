"""The registry part of the client library, which is an extra: imported when it is first needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import Any

from ...exceptions import ConfigurationError

_MODULES = {"avro": "avro", "jsonschema": "json_schema", "protobuf": "protobuf"}


@cache
def load(part: str = "") -> ModuleType:
    """Return the library's package, or the module for one kind of schema. Raises `ConfigurationError`."""
    name = f"confluent_kafka.schema_registry{f'.{_MODULES[part]}' if part else ''}"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"{f'The serializer {part!r}' if part else 'A schema registry'} needs the extra `schema-registry`: "
            f"pip install 'django-lynx-kafka[schema-registry]' ({error})."
        ) from None


@cache
def _message() -> Any:
    try:
        return importlib.import_module("google.protobuf.message").Message
    except ImportError:
        return None


def is_message(value: object) -> bool:
    """Tell whether a value is a message of Protobuf."""
    # Looked at by name first: nothing is imported for values of other kinds.
    return hasattr(value, "DESCRIPTOR") and _message() is not None and isinstance(value, _message())


def as_message(value: Mapping[str, Any], kind: Any) -> Any:
    """Return a dict as a message of a class; names as in the schema. Raises `ValueError` for what does not fit."""
    return importlib.import_module("google.protobuf.json_format").ParseDict(dict(value), kind())


def as_dict(message: Any) -> dict[str, Any]:
    """Return a message as a dict of what JSON has, for people's eyes."""
    turn = importlib.import_module("google.protobuf.json_format").MessageToDict
    found: dict[str, Any] = turn(message, preserving_proto_field_name=True)
    return found


def plain(value: Any, other: Callable[[Any], Any]) -> Any:
    """Return a value with nothing in it but what JSON has."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): plain(inner, other) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, other) for inner in value]
    return plain(other(value), other)
