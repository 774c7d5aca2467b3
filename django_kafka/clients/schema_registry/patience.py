"""Waiting for an answer no longer than one can."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


class TooSlow(Exception):
    """No answer within the time that there was."""


def within(seconds: float, ask: Callable[[], T], *, name: str = "kafka-registry") -> T:
    """Return what `ask` returns, or raise what it raises; raise `TooSlow` when it takes longer.

    It runs in a thread of its own, called `name`, with the context variables of this one. That goes on unheard then:
    names are resolved, and answers trickle in, in times that nothing bounds.
    """
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append((True, ask()))
        except BaseException as error:  # noqa: BLE001  # raised where it was asked
            answer.append((False, error))

    thread = threading.Thread(target=copy_context().run, args=(run,), name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answer:
        raise TooSlow(f"There is no answer within {seconds:g} s.")
    good, found = answer[0]
    if not good:
        raise found
    return found  # type: ignore[no-any-return]
