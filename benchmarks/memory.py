"""The worker's memory while very many messages wait."""

from __future__ import annotations

import time
from collections.abc import Iterator

from .consuming import work

SLOW_SECONDS = 10.0
"""For so long the handler is slow and all queues fill; then it does nothing, and the worker is at its fastest."""
_began = 0.0


def take(message: object) -> None:
    """Handle a message: slowly at first."""
    global _began
    now = time.monotonic()
    _began = _began or now
    if now - _began < SLOW_SECONDS:
        time.sleep(0.001)


def our_memory() -> Iterator[None]:
    """A worker with a topic full of small messages."""
    yield from work()
