"""How two schemas differ: field by field in Avro and JSON Schema, line by line in Protobuf."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any

from .clients.schema_registry import prototext

_LONGEST = 200
"""Characters of a field's description."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field, or a line, that only one of two schemas has, or that is another one in each."""

    sign: str
    """"+" is new, "-" is gone, "~" is changed, " " stands for a line that both have."""
    place: str
    """The path of the field; "" of a line."""
    text: str
    """What it is, or from what to what."""


def differences(kind: str, old: str, new: str) -> list[Difference]:
    """Return how a new schema differs from an old one; "" for none at all.

    In the order of the new schema, with what is gone at the end; empty when all of what matters is the same.
    """
    if kind != "protobuf":
        try:
            before, after = (_fields(kind, json.loads(text)) if text else {} for text in (old, new))
        except (ValueError, RecursionError):
            pass
        else:
            return list(_between(before, after))
    read = prototext if kind == "protobuf" else str
    found = list(unified_diff(read(old).splitlines(), read(new).splitlines(), lineterm="", n=2))[2:]
    return [Difference(sign=one[:1], place="", text=one[1:]) for one in found if not one.startswith("@@")]


def _between(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Difference]:
    for place, text in new.items():
        if place not in old:
            yield Difference(sign="+", place=place, text=_shortened(text))
        elif old[place] != text:
            yield Difference(sign="~", place=place, text=f"{_shortened(old[place])} → {_shortened(text)}")
    for place, text in old.items():
        if place not in new:
            yield Difference(sign="-", place=place, text=_shortened(text))


def _fields(kind: str, schema: Any) -> dict[str, str]:
    """Return what each part of a schema is, by its path."""
    return dict(_avro(schema, "") if kind == "avro" else _json_schema(schema, ""))


_WHOLE = "(schema)"
"""The path of what stands for all of it."""
_NAMED = ("record", "error", "enum", "fixed")
_SAID = ("type", "name", "namespace", "fields", "doc", "symbols", "items", "values", "logicalType", "aliases")
"""What of an Avro type has words of its own."""


def _avro(schema: Any, place: str, more: str = "") -> Iterator[tuple[str, str]]:
    """Yield a type and what is in it; `more` is what its field says besides."""
    yield place or _WHOLE, f"{_avro_word(schema)}{more}"
    records = [one for one in _inner(schema) if one.get("type") in ("record", "error")]
    for record in records:
        # Of several in a union each has its own name in the path: they may have fields of one name.
        here = ".".join(filter(None, (place, _name(record) if len(records) > 1 else "")))
        for field in _listed(record.get("fields")):
            said = [f"default {_compact(field['default'])}"] if "default" in field else []
            said += [f"{key} {_compact(field[key])}" for key in ("aliases", "doc") if field.get(key)]
            path = ".".join(filter(None, (here, str(field.get("name")))))
            yield from _avro(field.get("type"), path, "".join(f", {one}" for one in said))


def _inner(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield the types with a name that stand in a type."""
    if isinstance(schema, list):
        for one in schema:
            yield from _inner(one)
    elif isinstance(schema, dict):
        if schema.get("type") in _NAMED:
            yield schema
        else:
            for key in ("items", "values", "type"):
                yield from _inner(schema.get(key))


def _avro_word(schema: Any) -> str:
    if isinstance(schema, list):
        return " | ".join(map(_avro_word, schema))
    if not isinstance(schema, dict):
        return str(schema)
    kind = schema.get("type")
    if kind == "array":
        word = f"array of {_avro_word(schema.get('items'))}"
    elif kind == "map":
        word = f"map of {_avro_word(schema.get('values'))}"
    elif kind in _NAMED:
        word = f"{kind} {_name(schema)}"
    else:
        word = _avro_word(kind)
    said = [str(schema["logicalType"])] if "logicalType" in schema else []
    said += [f"{key} {_compact(schema[key])}" for key in ("symbols", "aliases", "doc") if schema.get(key)]
    said += [f"{key} {_compact(value)}" for key, value in schema.items() if key not in _SAID]
    return f"{word} ({', '.join(said)})" if said else word


def _name(schema: Any) -> str:
    if not isinstance(schema, dict) or not schema.get("name"):
        return ""
    name, space = str(schema["name"]), schema.get("namespace")
    return f"{space}.{name}" if space and "." not in name else name


_OF_PARTS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords of JSON Schema whose members are schemas by name."""


def _json_schema(schema: Any, place: str, more: str = "") -> Iterator[tuple[str, str]]:
    """Yield a schema and those in it; `more` is what the schema around it says of it."""
    if not isinstance(schema, dict):
        yield place or _WHOLE, _compact(schema) + more
        return
    required = list(schema["required"]) if isinstance(schema.get("required"), list) else []
    parts = {key: schema[key] for key in _OF_PARTS if isinstance(schema.get(key), dict)}
    inside = {key: schema[key] for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)}
    own = {key: value for key, value in schema.items() if key not in (*parts, *inside, "$schema", "required")}
    kind = own.pop("type", None)
    words = [" | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)] if kind is not None else []
    words += [f"{key} {_compact(value)}" for key, value in own.items()]
    unnamed = [name for name in required if name not in parts.get("properties", {})]
    words += [f"required {_compact(unnamed)}"] if unnamed else []
    yield place or _WHOLE, (", ".join(words) or "anything") + more
    for key, members in parts.items():
        for name, inner in members.items():
            where = name if key == "properties" else f"{key}.{name}"
            said = ", required" if key == "properties" and name in required else ""
            yield from _json_schema(inner, f"{place}.{where}" if place else where, said)
    for key, inner in inside.items():
        yield from _json_schema(inner, f"{place}[]" if key == "items" else f"{place}.{key}".lstrip("."))


def _listed(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
