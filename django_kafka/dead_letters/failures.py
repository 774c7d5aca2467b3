"""Failures: what is kept of an attempt that failed."""

from __future__ import annotations

import traceback as tracebacks
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from types import CodeType
from typing import Self

from django.utils import timezone

from ..exceptions import shown
from ..messages import Message
from . import decoding, frames

MOST_EARLIER = 10
"""Attempts before the last one that are stored with a letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt failed, as plain values that can be stored later."""

    error_type: str
    """Dotted name of the exception type."""
    error_message: str
    """What it says."""
    traceback: str
    """Where it came from."""
    category: str
    """What it is counted by."""
    handler: str
    """The dotted path of the handler; "" when none was found."""
    at: datetime
    """When it happened."""
    frame: str = ""
    """The innermost function of the project that it passed, see `frames`."""
    attempt: int = 1
    """Which attempt it was, of those that this worker made one after another."""
    earlier: tuple[Failure, ...] = ()
    """The attempts before it, in their order; of many only the last ones."""

    @classmethod
    def of(
        cls,
        error: BaseException,
        *,
        category: str,
        handler: str,
        message: Message | None = None,
        attempt: int = 1,
        earlier: Iterable[Failure] = (),
    ) -> Self:
        """Return the failure that `error` stands for. What was encrypted of `message` is masked in its texts."""
        kind = type(error)
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        traceback, frame = _origin(error, handler)
        said = shown(error)
        if message is not None and (hiding := decoding.hiding(message, error)) is not None:
            said, traceback = hiding.text(said), hiding.text(traceback)
        return cls(
            error_type=storable(name)[:300],
            error_message=storable(said),
            traceback=storable(traceback),
            category=category,
            handler=handler[:500],
            at=timezone.now(),
            frame=frame,
            attempt=attempt,
            earlier=tuple(earlier),
        )


_places: dict[tuple[str, tuple[tuple[CodeType, int], ...]], tuple[str, str]] = {}
"""Where errors of handlers came from, as text, and the project's innermost function: when all messages fail, all fail
at one and the same place."""
_MOST_PLACES = 100


def _origin(error: BaseException, handler: str) -> tuple[str, str]:
    """Return what `traceback` says and what `frames` says, which would take longer than to store the letter."""
    place = tuple((frame.f_code, line) for frame, line in tracebacks.walk_tb(error.__traceback__))
    if (found := _places.get((handler, place))) is None:
        if len(_places) >= _MOST_PLACES:
            _places.clear()
        stack = "".join(tracebacks.format_tb(error.__traceback__))
        found = _places[handler, place] = stack, frames.innermost(error, handler)
    stack, frame = found
    chained = error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__)
    if chained or isinstance(error, BaseExceptionGroup):
        return "".join(tracebacks.format_exception(error)), frame
    head = "Traceback (most recent call last):\n" if place else ""
    return "".join([head, stack, *tracebacks.format_exception_only(error)]), frame


def told(text: str, message: Message | None) -> str:
    """Return what a handler or a project said about a message as it is stored: without what was encrypted of it."""
    if message is not None and (hiding := decoding.hiding(message)) is not None:
        text = hiding.text(text)
    return storable(text)


def storable(text: str) -> str:
    """Return a text that every database takes."""
    # PostgreSQL text takes neither NUL nor lone surrogates.
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
