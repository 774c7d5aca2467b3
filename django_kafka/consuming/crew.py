"""All workers of one process, and what serves them: heartbeats and replays."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from .. import conf
from ..monitoring.heartbeats import Heartbeat
from ..producers import close_all
from .replays import ReplayThread
from .worker import Worker

log = logging.getLogger(__name__)


class Crew:
    """The workers of the named consumers, run together until all have ended.

    Raises `ConfigurationError` before any of them joins its group.
    """

    def __init__(self, names: Sequence[str], *, max_messages: int | None = None, until_empty: bool = False) -> None:
        self.workers = [Worker(name, max_messages=max_messages, until_empty=until_empty) for name in names]
        self._stopping = threading.Event()

    @property
    def error(self) -> BaseException | None:
        """What stopped a worker, when that was not a wish."""
        return next((worker.error for worker in self.workers if worker.error is not None), None)

    def run(self) -> None:
        """Run until all workers have ended; one that fails takes the others with it."""
        names = [worker.consumer.name for worker in self.workers]
        replays = ReplayThread(names, self.workers[0].fail)
        beat = Heartbeat([(worker.consumer, worker.group_id) for worker in self.workers])
        for worker in self.workers:
            worker.start()
        replays.start()
        if conf.kafka().heartbeats.enabled:
            beat.start()
        try:
            for worker in self.workers:
                self._await(worker)
        finally:
            replays.end()
            if beat.is_alive():
                beat.end()
            for worker in self.workers:
                worker.close()
            close_all()

    def _await(self, worker: Worker) -> None:
        # In small pieces, because a wait without end keeps Python's signal handlers from running.
        while not worker.join(0.2):
            if self._stopping.is_set() or self.error is not None:
                for other in self.workers:
                    other.stop()

    def stop(self) -> None:
        """Ask all workers to finish. Safe in a signal handler: it only sets a flag."""
        self._stopping.set()
