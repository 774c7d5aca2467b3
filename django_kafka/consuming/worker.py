"""A worker: one consumer of settings at work in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from .. import conf, handlers, logs, signals, subscriptions, tallies
from ..dead_letters import publishing
from ..deadlines import Running
from ..exceptions import ConfigurationError, NotAvailable
from ..membership import topics_and_group
from ..monitoring import working
from ..monitoring.working import PartitionNow, WorkerNow
from . import forwarding, guarantees
from .circuits import Circuit
from .controlling import Wishes
from .event_loop import EventLoop, threads_of
from .finding import Finder
from .lane import Place
from .lanes import Lanes
from .partition import Partition
from .vitals import Vitals, vitals

log = logs.of(__name__)

_WATCHED = 120.0
"""Seconds after a scrape for which it is known where partitions end; Prometheus comes again within a minute."""


class Worker:
    """Builds the poller and the handler threads of one consumer, starts them and stops them.

    Raises `ConfigurationError` when the consumer cannot work: unknown, switched off, without handlers, or asking for
    what this version does not have.
    """

    def __init__(self, name: str, *, max_messages: int | None = None, until_empty: bool = False) -> None:
        self.consumer, self.topics, self.group_id = ready(name)
        self.tally = tallies.of_consumer(name)
        self.lanes = lanes_of(self.consumer)
        self.circuit = self.lanes.circuit = Circuit(self.consumer, self.succeeded, self)
        self.patterns = [one.text for one in subscriptions.patterns(name)]
        """What it finds further topics by."""
        finder = Finder(self.consumer, self.topics) if self.patterns else None
        bounds: dict[str, Any] = {
            "worker": self, "limit": max_messages, "until_empty": until_empty, "finder": finder,
        }  # fmt: skip
        self._poller = guarantees.poller_of(self.consumer)(
            self.consumer, self.group_id, self.topics, self.lanes, self.tally, **bounds
        )
        self.wishes = Wishes()
        """What operators want of it."""
        self._threads = threads_of(self.consumer, self.group_id, self.lanes, self.tally, self.fail)
        # The main thread stays free for signals, which must never reach the thread that polls.
        self._polling = threading.Thread(target=self._run, name=f"kafka-{name}-poller", daemon=True)
        self.error: BaseException | None = None
        """What stopped it, when that was not a wish."""

    def start(self) -> None:
        """Begin to poll and to handle."""
        for thread in self._threads:
            thread.start()
        self._polling.start()
        for topic in self.topics:
            self.tally.of_topic(topic)
        working.begun(self)
        reads = ",".join([*self.topics, *self.patterns])
        log.info("consumer=%s group=%s topics=%s started", self.consumer.name, self.group_id, reads)
        if conf.cluster(self.consumer.cluster).embedded:
            log.warning(
                "consumer=%s runs on the embedded cluster: in memory, deletes what is old, for development only",
                self.consumer.name,
            )
        signals.worker_started.send_robust(self.consumer.name, worker=self)

    def obey(self) -> None:
        """Have it do what its wishes say, from its first message on. To be called before it starts."""
        self._poller.steering.wishes = self.wishes

    def owns(self, place: Place) -> bool:
        """Tell whether it has a partition. For any thread."""
        return self.lanes.get(place) is not None

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
        working.ended(self)
        done = self.tally.handled, self.tally.dead_lettered
        log.info("consumer=%s handled=%s dead_lettered=%s stopped", self.consumer.name, *done)
        signals.worker_stopped.send_robust(self.consumer.name, worker=self)

    def succeeded(self) -> int:
        """Return how many messages have succeeded in it, counted up to this moment."""
        return sum(thread.succeeded_now() for thread in self._threads)

    def report(self) -> dict[str, Any]:
        """Return what its row shows."""
        standing, now, vitals = self.circuit.standing(), self.now(), self.vitals()
        lags = [one.lag for one in now.partitions if one.lag is not None]
        rebalanced = self._poller.rebalanced
        return {
            "state": vitals.state,
            "not_live": vitals.not_live[:500],
            "not_ready": vitals.not_ready[:500],
            "in_flight": now.in_flight,
            "lag": sum(lags) if lags else None,
            "last_error": self.tally.last_error[:500],
            "rebalance_age": None if rebalanced is None else time.monotonic() - rebalanced,
            # Counted up to this moment: a slice may take minutes.
            "handled": self.succeeded(),
            "dead_lettered": self.tally.dead_lettered,
            "partitions": len(self.lanes),
            "waiting": now.waiting,
            "waits_for": self.waits_for,
            "circuit": standing.state.value,
            "circuit_writing": standing.writing,
            "circuit_reason": standing.reason[:500],
            "circuit_opened_at": standing.opened_at,
            "circuit_episode": standing.episode,
        }

    def vitals(self) -> Vitals:
        """Return how it is. For any thread."""
        lives = self._polling.is_alive() or self._polling.ident is None
        # One that an error has ended is dead, however long its handlers still run, and though it is told to stop then.
        polls = lives and self._poller.error is None
        # One that has done what it was to do, while others of its process go on, is not stuck.
        over = self._poller.error is None and (self._poller.stopping.is_set() or not lives)
        return vitals(
            self.consumer.name, self._poller, polls=polls, stopping=over, waits_for=self.waits_for,
            circuit=self.circuit.standing(), paused=self.paused,
        )  # fmt: skip

    @property
    def paused(self) -> str:
        """By whom it is paused, or the first of its partitions that is, since when and why; "" when none is."""
        return self.wishes.whole or next(filter(None, map(_paused, self.lanes)), "")

    @property
    def waits_for(self) -> str:
        """What the first of its partitions that wait waits for; "" when none does."""
        return next(filter(None, map(_waits_for, self.lanes)), "")

    def partitions(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Return what the rows of its partitions show."""
        certain = self._poller.steering.up_to_date
        return {
            one.place: {
                "in_flight": one.in_flight,
                "lag": _now(one).lag,
                "waits_for": _paused(one)[:300] or _waits_for(one),
                "paused": certain and bool(_paused(one)) and one.suspended is not None and one.suspended.out,
            }
            for one in self.lanes
        }

    def now(self) -> WorkerNow:
        """Return what is true of it now."""
        self._poller.watched = time.monotonic() + _WATCHED
        partitions = list(self.lanes)
        return WorkerNow(
            consumer=self.consumer.name,
            in_flight=self.lanes.in_flight,
            in_flight_bytes=self.lanes.bytes,
            paused=sum(one.paused for one in partitions),
            waiting=len(_waiting(partitions)),
            suspended=sum(bool(_paused(one)) for one in partitions),
            circuit=self.circuit.standing().state.value,
            poll_age=time.monotonic() - self._poller.polled,
            partitions=[_now(one) for one in partitions],
        )

    def hear(self, others: Iterable[tuple[str, int, int, int]] | None) -> None:
        """Take in how others of its group fare: id, messages handled, partitions, waiting ones; None: nobody knows."""
        if others is None:
            self.lanes.elsewhere.hear_nothing()
        else:
            self.lanes.elsewhere.hear(others)

    def close_circuit(self, episode: int) -> bool:
        """Close its circuit, if this is the episode that it is in; tell whether it was."""
        closed = self.circuit.close(episode)
        if closed:
            log.warning("consumer=%s somebody closes its circuit", self.consumer.name)
            self.lanes.wake()
        return closed

    @property
    def handler_threads(self) -> set[int]:
        """The identities of its handler threads."""
        return {thread.ident for thread in self._threads if thread.ident is not None}

    def all_hang(self, hanging: Iterable[Running]) -> bool:
        """Tell whether nothing more can run, because all that does is among what goes on after its time limit."""
        mine = [one.thread for one in hanging if one.thread in self.handler_threads]
        return len(mine) >= self.consumer.concurrency if self.event_loops else self.handler_threads <= set(mine)

    @property
    def event_loops(self) -> list[EventLoop]:
        """Where its handlers run when they are `async def`; nothing when they run in threads."""
        return [thread for thread in self._threads if isinstance(thread, EventLoop)]

    @property
    def alive(self) -> bool:
        """Whether it still polls."""
        return self._polling.is_alive()


