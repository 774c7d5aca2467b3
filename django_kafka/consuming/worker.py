"""A worker: one consumer of settings at work in this process."""

from __future__ import annotations

import logging
import threading
from typing import Any

from .. import conf, handlers, signals, tallies
from ..exceptions import ConfigurationError, NotAvailable
from .handling import HandlerThread
from .lanes import Lanes
from .polling import Poller, topics_and_group

log = logging.getLogger(__name__)


class Worker:
    """Builds the poller and the handler threads of one consumer, starts them and stops them.

    Raises `ConfigurationError` when the consumer cannot work: unknown, switched off, without handlers, or asking for
    what this version does not have.
    """

    def __init__(self, name: str, *, max_messages: int | None = None, until_empty: bool = False) -> None:
        self.consumer = conf.consumer(name)
        if not self.consumer.enabled:
            raise ConfigurationError(f'Consumer {name!r} is switched off: KAFKA["consumers"][{name!r}]["enabled"].')
        if missing := conf.unavailable(self.consumer):
            raise NotAvailable(" ".join(missing))
        handlers.resolve_all(name)
        self.topics, self.group_id = topics_and_group(self.consumer, handlers.topics(name))
        self.tally = tallies.of_consumer(name)
        self.lanes = Lanes()
        bounds: dict[str, Any] = {"worker": self, "limit": max_messages, "until_empty": until_empty}
        self._poller = Poller(self.consumer, self.group_id, self.topics, self.lanes, self.tally, **bounds)
        self._threads = [
            HandlerThread(f"kafka-{name}-{number}", self.consumer, self.group_id, self.lanes, self.tally, self.fail)
            for number in range(self.consumer.concurrency)
        ]
        # The main thread stays free for signals, which must never reach the thread that polls.
        self._polling = threading.Thread(target=self._run, name=f"kafka-{name}-poller", daemon=True)
        self.error: BaseException | None = None
        """What stopped it, when that was not a wish."""

    def start(self) -> None:
        """Begin to poll and to handle."""
        for thread in self._threads:
            thread.start()
        self._polling.start()
        log.info("consumer=%s group=%s topics=%s started", self.consumer.name, self.group_id, ",".join(self.topics))
        if conf.cluster(self.consumer.cluster).embedded:
            log.warning(
                "consumer=%s runs on the embedded cluster: in memory, deletes what is old, for development only",
                self.consumer.name,
            )
        signals.worker_started.send_robust(self.consumer.name, worker=self)

    def _run(self) -> None:
        try:
            self._poller.run()
        finally:
            self.error = self.error or self._poller.error

    def stop(self) -> None:
        """Ask it to finish what runs, commit and leave its group."""
        self._poller.stopping.set()

    def fail(self, error: BaseException) -> None:
        """Stop because of `error`; the message that met it stays uncommitted and is read again."""
        self.error = self.error or error
        self.stop()
        log.error("consumer=%s stops: %s", self.consumer.name, type(error).__name__)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has left its group; tell whether it has."""
        for thread in (self._polling, *self._threads):
            thread.join(timeout)
            if thread.is_alive():
                return False
        return True

    def close(self) -> None:
        """Tell the world that it stopped. Call it once, after `join`."""
        done = self.tally.handled, self.tally.dead_lettered
        log.info("consumer=%s handled=%s dead_lettered=%s stopped", self.consumer.name, *done)
        signals.worker_stopped.send_robust(self.consumer.name, worker=self)

    @property
    def alive(self) -> bool:
        """Whether it still polls."""
        return self._polling.is_alive()
