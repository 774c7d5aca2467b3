"""A handler that waits 5 ms on one partition with 1,000 keys; order by key is proved in the same run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterator
from typing import Any

from django_kafka.messages import Message

from .consuming import work
from .settings import KAFKA, MESSAGES

SECONDS = 0.005
"""How long the handler waits."""


class Order:
    """Proves that messages of one key are handled one after another and in their order."""

    def __init__(self) -> None:
        self.handled = 0
        self.ended = 0.0
        self.most = 0
        self.violations: list[str] = []
        self._running: set[bytes | None] = set()
        self._last: dict[bytes | None, int] = {}

    def begin(self, key: bytes | None, offset: int) -> None:
        """A handler begins with a message."""
        if key in self._running:
            self.violations.append(f"offset {offset} of {key!r} begins while another one of that key runs")
        if offset <= self._last.get(key, -1):
            self.violations.append(f"offset {offset} of {key!r} begins after {self._last[key]}")
        self._running.add(key)
        self._last[key] = offset
        self.most = max(self.most, len(self._running))

    def end(self, key: bytes | None) -> None:
        """A handler has ended."""
        self._running.discard(key)
        self.handled += 1
        if self.handled == MESSAGES:
            self.ended = time.perf_counter()


ORDER = Order()


def wait(message: Message) -> None:
    """Wait in a thread."""
    ORDER.begin(message.raw_key, message.offset)
    time.sleep(SECONDS)
    ORDER.end(message.raw_key)


async def await_it(message: Message) -> None:
    """Wait on an event loop."""
    ORDER.begin(message.raw_key, message.offset)
    await asyncio.sleep(SECONDS)
    ORDER.end(message.raw_key)


def our_waiting_threads() -> Generator[None, None, dict[str, Any]]:
    """64 threads."""
    return (yield from _timed())


def our_waiting_async() -> Generator[None, None, dict[str, Any]]:
    """256 in flight on one event loop."""
    return (yield from _timed())


def _timed() -> Generator[None, None, dict[str, Any]]:
    inner: Iterator[None] = work()
    next(inner)
    yield
    started = time.perf_counter()
    next(inner)
    # Until the last handler came back: what is left is the way out of the group.
    seconds = ORDER.ended - started
    yield
    next(inner, None)
    if ORDER.violations:
        raise SystemExit(f"Order by key was violated {len(ORDER.violations)} times; {ORDER.violations[0]}.")
    ideal = KAFKA["consumers"]["bench"]["concurrency"] / SECONDS
    return {"of_ideal": MESSAGES / seconds / ideal, "ideal": ideal, "most_at_once": ORDER.most}
