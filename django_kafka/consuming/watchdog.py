"""The watchdog of a worker process: it says which handler went on after its time limit or blocks a loop, and where."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from django.db import connections

from .. import deadlines, logs, tallies
from ..deadlines import Running, stack_of
from ..gathering import close_broken_connections
from ..signals import handler_overran
from .event_loop import EventLoop
from .worker import Worker

log = logs.of(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks, and so how late an overrun is said at the most. One that is shorter may go unsaid."""
BLOCKED_AFTER = 1.0
"""Seconds for which an event loop has not come round when that is said."""


class Watchdog(threading.Thread):
    """Looks every second at what runs with a time limit, and whether event loops come round.

    It says, counts and signals; it never touches a handler.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        super().__init__(name="kafka-watchdog", daemon=True)
        self._workers = workers
        self._ended = threading.Event()
        self._said: dict[int | Running, Running] = {}
        self._all_hang: set[str] = set()
        self._blocked: dict[str, float] = {}

    def run(self) -> None:
        """Watch until the end."""
        try:
            while not self._ended.wait(LOOK_EVERY):
                self.look()
        finally:
            connections.close_all()  # what receivers of the signal opened

    def end(self) -> None:
        """Stop."""
        self._ended.set()
        self.join()

    def look(self) -> None:
        """Look once."""
        now = dict(deadlines.running)
        for place, one in list(self._said.items()):
            if now.get(place) is not one:
                del self._said[place]
                self._came_back(one)
        for place, one in now.items():
            if one.overran and place not in self._said:
                self._overran(place, one)
        for worker in self._workers:
            self._look_at_all(worker)
            for event_loop in worker.event_loops:
                self._look_at_loop(worker, event_loop)

    def _look_at_loop(self, worker: Worker, event_loop: EventLoop) -> None:
        name, seconds = worker.consumer.name, event_loop.unanswered()
        if seconds >= BLOCKED_AFTER:
            if name not in self._blocked:
                log.error(
                    "consumer=%s its event loop is blocked for %.1f s: nothing else of it runs, and no time limit ends "
                    "this; what blocks belongs into `await sync_to_async(…)`. It is here:\n%s",
                    name, seconds, stack_of(event_loop.ident or 0),
                )  # fmt: skip
            self._blocked[name] = seconds
        elif (before := self._blocked.pop(name, None)) is not None:
            log.warning("consumer=%s its event loop goes on after about %.0f s", name, before)

    def _overran(self, place: int | Running, one: Running) -> None:
        stack = one.stack()
        if deadlines.running.get(place) is not one:
            return  # it came back just now, and the stack is another's
        self._said[place] = one
        tallies.of_consumer(one.consumer).overruns += 1
        message = one.message
        log.error(
            "consumer=%s topic=%s partition=%s offset=%s handler=%s has run for %.1f s, its limit is %g s; "
            "other partitions go on. It is here:\n%s",
            one.consumer, message.topic, message.partition, message.offset, one.handler, one.seconds(), one.limit,
            stack,
        )  # fmt: skip
        if handler_overran.receivers:
            handler_overran.send_robust(
                one.consumer, message=message, handler=one.handler, seconds=one.seconds(), stack=stack
            )
            close_broken_connections()

    def _came_back(self, one: Running) -> None:
        message = one.message
        log.warning(
            "consumer=%s topic=%s partition=%s offset=%s handler=%s came back after about %.0f s, its limit is %g s",
            one.consumer, message.topic, message.partition, message.offset, one.handler, one.seconds(), one.limit,
        )  # fmt: skip

    def _look_at_all(self, worker: Worker) -> None:
        name = worker.consumer.name
        if not worker.all_hang(self._said.values()):
            self._all_hang.discard(name)
        elif name not in self._all_hang:
            self._all_hang.add(name)
            log.error(
                "consumer=%s all that it may run at a time (%s) is past the limit: it handles nothing until one comes "
                "back; end the process to have its messages handled by another",
                name, worker.consumer.concurrency,
            )  # fmt: skip
