"""What a registry has to have so that keys or values of a topic can be written, or read as settings want them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from ... import conf
from . import sources
from .codecs import Codec

_BUILT_IN = ("google/protobuf/", "google/type/", "confluent/")
"""How the names of Protobuf files begin that every registry has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """A schema, and the subject that it is registered under."""

    cluster: str
    """Whose registry."""
    subject: str
    """As the registry calls it."""
    kind: str
    """avro, jsonschema or protobuf."""
    text: str
    """The schema as it is sent to the registry; "": whatever is the newest there."""
    references: tuple[conf.Reference, ...] = ()
    """The schemas that it names, by their versions."""
    imports: tuple[Contract, ...] = ()
    """The files of Protobuf that it imports, whose versions the registry knows."""
    normalize: bool = False
    """Whether the registry brings it into one form first."""


def contract(codec: Codec) -> Contract | None:
    """Return what the registry has to have for a codec; None when that is nothing, or shows with a value only.

    Asks nothing. Raises `ConfigurationError` for a schema that cannot be read, and what a function of the project
    raises that names subjects.
    """
    use, newest = codec.use, bool(codec.options.use_latest)
    if use.kind == "protobuf":
        return _of_messages(codec, newest=newest)
    if use.schema is None:
        text, record = "", None
    else:
        text = sources.written(use.kind, use.schema, use.place).schema_str
        record = _record(use.kind, json.loads(text))
    subject = codec.subject_of(record)
    if not subject or not (text or newest):
        return None
    return Contract(
        cluster=use.cluster, subject=subject, kind=use.kind, text="" if newest else text,
        references=() if newest or use.schema is None else use.schema.references,
        normalize=bool(codec.options.normalize),
    )  # fmt: skip


def _of_messages(codec: Codec, *, newest: bool) -> Contract | None:
    descriptor = codec.message_class().DESCRIPTOR
    subject = codec.subject_of(descriptor.full_name)
    if not subject:
        return None
    if newest:
        return Contract(cluster=codec.use.cluster, subject=subject, kind="protobuf", text="")
    return _of_file(descriptor.file, codec.use.cluster, subject, normalize=bool(codec.options.normalize))


def _of_file(file: Any, cluster: str, subject: str, *, normalize: bool) -> Contract:
    # As the library does it: what is imported has the name of its file for a subject.
    imports = tuple(
        _of_file(one, cluster, one.name, normalize=normalize)
        for one in file.dependencies
        if not one.name.startswith(_BUILT_IN)
    )
    text = base64.standard_b64encode(file.serialized_pb).decode("ascii")
    return Contract(cluster=cluster, subject=subject, kind="protobuf", text=text, imports=imports, normalize=normalize)


def _record(kind: str, schema: Any) -> str | None:
    """Return what the record of a schema is called, as the library calls it; None when it has no name."""
    if not isinstance(schema, dict):
        return None
    if kind == "jsonschema":
        title = schema.get("title")
        return title if isinstance(title, str) else None
    name, space = schema.get("name"), schema.get("namespace")
    if not isinstance(name, str):
        kind_of_value = schema.get("type")
        return kind_of_value if isinstance(kind_of_value, str) else None
    return f"{space}.{name}" if space and "." not in name else name
