"""All workers of one process, and what serves them: heartbeats and replays."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

from .. import conf, handlers, history, logs
from ..exceptions import ConfigurationError
from ..monitoring import metrics, probes
from ..monitoring.heartbeats import Heartbeat
from ..monitoring.server import Answer
from ..producers import close_all
from .controls import Controls
from .deaths import Tenures
from .event_loop import ASIDE_THREADS, SENSITIVE_THREADS
from .gate import Gate
from .replays import ReplayThread
from .watchdog import Watchdog
from .worker import Worker

log = logs.of(__name__)


def database_connections(consumers: Sequence[conf.Consumer]) -> Counter[str]:
    """Return how many connections one process that runs these consumers opens at most, by database.

    Each handler thread has its own, and so have the threads for replays, for their leases, for heartbeats, and for the
    claims of a consumer. Where handlers are `async def`, those that settle and those that are thread-sensitive have;
    what a handler opens in other threads comes on top.
    """
    settings = conf.kafka()
    letters = settings.dead_letters.database
    most = Counter({letters: 1 + settings.heartbeats.enabled})
    for database in {consumer.database for consumer in consumers} | {letters}:
        most[database] += 1
    for consumer in consumers:
        for database in {consumer.database, letters}:
            most[database] += _threads(consumer)
        if consumer.guarantee == "effect_once":
            most[consumer.database] += 1
    return most


def _threads(consumer: conf.Consumer) -> int:
    try:
        on_an_event_loop = handlers.on_an_event_loop(consumer.name)
    except ConfigurationError:  # which is a check of its own
        on_an_event_loop = False
    if not on_an_event_loop:
        return consumer.concurrency
    return min(consumer.concurrency, ASIDE_THREADS) + min(consumer.concurrency, SENSITIVE_THREADS)


class Crew:
    """The workers of the named consumers, run together until all have ended.

    `number`: which process of its supervisor this is. Raises `ConfigurationError` before any of them joins its group.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        max_messages: int | None = None,
        until_empty: bool = False,
        number: int | None = None,
    ) -> None:
        self.workers = [Worker(name, max_messages=max_messages, until_empty=until_empty) for name in names]
        self.routes: dict[str, Callable[[], Answer]] = {
            "/metrics": metrics.exposition,
            metrics.PORTABLE: metrics.portable,
        }
        """What it answers to those who watch it, by path."""
        self.routes[probes.LIVE] = lambda: probes.answer(self._against("not_live"))
        self.routes[probes.READY] = lambda: probes.answer(self._against("not_ready"))
        self._number = number
        self._stopping = threading.Event()

    def _against(self, what: str) -> list[str]:
        found = [(worker.consumer.name, getattr(worker.vitals(), what)) for worker in self.workers]
        return [f"{name}: {reason}" for name, reason in found if reason]

    @property
    def error(self) -> BaseException | None:
        """What stopped a worker, when that was not a wish."""
        return next((worker.error for worker in self.workers if worker.error is not None), None)

    def run(self) -> None:
        """Run until all workers have ended; one that fails takes the others with it."""
        names = [worker.consumer.name for worker in self.workers]
        gate = Gate()
        replays = ReplayThread(names, self.workers[0].fail, gate)
        beat = Heartbeat([(worker.consumer, worker.group_id) for worker in self.workers], self.workers, self._number)
        for worker in self.workers:
            worker.circuit.wake = beat.wake
        most = database_connections([worker.consumer for worker in self.workers])
        log.info("opens at most %s", ", ".join(f"{count} connections to {name}" for name, count in most.items()))
        watchdog = Watchdog(self.workers)
        if conf.kafka().heartbeats.enabled:
            self._watch_for_deaths(beat, gate)
            for worker in self.workers:
                worker.obey()
            beat.lookout = Controls(self.workers, beat.ids, beaten=beat.beaten.is_set, wake=beat.wake)
            beat.start()
        for worker in self.workers:
            worker.start()
        replays.start()
        if any(handlers.limited(name) or handlers.on_an_event_loop(name) for name in names):
            watchdog.start()
        try:
            for worker in self.workers:
                self._await(worker)
        finally:
            replays.end()
            if watchdog.is_alive():
                watchdog.end()
            if beat.is_alive():
                beat.end()
            for worker in self.workers:
                worker.close()
            close_all()

    def _watch_for_deaths(self, beat: Heartbeat, gate: Gate) -> None:
        """Have what is written of partitions tell the next worker that this one died. Its heartbeats tell that."""
        for worker, name in zip(self.workers, beat.ids, strict=True):
            gate.join(worker.lanes)
            if worker.consumer.guarantee == "at_most_once":
                continue  # what killed a worker never comes again
            worker.lanes.tenures = Tenures(
                name, worker.consumer, worker.group_id, gate, beaten=beat.beaten.is_set, wake=beat.wake
            )
            beat.ledgers.append(worker.lanes.tenures)

    def _await(self, worker: Worker) -> None:
        # In small pieces, because a wait without end keeps Python's signal handlers from running.
        while not worker.join(0.2):
            history.look()
            if self._stopping.is_set() or self.error is not None:
                for other in self.workers:
                    other.stop()

    def stop(self) -> None:
        """Ask all workers to finish. Safe in a signal handler."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        # The main thread may be setting the very same flags once one has failed, and would wait for itself.
        if self.error is None:
            for worker in self.workers:
                worker.stop()
