"""How long a page waits for payloads from storages, which let others wait for as long as they like."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from django.db import connections

from ..clients.schema_registry import TooSlow, within
from ..exceptions import StorageUnavailable

PAGE, DOWNLOAD = 5.0, 25.0
"""Seconds for a page, whatever it shows, and for a file: web servers end who takes longer than some 30."""
_MOST = 16
"""Threads that wait on when nobody does any more: what hangs is not asked by more of them."""

_waiting = threading.BoundedSemaphore(_MOST)


class _Patience:
    """What is left of the time of one page, and the payloads that it has: some look at one several times."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.until = time.monotonic() + seconds
        self.known: dict[tuple[str, bytes], bytes] = {}


_current: ContextVar[_Patience | None] = ContextVar("django_kafka.envelopes.patience", default=None)


@contextmanager
def patient(seconds: float) -> Iterator[None]:
    """Have all payloads that are fetched in this block come within so many seconds."""
    token = _current.set(_Patience(seconds))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def at_hand() -> Iterator[None]:
    """Have what is fetched in this block be there when it is asked for again in it."""
    if _current.get() is not None:
        yield
        return
    with patient(float("inf")):
        yield


def fetched(alias: str, reference: bytes, fetch: Callable[[], bytes]) -> bytes:
    """Return what `fetch` gets from a storage; raise `StorageUnavailable` when nobody here waits any longer for that.

    Elsewhere than in such a block it may take as long as it does.
    """
    patience = _current.get()
    if patience is None:
        return fetch()
    if (known := patience.known.get((alias, reference))) is None:
        bounded = patience.seconds < float("inf")
        known = patience.known[alias, reference] = _bounded(alias, patience, fetch) if bounded else fetch()
    return known


def _bounded(alias: str, patience: _Patience, fetch: Callable[[], bytes]) -> bytes:
    left = patience.until - time.monotonic()
    slow = f"The storage {alias!r} gives no payload within {patience.seconds:g} s."
    if left <= 0:
        raise StorageUnavailable(slow)
    if not _waiting.acquire(blocking=False):
        raise StorageUnavailable(f"{slow} {_MOST} others wait for storages already.")

    def ask() -> bytes:
        try:
            return fetch()
        finally:
            # Some storages are tables: of those of this thread nobody else takes care.
            connections.close_all()
            _waiting.release()

    try:
        return within(left, ask, name="kafka-storage")
    except TooSlow:
        pass
    raise StorageUnavailable(slow)
