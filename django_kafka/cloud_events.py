"""CloudEvents 1.0 in Kafka: what an event says of itself, in headers (binary) or around its data (structured).

Kafka's binding writes attributes as UTF-8, and not percent-encoded, as the one for HTTP does.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from .exceptions import EncodeError

STRUCTURED: Final = "application/cloudevents+json"
"""The content type of a value that is a whole event."""
CONTENT_TYPE: Final = "content-type"
"""The header that says of which kind a value is."""
_PREFIX: Final = "ce_"
_MEDIA_TYPE = "application/cloudevents"
_VERSION = "1.0"
_REQUIRED = ("id", "source", "type")
_OPTIONAL = ("subject", "dataschema", "datacontenttype")
_NAMED = (*_REQUIRED, *_OPTIONAL, "specversion", "time", "data", "data_base64")
_NAME = re.compile(r"[a-z0-9]{1,100}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_JSON = re.compile(r"[^;]*[/+]json\s*(;|$)", re.IGNORECASE)

Pairs = Sequence[tuple[str, "bytes | None"]]


class NoCloudEvent(ValueError):
    """What was to be an event and is none; the sentence has nothing of its data in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudEvent:
    """An event. Send one instead of a value, to say more than settings do; `message.cloud_event` is what one got."""

    data: Any = None
    """What it is about, for the serializer; of a message that came it is in its value, and not here."""
    id: str = ""
    """What tells it from others of its source; empty: a new one, when it is sent."""
    source: str = ""
    """Where it happened: a URI, such as "/flights/ops"; empty: as settings say."""
    type: str = ""
    """What happened, such as "com.example.flight.landed"; empty: as settings say."""
    subject: str | None = None
    """About what of its source."""
    time: datetime | None = None
    """When; None: now, when it is sent."""
    dataschema: str | None = None
    """The URI of the schema of its data."""
    datacontenttype: str | None = None
    """The content type of its data; None: as settings and the serializer say."""
    extensions: Mapping[str, str | int | bool] = field(default_factory=lambda: MappingProxyType({}))
    """More attributes: names are of a-z and 0-9. Of a binary event that came all are texts."""

    def completed(self, *, source: str, type: str, datacontenttype: str) -> CloudEvent:
        """Return it with what it does not say itself. Raises `EncodeError` for what no event may be."""
        whole = replace(
            self,
            id=self.id or str(uuid.uuid4()),
            source=self.source or source,
            type=self.type or type,
            time=self.time or datetime.now(UTC),
            datacontenttype=self.datacontenttype or datacontenttype,
        )
        for name in ("source", "type"):
            if not getattr(whole, name):
                raise EncodeError(
                    f"A CloudEvent has no {name}: give it one, or `{name}` in the settings of its producer."
                )
        if whole.time is not None and whole.time.utcoffset() is None:
            raise EncodeError("The time of a CloudEvent has no zone.")
        for name, value in whole.extensions.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _NAMED:
                raise EncodeError(f"An extension of a CloudEvent is called {name!r}; a name is of a-z and 0-9.")
            if not isinstance(value, str | int | bool):
                kind = builtin_type(value).__name__
                raise EncodeError(f"The extension {name!r} of a CloudEvent is {kind}; it has to be text, int or bool.")
        return whole


builtin_type = type
"""What an attribute of events has the name of."""


def is_json(content_type: str) -> bool:
    """Tell whether what has this content type is JSON."""
    return bool(_JSON.match(content_type))


def attribute_of(event: CloudEvent | None, name: str) -> str | int | bool | datetime | None:
    """Return what an event says of itself under a name, as that stands in headers and JSON; None when nothing."""
    if event is None:
        return None
    found: str | int | bool | datetime | None = (
        getattr(event, name) if name in (*_REQUIRED, *_OPTIONAL, "time") else event.extensions.get(name)
    )
    return found


def attributes_of(event: CloudEvent) -> dict[str, str | int | bool]:
    """Return all that an event says of itself, as JSON has it."""
    named = {name: getattr(event, name) for name in (*_REQUIRED, *_OPTIONAL)}
    time = None if event.time is None else event.time.isoformat().replace("+00:00", "Z")
    whole = {"specversion": _VERSION, **named, "time": time, **event.extensions}
    return {name: value for name, value in whole.items() if value is not None}


