"""Producers by name: one client per process and name, safe over `fork()`, flushed at exit.

from django_kafka.producers import producers

producers["default"]
"""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from django.core.signals import setting_changed

from . import conf
from .exceptions import ConfigurationError, NotAvailable
from .producer import Producer, Route


class Producers:
    """The producers of this process, made when first asked for."""

    def __init__(self) -> None:
        self.made: dict[str | None, Producer] = {}
        """Those in use, by name, and the default one by None, too."""
        self._making = threading.Lock()

    def __getitem__(self, name: str | None) -> Producer:
        """Return the producer called `name` (None: the default one). Raises `UnknownName`, `ConfigurationError`."""
        try:
            return self.made[name]
        except KeyError:
            pass
        with self._making:
            own = conf.producer(name).name
            if own not in self.made:
                self.made[own] = self._make(own)
            self.made[name] = self.made[own]
            return self.made[own]

    def __iter__(self) -> Iterator[Producer]:
        return iter(set(self.made.values()))

    def __contains__(self, name: str) -> bool:
        return name in self.made

    def _make(self, name: str) -> Producer:
        settings = conf.producer(name)
        if not settings.enabled:
            raise ConfigurationError(f'Producer {name!r} is switched off: KAFKA["producers"][{name!r}]["enabled"].')
        if missing := conf.unavailable(settings):
            raise NotAvailable(" ".join(missing))
        producer = Producer(settings)
        _flush_when_this_process_ends()
        return producer

    def close(self, name: str, timeout: float | None = None) -> int:
        """Close one producer; the next use makes it anew. Returns how many records are undelivered for good."""
        with self._making:
            producer = self.made.get(name)
            self.made = {known: one for known, one in self.made.items() if one is not producer}
        return producer.close(timeout) if producer else 0

    def replace(self, broken: Producer) -> None:
        """Let the next use make a producer anew: a client never leaves a fatal error, and fails all it is given."""
        with self._making:
            if self.made.get(broken.name) is not broken:
                return
            self.made = {known: one for known, one in self.made.items() if one is not broken}
        broken.close(1.0)

    def close_all(self, timeout: float | None = None) -> int:
        """Close all of them and return how many records are undelivered for good; `timeout` is for all together."""
        began = time.monotonic()
        left = 0
        for producer in self:
            most = producer.connection_timeout if timeout is None else timeout
            left += self.close(producer.name, max(0.0, began + most - time.monotonic()))
        return left

    def flush(self, timeout: float) -> int:
        """Wait up to `timeout` seconds until nothing is undelivered; return how many records still are."""
        deadline = time.monotonic() + timeout
        return sum(producer.flush(max(0.0, deadline - time.monotonic())) for producer in self)

    def forget_after_fork(self) -> None:
        """Begin anew in a child process, whose inherited clients have no threads."""
        self.__init__()  # type: ignore[misc]  # the lock may have been held by a thread that does not exist here


producers = Producers()


def living(route: Route) -> Route:
    """Return the same route of the producer that now has its name: a broken or closed one is replaced."""
    producer = producers[route.producer.name]
    return route if producer is route.producer else route.find(producer)


close_all = producers.close_all

os.register_at_fork(after_in_child=producers.forget_after_fork)
atexit.register(close_all)

_flushed_by: set[int] = set()


def _flush_when_this_process_ends() -> None:
    """Flush at the end of children too: `atexit` does not run in those of multiprocessing and of Celery."""
    if os.getpid() in _flushed_by:
        return
    _flushed_by.add(os.getpid())
    multiprocessing.util.Finalize(None, close_all, exitpriority=100)
    celery_signals = sys.modules.get("celery.signals")
    if celery_signals is not None:
        celery_signals.worker_process_shutdown.connect(_close_all_for_celery)


def _close_all_for_celery(**_event: Any) -> None:
    close_all()


def _forget_settings(*, setting: str, **_event: Any) -> None:
    if setting == "KAFKA":
        close_all()


setting_changed.connect(_forget_settings)
