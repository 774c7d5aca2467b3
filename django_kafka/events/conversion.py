"""From payloads to objects of a type, and back to what a serializer takes."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, Protocol, get_args, is_typeddict
from uuid import UUID

import msgspec
from django.utils.functional import Promise

from ..cloud_events import CloudEvent
from ..exceptions import ConfigurationError
from . import pydantic
from .faults import Unfit


class Converter(Protocol):
    """Reads objects of one type."""

    @property
    def name(self) -> str:
        """What the type is called."""

    def load(self, value: Any) -> Any:
        """Return the object for a decoded value; raise `Unfit`."""


def typed(kind: Any) -> Converter | None:
    """Return what reads objects of a type; None where everything is taken as it is.

    Raises `ConfigurationError` for a type that nothing can be read as.
    """
    if kind in (Any, object):
        return None
    name = kind.__qualname__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    try:
        return pydantic.Models(kind, name) if pydantic.has_models(kind) else _Plain(kind, name)
    except Exception as error:  # of the type's own making
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"{name} is no type that can be read: {type(error).__name__}: {reason}") from error


class _Plain:
    """Reads what msgspec knows: dataclasses, structs of its own, `TypedDict`, and what Python itself has."""

    def __init__(self, kind: Any, name: str) -> None:
        self.name = name
        self._kind = kind
        # It says now what it does not know, and which name in a type leads nowhere.
        msgspec.json.Decoder(kind, dec_hook=_of_class)
        if isinstance(kind, type) and not is_typeddict(kind):
            isinstance(None, kind)

    def load(self, value: Any) -> Any:
        """Return the object for a decoded value; raise `Unfit`."""
        try:
            return msgspec.convert(value, self._kind, dec_hook=_of_class)
        except msgspec.ValidationError as error:
            fault = _fault(error)
        except RecursionError:
            fault = Unfit("nested too deeply")
        # Not where it was caught: what that says may quote the payload.
        raise fault


def _of_class(kind: Any, value: Any) -> Any:
    """Return the object for a value where a type has a class that msgspec does not know."""
    if pydantic.is_model(kind):
        return _models(kind).load(value)
    if not isinstance(value, kind):
        raise Unfit(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


@cache
def _models(kind: type) -> pydantic.Models:
    return pydantic.Models(kind, kind.__qualname__)


_PLACE = re.compile(r"(?s)(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`)?")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_TELLING = re.compile(r"Expected |Invalid (?:RFC3339|ISO8601|UUID|base64|decimal)|Object contains unknown field")
"""How sentences begin that tell what was expected. The others quote what was there."""


def _fault(error: msgspec.ValidationError) -> Unfit:
    """Return what msgspec says, without what it quotes of the payload."""
    place = _PLACE.fullmatch(str(error))
    assert place is not None
    what, path, cause = place["what"], (place["path"] or "").removeprefix("."), error.__cause__
    if isinstance(cause, Unfit):
        return cause.below(path)
    if cause is not None:
        return Unfit(f"refused ({type(cause).__name__})", path)
    if missing := _MISSING.fullmatch(what):
        return Unfit("missing", f"{path}.{missing['name']}".removeprefix("."))
    if not _TELLING.match(what):
        return Unfit("none of the values that are allowed", path)
    what = what.partition(" field `")[0].replace("`", "")
    return Unfit(f"{'of a key, ' if place['key'] else ''}{what[:1].lower()}{what[1:]}", path)


_KNOWN = (datetime, date, time, timedelta, Decimal, UUID)
"""What serializers know by themselves."""


def plain(value: Any, *, text: bool) -> Any:
    """Return an object of a dataclass, a struct or a model as a dict; None for everything else.

    With `text` for JSON, where there are no bytes.
    """
    if isinstance(value, CloudEvent):
        # It says something of a value, and is none: a producer that sends no such events refuses it.
        return None
    if pydantic.is_model(type(value)):
        value = pydantic.dumped(value, text=text)
    elif not (is_dataclass(value) and not isinstance(value, type)) and not isinstance(value, msgspec.Struct):
        return None
    return msgspec.to_builtins(
        value, builtin_types=_KNOWN if text else (*_KNOWN, bytes), enc_hook=_in_text if text else _in_bytes
    )


def _in_text(value: Any) -> Any:
    return pydantic.dumped(value, text=True) if pydantic.is_model(type(value)) else _base(value)


def _in_bytes(value: Any) -> Any:
    return pydantic.dumped(value, text=False) if pydantic.is_model(type(value)) else _base(value)


def _base(value: Any) -> Any:
    """Return what is of a class of its own as what that is made from: safe and lazy texts, as models have them."""
    if isinstance(value, str | Promise):
        return str.__str__(str(value))
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{type(value).__name__} in it is nothing that can be sent")
