"""Rows that say which workers are alive."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Protocol

from django.db import connections, transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from .. import __version__, conf, deadlines, logs
from ..models import Worker, WorkerPartition
from . import figures, packing

log = logs.of(__name__)

STALE_AFTER = 3
"""Beats missed before a worker counts as gone."""
_FORGOTTEN_AFTER = 720
"""Beats missed before its row is deleted: an hour at the default interval."""
_FIGURES_BEATS, _FIGURES_EVERY = 3, 15.0
"""Beats, or seconds where those are fewer, from one beat that writes figures to the next: they are most of a row."""
_LOOK_EVERY = 1.0
"""Seconds between two looks at what somebody wants of workers."""


def alive(consumer: str) -> bool:
    """Tell whether a worker of `consumer` was heard of lately."""
    workers = Worker.objects.using(conf.kafka().dead_letters.database)
    return living(workers.filter(consumer=consumer)).exists()


def of_group(cluster: str, group_id: str) -> list[Worker]:
    """Return the workers in a group, named with its prefix, that were heard of lately."""
    workers = Worker.objects.using(conf.kafka().dead_letters.database)
    return list(living(workers.filter(cluster=cluster, group_id=group_id)).order_by("host", "pid", "pk"))


# Rows are written, and compared, by the clock of the database alone: those of hosts differ, and are set back.


def living(workers: QuerySet[Worker]) -> QuerySet[Worker]:
    """Return those of `workers` that were heard of lately."""
    return workers.filter(seen_at__gte=Now() - silence())


def with_clock(workers: QuerySet[Worker]) -> QuerySet[Worker]:
    """Return `workers` with the time of the database as `asked_at`, by which `is_alive` tells."""
    return workers.annotate(asked_at=Now())


def is_alive(worker: Any) -> bool:
    """Tell whether a worker that `with_clock` brought was heard of lately."""
    return bool(worker.seen_at >= worker.asked_at - silence())


def silence() -> timedelta:
    """Return for how long a worker may be silent and still count as alive."""
    return timedelta(seconds=conf.kafka().heartbeats.interval * STALE_AFTER)


def ask_to_close(workers: QuerySet[Worker]) -> int:
    """Ask those of `workers` whose circuit is not closed to close it, and return how many were asked.

    Each does so at its next heartbeat, unless it has closed and opened again by then.
    """
    not_closed = living(workers.exclude(circuit=Worker.Circuit.CLOSED))
    return not_closed.update(circuit_close_asked=F("circuit_episode"))


def mine() -> list[str]:
    """Return the ids of the rows that this process writes."""
    return [name for beat in list(_beating) for name in beat.ids]


_beating: list[Heartbeat] = []
os.register_at_fork(after_in_child=_beating.clear)

_REPORTED = (
    "state", "not_live", "not_ready", "memory", "in_flight", "lag", "last_error", "rebalance_age",
    "handled", "dead_lettered", "partitions", "waiting", "waits_for",
    "circuit", "circuit_writing", "circuit_reason", "circuit_opened_at", "circuit_episode",
)  # fmt: skip
"""What a worker says of itself."""


class Subject(Protocol):
    """A worker as heartbeats see it."""

    def report(self) -> dict[str, Any]:
        """Return what its row shows now."""

    def partitions(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Return what the row of each of its partitions shows."""

    def close_circuit(self, episode: int) -> bool:
        """Close its circuit, if this is the episode that it is in; tell whether it was."""

    def hear(self, others: Iterable[tuple[str, int, int, int]] | None) -> None:
        """Take in how others of its group fare: id, messages handled, partitions, waiting ones; None: nobody knows."""


class Ledger(Protocol):
    """What a worker writes of its partitions, as heartbeats see it."""

    def close_left(self) -> None:
        """Take the worker's name out of the rows of partitions that it gave back."""

    def close_all(self) -> None:
        """Take it out of all rows."""


class Lookout(Protocol):
    """Looks at what somebody wants of workers, as heartbeats see it."""

    def look(self) -> None:
        """Look once."""


