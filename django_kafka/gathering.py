"""What a handler produces, gathered in its thread, so that its message is settled after it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from . import logs
from .deliveries import Delivery

log = logs.of(__name__)


@dataclass(slots=True)
class Sent:
    """A delivery, and how to send its record again."""

    delivery: Delivery
    """The delivery of the latest sending."""
    send: Callable[[], Delivery]
    """Send the record at once and return the delivery."""
    note: str = field(default="", kw_only=True)
    """What is to be known of it when its message is given up for it."""

    def again(self) -> None:
        """Send the record again, whose delivery failed; what cannot be sent yet stays failed, to be tried once more."""
        try:
            self.delivery = self.send()
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # a full queue, for one: the failed delivery says it all
            log.info("topic=%s a record cannot be sent again yet: %s", self.delivery.topic, type(error).__name__)


class Gathered:
    """What a handler produced, so that its message is settled after these deliveries."""

    __slots__ = ("capture", "promised", "sent")

    any: ClassVar = False
    """Whether there was ever one in this process; where there was none, producing need not look for one."""

    def __init__(self) -> None:
        Gathered.any = True
        self.sent: list[Sent] = []
        self.promised: list[weakref.ref[Any]] = []
        self.capture: Callable[..., Delivery] | None = None
        """Takes a route and a record instead of sending it, as in a dry run; returns its delivery."""

    def clear(self) -> None:
        """Forget all of it, as after a rollback."""
        self.sent = []
        self.promised = []

    def forget_promised(self) -> None:
        """Forget what a rollback took back; what went out at once is out."""
        self.promised = []

    def close(self) -> None:
        """Gather nothing more: what a handler left running may go on for ever, and nobody waits for its records."""
        self.sent = self.promised = _NOTHING


class _Nothing(list[Any]):
    """A list that stays empty."""

    def append(self, _one: Any) -> None:
        """Keep nothing."""


_NOTHING = _Nothing()

gathered_by_context: ContextVar[Gathered | None] = ContextVar("gathered", default=None)
"""What is gathered where a thread gathers nothing by itself: on event loops, and in threads that a handler calls."""


class Now:
    """What producing must know of the thread it runs in."""

    __slots__ = ("connections", "gathered")

    def __init__(self) -> None:
        self.gathered: Gathered | None = None
        """What a handler that runs in this thread produced; None when none runs."""
        # Django keeps one object per thread and alias. "default" before others, as where `atomic()` begins.
        self.connections: Sequence[BaseDatabaseWrapper] = sorted(connections.all(), key=_default_first)
        """The database connections of this thread, used or not."""


class Here:
    """The calling thread's `now`."""

    def __init__(self) -> None:
        self.local = threading.local()
        """Has `now` once it was asked for. Not derived from: looks into a class of its own take three times as long."""

    @property
    def now(self) -> Now:
        """What producing must know of this thread, made when first asked for, because it reads DATABASES."""
        try:
            return self.local.now  # type: ignore[no-any-return]
        except AttributeError:
            made = self.local.now = Now()
            return made

    def begin(self) -> Gathered:
        """Gather what this thread produces from now on, into what is returned."""
        return self.into(Gathered())

    def into(self, gathered: Gathered) -> Gathered:
        """Gather what this thread produces from now on into `gathered`, and return that."""
        self.now.gathered = gathered
        gathered_by_context.set(gathered)
        return gathered

    def forget(self) -> None:
        """Forget what was gathered in this thread, if it gathers."""
        if (gathered := self.now.gathered) is not None:
            gathered.clear()

    def end(self) -> None:
        """Gather no longer in this thread."""
        self.now.gathered = None
        gathered_by_context.set(None)


def _default_first(connection: BaseDatabaseWrapper) -> bool:
    return connection.alias != "default"


here = Here()


def close_broken_connections() -> None:
    """Close what a receiver of a signal broke in this thread, which no request and no handler looks after.

    Otherwise it would meet the broken connection every time, long after the database is back.
    """
    for connection in here.now.connections:
        if connection.errors_occurred and not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
