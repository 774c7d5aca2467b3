"""Avro values read without the library, where it would do no more: it looks for rules anew with each message.

That takes several times as long as the reading itself. Schemas with rules are left to it, and all schemas where the
project has registered what carries rules out.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable
from typing import Any

from .frames import BY_ID


def reader(client: Any, start: bytes, subject: str | None, wanted: Any) -> Callable[[bytes], Any] | None:
    """Return what turns frames that begin so into values; None where the library has to.

    Their schema is one that the library has just read for `subject`; `wanted` is the schema that readers want as the
    library has it, or None.
    """
    if start[0] != BY_ID or _rules_are_carried_out():
        return None
    # Remembered, under the same words as the library's own question.
    named = [client.get_schema(int.from_bytes(start[1:], "big"), subject, None), *([] if wanted is None else [wanted])]
    if not all(map(_is_plain, named)):
        return None
    fastavro = importlib.import_module("fastavro")
    written, *more = (fastavro.parse_schema(json.loads(one.schema_str)) for one in named)
    if not isinstance(written, dict) or written["type"] != "record":
        return None
    read, stream, skip, read_as = fastavro.schemaless_reader, io.BytesIO, len(start), more[0] if more else None
    return lambda frame: read(stream(frame[skip:]), written, read_as)


def _is_plain(schema: Any) -> bool:
    """Tell whether a schema has no rules, and needs no other one."""
    return schema.rule_set is None and schema.metadata is None and not schema.references


def _rules_are_carried_out() -> bool:
    rules = importlib.import_module("confluent_kafka.schema_registry.rule_registry").RuleRegistry.get_global_instance()
    return bool(rules.get_executors() or rules.get_actions())
