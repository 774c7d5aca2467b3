"""Letters as text, without what settings mask: for those who may not see payloads, and for what is searched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..cloud_events import is_structured
from ..models import DeadLetter
from . import decoding
from .masking import Masking, masking

_BINARY = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readable:
    """What a letter says, as text."""

    key: str | None
    """Its key; None without one."""
    value: str | None
    """Its value; None of a tombstone."""
    headers: list[tuple[str, str | None]]
    """Its headers in their order."""
    error_message: str
    """What went wrong."""
    traceback: str
    """Where."""


def masked(letter: DeadLetter) -> Readable:
    """Return a letter as text without what is masked. What cannot be looked into is masked as a whole.

    Where settings mask nothing, nothing of a payload is there.
    """
    rule = masking()
    if not rule.active:
        return Readable(
            key=None, value=None, headers=[], error_message=letter.error_message, traceback=letter.traceback
        )
    key, value, pairs = _decoded(letter.key), _value(letter), letter.headers
    knowing = masking_of(letter)
    return Readable(
        key=_written(knowing.key(key)),
        value=_written(knowing.value(value)),
        headers=[(name, None if each is None else as_text(each)) for name, each in knowing.headers(pairs)],
        error_message=knowing.text(letter.error_message),
        traceback=knowing.text(letter.traceback),
    )


def whole(letter: DeadLetter) -> Readable:
    """Return a letter as text, with everything in it; bytes that are no UTF-8 are `\\xNN`."""
    return Readable(
        key=None if letter.key is None else as_text(bytes(letter.key)),
        value=None if letter.value is None else as_text(bytes(letter.value)),
        headers=[(name, None if each is None else as_text(each)) for name, each in letter.headers],
        error_message=letter.error_message,
        traceback=letter.traceback,
    )


def masking_of(letter: DeadLetter) -> Masking:
    """Return what masks texts that tell of a letter, such as the errors of its attempts."""
    read = masking().knowing_key(_decoded(letter.key)).knowing(_decoded(letter.value), headers=letter.headers)
    # As its serializer reads it, too: that need not be JSON.
    return decoding.knowing(read, letter)


def as_text(data: bytes) -> str:
    """Return bytes as text, with `\\xNN` for what is no UTF-8."""
    return data.decode("utf-8", "backslashreplace")


def _value(letter: DeadLetter) -> Any:
    """Return what a value holds for masks, whose paths begin at the data of a CloudEvent where handlers get that."""
    if letter.value is not None and is_structured(letter.headers):
        value, why = decoding.outside(letter, "value")
        # What cannot be looked into is masked as a whole.
        return object() if why else value
    return _decoded(letter.value)


def _decoded(data: bytes | memoryview | None) -> Any:
    """Return what JSON holds; else the text, or the bytes."""
    if data is None:
        return None
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError):
        pass
    try:
        return bytes(data).decode()
    except UnicodeDecodeError:
        return bytes(data)


def _written(value: Any) -> str | None:
    match value:
        case None | str():
            return value
        case bytes():
            return as_text(value)
    return json.dumps(value, ensure_ascii=False, default=str)
