"""Models of pydantic, which is an extra: whoever has such a type has imported it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any, get_args

from .faults import Unfit

_MOST = 3
"""Faults that a sentence tells."""
_QUOTING = frozenset(("value_error", "assertion_error", "union_tag_invalid"))
"""Faults whose sentences quote the payload, or say what a class of the project's own wants."""


def is_model(kind: Any) -> bool:
    """Tell whether a type is a model of pydantic, or a dataclass that was made by it."""
    return isinstance(kind, type) and "__pydantic_validator__" in kind.__dict__


def has_models(kind: Any) -> bool:
    """Tell whether a type is such a model, or is made of one, as a list of them."""
    return is_model(kind) or any(has_models(one) for one in get_args(kind))


class Models:
    """Reads a type that has models in it."""

    def __init__(self, kind: Any, name: str) -> None:
        self.name = name
        self._pydantic = importlib.import_module("pydantic")
        self._adapter = self._pydantic.TypeAdapter(kind)
        # So that a name in it that leads nowhere is said now.
        self._adapter.rebuild(raise_errors=True)

    def load(self, value: Any) -> Any:
        """Return the object for a decoded value; raise `Unfit`."""
        try:
            return self._adapter.validate_python(value)
        except self._pydantic.ValidationError as error:
            faults = error.errors(include_url=False, include_input=False)
        raise _unfit(faults)


def _unfit(faults: Sequence[dict[str, Any]]) -> Unfit:
    told = [Unfit(_what(one), _path(one["loc"])) for one in faults[:_MOST]]
    if len(faults) == 1:
        return told[0]
    more = f", and {len(faults) - _MOST} more" if len(faults) > _MOST else ""
    return Unfit("; ".join(map(str, told)) + more)


def _path(location: Sequence[str | int]) -> str:
    return "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in location).removeprefix(".")


@cache
def _known() -> frozenset[str]:
    return frozenset(get_args(importlib.import_module("pydantic_core.core_schema").ErrorType)) - _QUOTING


def _what(fault: dict[str, Any]) -> str:
    """Return what pydantic expected, without what it quotes of the payload."""
    if fault["type"] == "missing":
        return "missing"
    if fault["type"] not in _known():
        return f"refused ({fault['type']})"
    said = str(fault["msg"])
    if "error" in fault.get("ctx", {}):
        # Where its parser stopped, and at which letter.
        said = said.partition(",")[0].partition(":")[0]
    return said[:1].lower() + said[1:]


@cache
def _adapter(kind: Any) -> Any:
    return importlib.import_module("pydantic").TypeAdapter(kind)


def json_schema(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of what is sent for a model."""
    found: dict[str, Any] = _adapter(kind).json_schema(by_alias=True, mode="serialization")
    return found


def dumped(value: Any, *, text: bool) -> Any:
    """Return a model as a dict, with the names that it is read by; with `text` as JSON has it."""
    kind: Any = type(value)
    return _adapter(kind).dump_python(value, mode="json" if text else "python", by_alias=True)