def headers_of(event: CloudEvent) -> list[tuple[str, bytes | None]]:
    """Return the headers of a binary event, without the content type. Raises `EncodeError`."""
    found: list[tuple[str, bytes | None]] = []
    for name, value in attributes_of(event).items():
        if name != "datacontenttype":
            found.append((f"{_PREFIX}{name}", _encoded(name, value)))
    return found


def content_type_of(event: CloudEvent) -> tuple[str, bytes | None]:
    """Return the header with the content type of the data of an event. Raises `EncodeError`."""
    return CONTENT_TYPE, _encoded("datacontenttype", event.datacontenttype or "")


def _encoded(name: str, value: str | int | bool) -> bytes:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise EncodeError(f"The attribute {name!r} of a CloudEvent has lone surrogates in it.") from None


def written(event: CloudEvent, data: bytes | None, *, literal: bool) -> bytes:
    """Return a structured event around data; `literal`: that is JSON, and stands there as it is."""
    head = json.dumps(attributes_of(event), ensure_ascii=False, separators=(",", ":"))
    _encoded("data", head)
    if data is None:
        return head.encode()
    name, text = (b"data", data) if literal else (b"data_base64", b'"%b"' % base64.b64encode(data))
    return b'%b,"%b":%b}' % (head[:-1].encode(), name, text)


def of_headers(pairs: Pairs) -> CloudEvent | None:
    """Return the event that headers tell of; None when it is none, or not right."""
    found: dict[str, Any] = {}
    try:
        for name, value in pairs:
            lowered = name.lower()
            if lowered.startswith(_PREFIX) and value is not None:
                found[lowered.removeprefix(_PREFIX)] = value.decode()
            elif lowered == CONTENT_TYPE and value is not None and not is_structured([(name, value)]):
                found["datacontenttype"] = value.decode()
        return _event(found)
    except (UnicodeDecodeError, NoCloudEvent):
        return None


def is_structured(pairs: Iterable[tuple[str, bytes | None]]) -> bool:
    """Tell whether headers say that the value is a whole event."""
    kinds = [value for name, value in pairs if name.lower() == CONTENT_TYPE]
    return bool(kinds) and (kinds[-1] or b"").lower().startswith(_MEDIA_TYPE.encode())


def read(data: bytes, pairs: Pairs) -> tuple[CloudEvent, bytes | None]:
    """Return a structured event, and its data as bytes. Raises `NoCloudEvent`."""
    kind = next((value or b"" for name, value in reversed(pairs) if name.lower() == CONTENT_TYPE), b"")
    if kind.split(b";")[0].strip().lower() != STRUCTURED.encode():
        raise NoCloudEvent(f"events are read as {STRUCTURED} only")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise NoCloudEvent("it is no JSON") from None
    if not isinstance(found, dict):
        raise NoCloudEvent("it is no object")
    event = _event({name: value for name, value in found.items() if name not in ("data", "data_base64")})
    return event, _data_of(found, event)


def _data_of(found: Mapping[str, Any], event: CloudEvent) -> bytes | None:
    if (encoded := found.get("data_base64")) is not None:
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError, TypeError):
            raise NoCloudEvent("its `data_base64` is no base64") from None
    data = found.get("data")
    if data is None:
        return None
    if isinstance(data, str) and not is_json(event.datacontenttype or "application/json"):
        return data.encode("utf-8", "surrogatepass")
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    except RecursionError:
        raise NoCloudEvent("its `data` is nested too deeply") from None


def _event(found: Mapping[str, Any]) -> CloudEvent:
    """Return the event with these attributes. Raises `NoCloudEvent`."""
    if found.get("specversion") != _VERSION:
        raise NoCloudEvent(f"its `specversion` is not {_VERSION}")
    for name in (*_REQUIRED, *_OPTIONAL):
        value = found.get(name)
        if not (isinstance(value, str) and value) and (name in _REQUIRED or value is not None):
            raise NoCloudEvent(f"its `{name}` is {'missing' if value is None else 'no text'}")
    return CloudEvent(
        **{name: found[name] for name in (*_REQUIRED, *_OPTIONAL) if found.get(name) is not None},
        time=_time(found.get("time")),
        extensions=MappingProxyType({
            name: value for name, value in found.items() if name not in _NAMED and isinstance(value, str | int | bool)
        }),
    )  # fmt: skip


def _time(value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        # A leap second, and what is outside the calendar, is none to Python either.
        if isinstance(value, str) and _TIME.fullmatch(value):
            return datetime.fromisoformat(value.upper())
    except ValueError:
        pass
    raise NoCloudEvent("its `time` is none")
