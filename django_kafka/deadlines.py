"""Time limits of handlers: what runs until when, and what holds a handler to it.

No thread is killed and no exception is thrown into one. A handler that has a limit may ask its message for the time
left; its next database statement after the limit is refused, and PostgreSQL ends one that runs past it. One that is
`async def` is cancelled where it awaits something. Whoever watches reads `running`.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from django.db import connections

from .exceptions import HandlerTimeout
from .messages import Message, Messages


@dataclass(slots=True, eq=False)
class Running:
    """A handler with a time limit that runs now."""

    consumer: str
    """The consumer's name."""
    handler: str
    """Its dotted path."""
    message: Message
    """What it runs on."""
    began: float
    """When, by the monotonic clock."""
    limit: float
    """How many seconds it may take."""
    task: asyncio.Task[Any] | None = None
    """What it runs in on an event loop; None: it has its thread for itself."""
    thread: int = field(default_factory=threading.get_ident)
    """The identity of its thread."""

    def seconds(self) -> float:
        """Return how long it has run, in seconds."""
        return time.monotonic() - self.began

    def shown(self) -> dict[str, Any]:
        """Return what rows and logs tell of it."""
        message = self.message
        place = {"topic": message.topic, "partition": message.partition, "offset": message.offset}
        return {**place, "handler": self.handler, "seconds": round(self.seconds(), 1), "limit": self.limit}

    def stack(self) -> str:
        """Return where it is, like a traceback; nothing when its thread has ended."""
        return stack_of(self.thread) if self.task is None else stack_of_task(self.task)

    @property
    def overran(self) -> bool:
        """Whether its time is over."""
        return self.seconds() > self.limit


running: dict[int | Running, Running] = {}
"""By the identity of the thread, or of an `async def` handler by itself. What has no limit is not in here."""


def overdue(consumer: str) -> list[Running]:
    """Return what runs of a consumer although its time is over."""
    return [one for one in list(running.values()) if one.consumer == consumer and one.overran]


def limited(
    call: Callable[[Message], Any], *, limit: float, handler: str, consumer: str, database: str, shared: bool = False
) -> Callable[[Message], Any]:
    """Return `call` held to `limit` seconds, from when it begins; `handler` is its path.

    `shared` tells that its transaction may have others before it and after it. Only what has a limit goes through
    here, so that others pay nothing.
    """

    def run(message: Message) -> Any:
        mine = Running(consumer, handler, message, time.monotonic(), limit)
        message.deadline = mine.began + limit
        thread = threading.get_ident()
        around = running.get(thread)
        running[thread] = mine
        try:
            with connections[database].execute_wrapper(_Statements(message.deadline, limit, shared)):
                return call(message)
        finally:
            if around is None:
                del running[thread]
            else:
                running[thread] = around

    return run


def limited_coroutine(
    call: Callable[[Message], Awaitable[Any]], *, limit: float, handler: str, consumer: str
) -> Callable[[Message], Awaitable[Any]]:
    """Return the same for a handler that is `async def`: after the limit it is cancelled where it awaits something."""

    async def run(message: Message) -> Any:
        mine = Running(consumer, handler, message, time.monotonic(), limit, asyncio.current_task())
        message.deadline = mine.began + limit
        running[mine] = mine
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                return await call(message)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise HandlerTimeout(f"The handler's time of {limit:g} s is over; it was cancelled.") from error
        finally:
            del running[mine]

    return run


def limited_list(
    call: Callable[[Messages], Any], *, limit: float, handler: str, consumer: str, database: str
) -> Callable[[Messages], Any]:
    """Return `call` on a list held to `limit` seconds for all of it."""

    def run(messages: Messages) -> Any:
        def on_all(first: Message) -> Any:
            for message in messages:
                message.deadline = first.deadline
            return call(messages)

        return limited(on_all, limit=limit, handler=handler, consumer=consumer, database=database)(messages[0])

    return run


def stack_of(thread: int) -> str:
    """Return where a thread is, like a traceback; nothing when it has ended."""
    frame = sys._current_frames().get(thread)
    return "".join(traceback.format_stack(frame)) if frame is not None else ""


def stack_of_task(task: asyncio.Task[Any]) -> str:
    """Return what a task awaits, like a traceback; for any thread."""
    frames = []
    inner: Any = task.get_coro()
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "gi_frame", None)
        if frame is not None:
            frames.append((frame, frame.f_lineno))
        inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)
    return "".join(traceback.StackSummary.extract(iter(frames)).format())


_BOUND = """
SELECT set_config('statement_timeout', CASE
    WHEN current_setting('statement_timeout')::interval BETWEEN '1 ms' AND %s * interval '1 ms'
    THEN current_setting('statement_timeout') ELSE %s END, true)
"""
"""Until the end of the transaction; what somebody else has set stays when it is shorter."""
_BOUND_ANEW = """
WITH before AS MATERIALIZED (
    SELECT coalesce(
        nullif(current_setting('lynx_kafka.statement_timeout', true), ''), current_setting('statement_timeout')
    ) AS base
)
SELECT set_config('statement_timeout', CASE
    WHEN base::interval BETWEEN '1 ms' AND %s * interval '1 ms' THEN base ELSE %s END, true),
    set_config('lynx_kafka.statement_timeout', base, true)
FROM before
"""
"""The same where another message of the transaction may have set it: what counts is what was there before all."""
_LIFTED = """
SELECT set_config('statement_timeout', current_setting('lynx_kafka.statement_timeout'), true)
WHERE coalesce(current_setting('lynx_kafka.statement_timeout', true), '') <> ''
"""
_OF_SAVEPOINTS = ("SAVEPOINT", "RELEASE", "ROLLBACK")


class _Statements:
    """What stands around each statement of a handler on the connection of its transaction."""

    __slots__ = ("_deadline", "_limit", "_setting", "_shared", "_within")

    def __init__(self, deadline: float, limit: float, shared: bool) -> None:
        self._deadline = deadline
        self._limit = limit
        self._shared = shared
        self._setting = False
        self._within: float | None = None
        """The seconds that PostgreSQL gives a statement now; None: what it gives anyway."""

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        # Not those of savepoints, which Django needs to find its way out of a block.
        if isinstance(sql, str) and sql.startswith(_OF_SAVEPOINTS):
            if sql.startswith("ROLLBACK"):
                self._within = None  # what was set since the savepoint is undone
        elif not self._setting:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise HandlerTimeout(f"The handler's time of {self._limit:g} s is over; this statement was not begun.")
            connection = context["connection"]
            # Set anew when half of it is over: few statements more, and none goes on for longer than twice its rest.
            stale = self._within is None or left < self._within / 2
            if stale and connection.vendor == "postgresql" and connection.in_atomic_block:
                self._bound(connection, left)
        return execute(sql, params, many, context)

    def _bound(self, connection: Any, left: float) -> None:
        milliseconds = max(1, min(int(left * 1000), 2**31 - 1))
        self._setting = True
        try:
            with connection.cursor() as cursor:
                anew = self._shared and self._within is None
                cursor.execute(_BOUND_ANEW if anew else _BOUND, [milliseconds, str(milliseconds)])
        finally:
            self._setting = False
        self._within = left


def lift(connection: Any) -> None:
    """Give the statements of a transaction back the time that they had before handlers with limits ran in it."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_LIFTED)