def _waiting(partitions: Iterable[Partition]) -> list[Partition]:
    """Return those that wait for an outage to end, or for something else to pass."""
    return [
        one for one in partitions
        if one.blocked or any(lane.outage is not None or lane.full for lane in one.lanes)
    ]  # fmt: skip


def _paused(partition: Partition) -> str:
    suspension = partition.suspended
    return "" if suspension is None else suspension.paused


def _waits_for(partition: Partition) -> str:
    if partition.blocked:
        return partition.blocked[:300]
    return next((lane.reason[:300] for lane in partition.lanes if lane.outage is not None or lane.full), "")


def _now(partition: Partition) -> PartitionNow:
    topic, number = partition.place
    settled, expected, end = partition.next_unsettled, partition.expected, partition.end
    lag = gap = None
    if settled is not None and end >= 0:
        lag = max(0, end - settled)
    if expected is not None:
        gap = partition.in_flight if settled is None else max(0, expected - settled)
    return PartitionNow(topic=topic, number=number, lag=lag, gap=gap)


def ready(name: str) -> tuple[conf.Consumer, list[str], str]:
    """Return a consumer that can work, its topics and its group, both with prefix. Opens nothing.

    Raises `ConfigurationError` when it cannot.
    """
    consumer = conf.consumer(name)
    if not consumer.enabled:
        raise ConfigurationError(f'Consumer {name!r} is switched off: KAFKA["consumers"][{name!r}]["enabled"].')
    if missing := conf.unavailable(consumer):
        raise NotAvailable(" ".join(missing))
    handlers.resolve_all(name)
    kinds = (subscriptions.problems, publishing.problems, forwarding.problems, guarantees.problems)
    if problems := [problem for find in kinds for problem in find(name)]:
        raise ConfigurationError(" ".join(f"{sentence} {hint}" for _check, sentence, hint in problems))
    topics, group_id = topics_and_group(consumer, handlers.topics(name))
    return consumer, [*topics, *handlers.retry_topics(name)], group_id


LANES_A_THREAD = 4
"""Lanes of a partition for each thread: with as many lanes as threads, those with the most keys would be what it
waits for in the end."""
_LANES_A_TASK = 16
"""The same for each message that runs at a time on an event loop, which are many more: a lane with six of 1,000 keys
would hold up the others long before the end, because the watermark stops before it."""
_MOST_LANES = 4096


def lanes_of(consumer: conf.Consumer) -> Lanes:
    """Return the lanes of a consumer. What comes from retry topics, and what is imported, stays in its order."""
    in_order = [*handlers.retry_topics(consumer.name)]
    in_order += [conf.kafka().prefixed(name) for name, topic in consumer.topics.items() if topic.imports]
    each = _LANES_A_TASK if handlers.on_an_event_loop(consumer.name) else LANES_A_THREAD
    return Lanes(consumer.ordering, min(each * consumer.concurrency, _MOST_LANES), in_order)
