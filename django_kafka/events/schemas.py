"""Schemas of types, for a schema registry."""

from __future__ import annotations

from typing import Any

import msgspec

from . import pydantic


def json_schema(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type, by which what is sent for its objects is valid."""
    found = pydantic.json_schema(kind) if pydantic.has_models(kind) else msgspec.json.schema(kind)
    named = found.get("$defs", {})
    # Registries and their clients look for the title of the whole.
    return {**named[found["$ref"].rpartition("/")[2]], "$defs": named} if "$ref" in found else found
