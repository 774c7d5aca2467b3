"""What workers say of themselves: `python manage.py kafka_status`."""

from __future__ import annotations

import json
import socket
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseFailure
from django.db.models import QuerySet

from ... import conf
from ...exceptions import ConfigurationError
from ...legible import printable
from ...models import Worker
from ...monitoring import heartbeats
from ._moments import ago
from ._table import table

_COLUMNS = (
    "consumer", "group", "worker", "state", "last seen", "partitions", "handled", "dead letters", "circuit",
)  # fmt: skip


class Command(BaseCommand):
    """Show the workers and their circuits; close circuits on request."""

    help = (
        "Show the workers that were heard of, from their heartbeats, and whether the circuit breaker of one is open. "
        "The exit code is 0 whatever the state, but with --probe."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument("names", nargs="*", metavar="name", help="only workers of these consumers")
        parser.add_argument("--json", action="store_true", help="write one JSON object, for programs")
        parser.add_argument(
            "--close-breaker", metavar="CONSUMER", help="ask the workers of this consumer to close their open circuits"
        )

        parser.add_argument(
            "--probe", choices=("live", "ready"), help="only tell by the exit code how the workers of this host are"
        )

    def handle(self, *_arguments: Any, **options: Any) -> None:
        """Show, or ask."""
        if options["probe"]:
            self._probe(options["probe"], options["names"])
            return
        try:
            workers = Worker.objects.using(conf.kafka().dead_letters.database)
            if (consumer := options["close_breaker"]) is not None:
                self._close(workers, consumer)
                return
            for name in options["names"]:
                _must_exist(workers, name)
            if options["names"]:
                workers = workers.filter(consumer__in=options["names"])
            self._show(list(heartbeats.with_clock(workers)), options)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error

    def _probe(self, which: str, names: list[str]) -> None:
        """Raise `CommandError` when the workers of this host are not as asked.

        Nobody is called dead because nothing is heard of him: the database may be why. Then he is only not ready.
        """
        try:
            rows = Worker.objects.using(conf.kafka().dead_letters.database).filter(host=socket.gethostname()[:255])
            mine = list(heartbeats.living(rows.filter(consumer__in=names) if names else rows))
        except (ConfigurationError, DatabaseFailure) as error:
            if which == "ready":
                raise CommandError(f"The rows of workers cannot be read ({type(error).__name__}).") from error
            self.stdout.write(f"live, as far as is known: the rows of workers cannot be read ({type(error).__name__})")
            return
        if which == "ready" and not mine:
            raise CommandError("No worker of this host was heard of lately.")
        reasons = [(one, one.not_live if which == "live" else one.not_ready) for one in mine]
        if found := [f"{one}: {reason}" for one, reason in reasons if reason]:
            raise CommandError(printable("; ".join(found)))
        self.stdout.write(which)

    def _close(self, workers: QuerySet[Worker], consumer: str) -> None:
        _must_exist(workers, consumer)
        asked = heartbeats.ask_to_close(workers.filter(consumer=consumer))
        if not asked:
            raise CommandError(f"No worker of consumer {consumer!r} that lives has an open circuit.")
        interval = conf.kafka().heartbeats.interval
        self.stdout.write(f"Asked {asked} of its workers; each closes its circuit within {interval:g} s.")

    def _show(self, workers: list[Worker], options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps({"workers": [_as_dict(worker) for worker in workers]}, indent=2))
            return
        if not workers:
            self.stdout.write("No worker was heard of. Start one: python manage.py kafka_consume")
            return
        table(self.stdout, _COLUMNS, [_row(worker) for worker in workers])
        for worker in workers:
            for sentence in _sentences(worker):
                self.stdout.write(printable(f"{worker}: {sentence}"))


def _must_exist(workers: QuerySet[Worker], name: str) -> None:
    known = conf.kafka().consumers
    if name not in known and not workers.filter(consumer=name).exists():
        there = f"it has: {', '.join(known)}" if known else "it is empty"
        raise CommandError(f'KAFKA["consumers"] has no {name!r}; {there}.')


def _row(worker: Any) -> tuple[str, ...]:
    return (
        worker.consumer,
        worker.group_id,
        worker.address,
        "alive" if heartbeats.is_alive(worker) else "gone",
        ago(worker.seen_at, worker.asked_at),
        f"{worker.partitions} ({worker.waiting} waiting)" if worker.waiting else str(worker.partitions),
        f"{worker.handled:,}",
        f"{worker.dead_lettered:,}",
        f"{worker.circuit}, writing letters" if worker.circuit_writing else worker.circuit,
    )


def _sentences(worker: Worker) -> list[str]:
    """Return what does not fit into a table."""
    said = []
    if worker.circuit != Worker.Circuit.CLOSED:
        since = f" {ago(worker.circuit_opened_at)}" if worker.circuit_opened_at else ""
        said.append(f"its circuit opened{since}: {worker.circuit_reason}")
        if worker.circuit_close_asked == worker.circuit_episode:
            said.append("it was asked to close its circuit")
    if worker.waiting:
        said.append(f"waits for: {worker.waits_for}")
    for one in worker.hangs:
        place = f"{one['topic']}[{one['partition']}]@{one['offset']}"
        said.append(f"past its time limit of {one['limit']:g} s: {one['handler']} on {place}, for {one['seconds']:g} s")
    return said


def _as_dict(worker: Any) -> dict[str, Any]:
    return {
        "consumer": worker.consumer,
        "cluster": worker.cluster,
        "group": worker.group_id,
        "host": worker.host,
        "pid": worker.pid,
        "supervisor": worker.supervisor,
        "number": worker.number,
        "version": worker.version,
        "alive": heartbeats.is_alive(worker),
        "started_at": worker.started_at.isoformat(),
        "seen_at": worker.seen_at.isoformat(),
        "partitions": worker.partitions,
        "waiting": worker.waiting,
        "waits_for": worker.waits_for,
        "hangs": worker.hangs,
        "handled": worker.handled,
        "dead_lettered": worker.dead_lettered,
        "circuit": {
            "state": worker.circuit,
            "writing_letters": worker.circuit_writing,
            "opened_at": worker.circuit_opened_at.isoformat() if worker.circuit_opened_at else None,
            "reason": worker.circuit_reason,
            "close_asked": worker.circuit != Worker.Circuit.CLOSED
            and worker.circuit_close_asked == worker.circuit_episode,
        },
    }
