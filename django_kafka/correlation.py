"""The correlation id of the message that is handled: every line of its handler tells it, its records carry it on.

Looked for when somebody asks: a handler that logs nothing costs nothing.
"""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Protocol

from . import conf
from .messages import Message

LONGEST = 128
"""Characters of an id that are told and carried on."""

Pairs = Sequence[tuple[str, "bytes | None"]]


class Handled(Protocol):
    """A message that is handled, or what knows which one that is now."""

    @property
    def headers(self) -> Pairs:
        """Its headers, in their order."""


_handled: ContextVar[Handled | None] = ContextVar("handled", default=None)
"""Where the headers are of the message that is handled here."""


class CorrelationFilter(logging.Filter):
    """Gives each LogRecord `correlation_id`: that of the message that is handled, else `default`.

    For `filters` of LOGGING, at handlers, so that lines of all loggers pass it.
    """

    def __init__(self, name: str = "", *, default: str | None = "-") -> None:
        super().__init__(name)
        self.default = default

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through; one that has a `correlation_id` keeps it."""
        if not hasattr(record, "correlation_id"):
            record.correlation_id = current() or self.default
        return True


def current() -> str | None:
    """Return the correlation id of the message that is handled in this thread or task; None when it has none."""
    found = _carried()
    return found and found[1]


@contextmanager
def about(message: Message) -> Iterator[None]:
    """Have what runs inside belong to one message, as for each message of a list."""
    token = _handled.set(message)
    try:
        yield
    finally:
        _handled.reset(token)


def follow(handled: Handled | None) -> None:
    """Look there from now on for what is handled in this thread or task; None: nothing is."""
    _handled.set(handled)


def to_carry(headers: Pairs | None) -> list[tuple[str, bytes | None]]:
    """Return the header that a record which is produced here takes along; none when it has a correlation id itself."""
    if _handled.get() is None or not conf.kafka().logging.propagate_correlation:
        return []
    found = _carried()
    if found is None or (headers and any(name.lower() in _names() for name, _value in headers)):
        return []
    return [(found[0], found[1].encode())]


def _carried() -> tuple[str, str] | None:
    handled = _handled.get()
    named = None if handled is None else _named(handled.headers)
    if not named:
        return None
    name, value = named
    text = readable(value)
    return (name, text) if text else None


def _named(headers: Pairs) -> tuple[str, bytes] | None:
    """Return the header that has a correlation id: of several names the first in settings, of one name the last."""
    there = {name.lower(): (name, value) for name, value in headers if value is not None}
    return next((there[name] for name in _names() if name in there), None) if there else None


def _names() -> tuple[str, ...]:
    # Not of kafka(): a line that is logged must not fail because settings are wrong.
    return _lowered(conf.reading().kafka.logging.correlation_headers)


@lru_cache(maxsize=8)
def _lowered(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.lower() for name in names)


def readable(value: bytes) -> str:
    """Return an id of strangers as text that begins no line, moves no cursor and does not flood."""
    try:
        # Its end may be cut in the middle of a character.
        text, _read = codecs.utf_8_decode(value[: 4 * LONGEST], "strict", False)
    except UnicodeDecodeError:
        text = value[:LONGEST].hex()
    if not text.isprintable():  # which is quick, and hardly ever so
        text = "".join(each for each in text if each.isprintable())
    return text.strip()[:LONGEST]