class Heartbeat(threading.Thread):
    """Writes one row for each consumer of this process, every `heartbeats.interval`, and deletes them at the end.

    `subjects` are their workers in the same order. `number`: which process of its supervisor this is.
    """

    def __init__(
        self,
        consumers: Sequence[tuple[conf.Consumer, str]],
        subjects: Sequence[Subject] = (),
        number: int | None = None,
    ) -> None:
        super().__init__(name="kafka-heartbeat", daemon=True)
        self._subjects = subjects
        self._settings = conf.kafka()
        self._database = self._settings.dead_letters.database
        self._ended = threading.Event()
        self._woken = threading.Event()
        self.beaten = threading.Event()
        """Set when the rows are there."""
        self.ledgers: list[Ledger] = []
        """What is brought up to date with each beat, and closed together with the rows."""
        self.lookout: Lookout | None = None
        """What looks between beats, every second."""
        self._rows = [
            Worker(
                id=uuid.uuid4().hex,
                cluster=consumer.cluster,
                consumer=consumer.name,
                group_id=group_id,
                host=socket.gethostname()[:255],
                pid=os.getpid(),
                supervisor=None if number is None else os.getppid(),
                number=number,
                version=__version__,
                started_at=Now(),
            )
            for consumer, group_id in consumers
        ]
        self._failing: set[str] = set()
        """What failed when it was done last, which is said once."""
        self._figures_due = 0.0
        self._written: dict[tuple[str, str, int], dict[str, Any]] = {}
        """What the rows of partitions say."""
        self._anew = False
        """Whether nobody knows what they say."""

    @property
    def ids(self) -> list[str]:
        """What names each consumer of this process in rows."""
        return [row.pk for row in self._rows]

    def run(self) -> None:
        """Beat until the end. A database that is down is waited for."""
        _beating.append(self)
        try:
            self._try(self._look, "control")
            self._try(self._forget_the_dead)
            self._try(self._beat)
            self._try(self._look, "control")
            while not self._ended.is_set():
                self._wait_for_next_beat()
                if not self._ended.is_set():
                    self._try(self._beat)
                    self._try(self._look, "control")
            self._try(self._look, "control")
            self._try(self._remove_rows)
        finally:
            _beating.remove(self)
            connections[self._database].close()

    def _wait_for_next_beat(self) -> None:
        """Wait until it is due or wanted, and look at what is wanted meanwhile."""
        due = time.monotonic() + self._settings.heartbeats.interval
        while (left := due - time.monotonic()) > 0:
            if self._woken.wait(min(left, _LOOK_EVERY)):
                break
            self._try(self._look, "control")
        self._woken.clear()

    def _look(self) -> None:
        if self.lookout is not None:
            self.lookout.look()

    def end(self) -> None:
        """Delete the rows and stop."""
        self._ended.set()
        self._woken.set()
        self.join(5)

    def wake(self) -> None:
        """Beat now."""
        self._woken.set()

    def _beat(self) -> None:
        memory = resident()
        for row in self._rows:
            row.seen_at = Now()
            row.memory = memory
            row.hangs = [one.shown() for one in deadlines.overdue(row.consumer)]
        for row, subject in zip(self._rows, self._subjects, strict=False):
            for name, value in subject.report().items():
                setattr(row, name, value)
        rows = Worker.objects.using(self._database)
        written = ["seen_at", "hangs", *_REPORTED, *self._look_at_figures()]
        # Together: whoever sees that a worker was seen since may rely on what is there of its partitions.
        with transaction.atomic(using=self._database):
            rows.bulk_create(self._rows, update_conflicts=True, unique_fields=["id"], update_fields=written)
            self._write_partitions()
        self._anew = False
        self.beaten.set()
        self._close_circuits()
        self._ask_around()
        for ledger in self.ledgers:
            ledger.close_left()

    def _look_at_figures(self) -> list[str]:
        """Bring the figures of all rows up to date when that is due; return the names of the fields that are new."""
        now = time.monotonic()
        if now < self._figures_due:
            return []
        self._figures_due = now + min(_FIGURES_BEATS * self._settings.heartbeats.interval, _FIGURES_EVERY)
        for row in self._rows:
            row.figures = packing.packed(figures.of_this_process(row.consumer))
        return ["figures"]

    def _write_partitions(self) -> None:
        """Write what is new of partitions in one statement, and take out those that left in another."""
        now = {
            (row.pk, topic, number): shown
            for row, subject in zip(self._rows, self._subjects, strict=False)
            for (topic, number), shown in subject.partitions().items()
        }
        rows = WorkerPartition.objects.using(self._database)
        if self._anew:
            rows.filter(worker__in=self.ids).delete()
            self._written = {}
        new = {key: shown for key, shown in now.items() if self._written.get(key) != shown}
        if new:
            rows.bulk_create(
                [
                    WorkerPartition(worker=worker, topic=topic, partition=number, **shown)
                    for (worker, topic, number), shown in new.items()
                ],
                update_conflicts=True,
                unique_fields=["worker", "topic", "partition"],
                update_fields=["in_flight", "lag", "waits_for", "paused"],
            )
            self._written |= new
        left = [key for key in self._written if key not in now]
        for worker, topic in dict.fromkeys((worker, topic) for worker, topic, _number in left):
            numbers = [number for one, name, number in left if (one, name) == (worker, topic)]
            rows.filter(worker=worker, topic=topic, partition__in=numbers).delete()
        for key in left:
            del self._written[key]

    def _close_circuits(self) -> None:
        """Close those that somebody asked for. Only while one is not closed does this cost a query."""
        subjects = {
            row.pk: subject
            for row, subject in zip(self._rows, self._subjects, strict=False)
            if row.circuit != Worker.Circuit.CLOSED
        }
        if subjects:
            asked = Worker.objects.using(self._database).filter(pk__in=subjects, circuit_close_asked__isnull=False)
            for pk, episode in asked.values_list("pk", "circuit_close_asked"):
                subjects[pk].close_circuit(episode or 0)

    def _ask_around(self) -> None:
        """Tell workers with partitions that wait how others of their group fare. Only then does this cost a query."""
        for row, subject in zip(self._rows, self._subjects, strict=False):
            if not row.waiting:
                subject.hear(None)
                continue
            group = living(
                Worker.objects.using(self._database).filter(
                    cluster=row.cluster, consumer=row.consumer, group_id=row.group_id
                )
            )
            subject.hear(group.exclude(pk=row.pk).values_list("pk", "handled", "partitions", "waiting"))

    def _remove_rows(self) -> None:
        # Together: a worker whose row is gone while its name stands in a ledger has died.
        with transaction.atomic(using=self._database):
            for ledger in self.ledgers:
                ledger.close_all()
            WorkerPartition.objects.using(self._database).filter(worker__in=self.ids).delete()
            Worker.objects.using(self._database).filter(pk__in=self.ids).delete()

    def _forget_the_dead(self) -> None:
        bound = Now() - timedelta(seconds=self._settings.heartbeats.interval * _FORGOTTEN_AFTER)
        Worker.objects.using(self._database).filter(seen_at__lt=bound).delete()
        known = Worker.objects.using(self._database).values("pk")
        WorkerPartition.objects.using(self._database).exclude(worker__in=known).delete()

    def _try(self, step: Callable[[], None], what: str = "heartbeat") -> None:
        try:
            step()
            self._failing.discard(what)
        except Exception as error:  # noqa: BLE001  # heartbeats must never end a worker
            if what not in self._failing:
                log.warning("%s failed: %s", what, type(error).__name__)
            self._failing.add(what)
            # Others may have taken the rows of one that was silent away, or what was written was not committed.
            self._anew = True
            connections[self._database].close()


def resident() -> int | None:
    """Return how many bytes of this process are in memory; None where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
