"""Schemas as settings name them: a text, a file, a class of messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from ... import conf, events
from ...exceptions import ConfigurationError
from . import library

TYPES = {"avro": "AVRO", "jsonschema": "JSON", "protobuf": "PROTOBUF"}
"""What registries call the schemas of each serializer."""


def written(kind: str, source: conf.Schema, place: str) -> Any:
    """Return an Avro or JSON schema as the library takes it. Raises `ConfigurationError`; `place` says where it is."""
    text = _text(kind, source, place)
    try:
        json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{place} is no schema: it is not JSON ({error}).") from None
    package = library.load()
    references = [package.SchemaReference(one.name, one.subject, one.version) for one in source.references]
    return package.Schema(text, TYPES[kind], references)


def message_class(source: conf.Schema, place: str) -> Any:
    """Return the class of Protobuf messages at a dotted path. Raises `ConfigurationError`."""
    library.load("protobuf")
    if not source.path:
        raise ConfigurationError(f"{place} is no dotted path; Protobuf needs that of a message class.")
    found = _at(source.path, place)
    if not (isinstance(found, type) and hasattr(found, "DESCRIPTOR")):
        raise ConfigurationError(f"{place} is {source.path!r}, which is no class of Protobuf messages.")
    return found


def _text(kind: str, source: conf.Schema, place: str) -> str:
    if source.path:
        found = _at(source.path, place)
        if isinstance(found, type):
            return json.dumps(_of_type(kind, found, place))
        if isinstance(found, Mapping | list):
            return json.dumps(found)
        if isinstance(found, str):
            return found
        if not isinstance(found, Path):
            raise ConfigurationError(
                f"{place} is {source.path!r}, of type {type(found).__name__}; allowed: a text, a dict, a Path, a type."
            )
        source = conf.Schema(file=str(found))
    if not source.file:
        return source.text
    file = Path(getattr(settings, "BASE_DIR", "")) / source.file
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"{place} is {source.file!r}, which cannot be read: {reason} ({file}).") from None


def _of_type(kind: str, found: type, place: str) -> Any:
    if kind != "jsonschema":
        raise ConfigurationError(f"{place} is the type {found.__qualname__}, of which there is no schema for {kind}.")
    try:
        return events.json_schema(found)
    except Exception as error:  # of the type's own making
        raise ConfigurationError(f"{place} is the type {found.__qualname__}, which has no schema: {error}") from error


def _at(path: str, place: str) -> Any:
    try:
        return import_string(path)
    except ImportError as error:
        raise ConfigurationError(f"{place} is {path!r}, which cannot be imported: {error}") from None
