"""How producers and consumers did in the last minutes: of producers in this process, of consumers in all workers."""

from __future__ import annotations

from django.db import Error as DatabaseFailure
from django.utils import timezone

from .. import conf, tallies
from ..models import Worker
from . import figures, heartbeats, packing
from .figures import ConsumerMetrics, Metrics, Reported


def metrics() -> Metrics:
    """Return how all producers and consumers did in the last minutes. Asks the database once."""
    settings = conf.kafka()
    consumers = {one.name: list[Reported]() for one in settings.consumers.values() if one.enabled}
    for name in tallies.consumers():
        consumers.setdefault(name, []).append(figures.of_this_process(name))
    incomplete = _add_workers(consumers)
    names = dict.fromkeys([*(one.name for one in settings.producers.values() if one.enabled), *tallies.producers()])
    return Metrics(
        at=timezone.now(),
        producers={name: figures.of_producer(figures.of_this_producer(name)) for name in names},
        consumers={name: figures.of_consumer(reports) for name, reports in consumers.items()},
        incomplete=incomplete,
    )


def of_worker(worker: Worker) -> ConsumerMetrics | None:
    """Return what one worker says of itself; None when it says nothing, or nothing that this version reads."""
    reported = packing.unpacked(worker.figures)
    return None if reported is None else figures.of_consumer([reported])


def _add_workers(consumers: dict[str, list[Reported]]) -> str | None:
    """Add what other workers say; return why that is not all of it."""
    settings = conf.kafka()
    if not settings.heartbeats.enabled:
        return 'Only what this process counts itself is known: KAFKA["heartbeats"]["enabled"] is False.'
    database = settings.dead_letters.database
    others = Worker.objects.using(database).exclude(pk__in=heartbeats.mine()).only("consumer", "figures")
    unread = 0
    try:
        for worker in heartbeats.living(others):
            reported = packing.unpacked(worker.figures)
            if reported is None:
                unread += 1
            else:
                consumers.setdefault(worker.consumer, []).append(reported)
    except DatabaseFailure as error:
        # Only its kind: what a database says may name users and hosts.
        return f"Database {database!r} does not answer ({type(error).__name__})."
    return f"Of {unread} workers figures are missing, or this version cannot read them." if unread else None
