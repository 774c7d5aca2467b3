"""The watchdog of a worker process: it says which handler went on after its time limit, and where it is."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Sequence

from django.db import connections

from .. import deadlines, tallies
from ..deadlines import Running
from ..gathering import close_broken_connections
from ..signals import handler_overran
from .worker import Worker

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks, and so how late an overrun is said at the most. One that is shorter may go unsaid."""


class Watchdog(threading.Thread):
    """Looks every second at what runs with a time limit. It says, counts and signals; it never touches a handler."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        super().__init__(name="kafka-watchdog", daemon=True)
        self._workers = workers
        self._ended = threading.Event()
        self._said: dict[int, Running] = {}
        self._all_hang: set[str] = set()

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
        for thread, one in list(self._said.items()):
            if now.get(thread) is not one:
                del self._said[thread]
                self._came_back(one)
        for thread, one in now.items():
            if one.overran and thread not in self._said:
                self._overran(thread, one)
        for worker in self._workers:
            self._look_at_all(worker)

    def _overran(self, thread: int, one: Running) -> None:
        frame = sys._current_frames().get(thread)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        if deadlines.running.get(thread) is not one:
            return  # it came back just now, and the stack is another's
        self._said[thread] = one
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
        if not worker.handler_threads <= self._said.keys():
            self._all_hang.discard(name)
        elif name not in self._all_hang:
            self._all_hang.add(name)
            log.error(
                "consumer=%s all of its handler threads (%s) are past their limit: it handles nothing until one comes "
                "back; end the process to have its messages handled by another",
                name, worker.consumer.concurrency,
            )  # fmt: skip
