"""The chain of a database: connection, tables, speed, room for workers, clock, and the workers that write there."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from statistics import median
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, Error, connections, router
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder

from .. import conf
from ..conf.secrets import MASK, without_login
from ..consuming import connections as room
from ..consuming.supervisor import layout
from ..models import Worker
from . import clocks, workers
from .findings import Chain, Finding, Step, error, note, unseen, warning, well

_ROUNDS = 5
_SLOW = 0.05
"""Seconds for the smallest question, of which a message costs a few."""
_NOW = {
    "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
    "mysql": "SELECT unix_timestamp(now(6))",
    "oracle": "SELECT (CAST(sys_extract_utc(systimestamp) AS DATE) - DATE '1970-01-01') * 86400 FROM dual",
}
"""What asks a server for its time, by its kind."""


def aliases(consumers: Collection[conf.Consumer]) -> list[str]:
    """Return the databases of these consumers, and of the dead letters."""
    return sorted({conf.kafka().dead_letters.database, *(one.database for one in consumers)})


class Look:
    """One database, looked at in a thread that then gives its connections back."""

    def __init__(self, alias: str, seconds: float, consumers: Collection[conf.Consumer]) -> None:
        self.alias = alias
        self.seconds = seconds
        self._consumers = consumers
        self._ours = alias == conf.kafka().dead_letters.database

    def scrub(self, text: str) -> str:
        """Return a text without this database's password."""
        password = str(connections.settings.get(self.alias, {}).get("PASSWORD") or "")
        return without_login(text.replace(password, MASK) if password else text)

    def chain(self) -> Chain:
        """Return its checks in their order."""
        ours = (
            Step(checks=("migrations",), look=self._migrations, essential=True),
            Step(checks=("workers",), look=self._workers),
        )
        return Chain(
            part=f"database {self.alias}",
            seconds=self.seconds,
            scrub=self.scrub,
            steps=(
                Step(checks=("connection",), look=self._connect, essential=True),
                Step(checks=("latency",), look=self._latency),
                Step(checks=("connections",), look=self._room),
                Step(checks=("clock",), look=self._clock),
                *(ours if self._ours else ()),
            ),
            close=connections.close_all,
        )

    @property
    def _connection(self) -> Any:
        return connections[self.alias]

    def _connect(self) -> Iterator[Finding]:
        setting = f'DATABASES["{self.alias}"]'
        try:
            self._connection.ensure_connection()
        except (Error, DatabaseError, ImproperlyConfigured, OSError) as trouble:
            saw = f"No connection ({type(trouble).__name__}): {_first_lines(trouble)}"
            yield error("connection", saw, f"Look at {setting}, and whether its server runs.")
            return
        vendor = self._connection.display_name
        yield well("connection", f"Connected to {vendor}.", vendor=self._connection.vendor)

    def _migrations(self) -> Iterator[Finding]:
        if not router.allow_migrate(self.alias, Worker._meta.app_label):
            saw = (
                f"A database router keeps the tables of django_kafka out of {self.alias!r}, where they are looked for."
            )
            yield error("migrations", saw, 'Mend DATABASE_ROUTERS, or KAFKA["dead_letters"]["database"].')
            return
        executor = MigrationExecutor(self._connection)
        label = Worker._meta.app_label
        leaves = [leaf for leaf in executor.loader.graph.leaf_nodes() if leaf[0] == label]
        # Those of other applications that they stand on are told with them.
        plan = executor.migration_plan(leaves)
        missing = [f"{migration.app_label}.{migration.name}" for migration, _backwards in plan]
        option = "" if self.alias == "default" else f" --database {self.alias}"
        if missing:
            has = "has no tables of django_kafka" if not self._migrated() else "lacks changes of its tables"
            saw = f"{self.alias!r} {has}: not applied is {', '.join(missing)}."
            yield error("migrations", saw, f"python manage.py migrate {label}{option}", missing=missing)
        else:
            yield well("migrations", "All migrations of django_kafka are applied.")

    def _migrated(self) -> bool:
        return any(
            app == Worker._meta.app_label for app, _name in MigrationRecorder(self._connection).applied_migrations()
        )

    def _latency(self) -> Iterator[Finding]:
        took = [self._ask_nothing() for _ in range(_ROUNDS)]
        usual = median(took)
        saw = f"It answers the smallest question in {usual * 1000:.1f} ms."
        facts: dict[str, Any] = {"milliseconds": round(usual * 1000, 2)}
        if usual > _SLOW:
            yield warning("latency", saw, "A message costs several of them: run workers nearer to it.", **facts)
        else:
            yield well("latency", saw, **facts)

    def _ask_nothing(self) -> float:
        began = time.perf_counter()
        self._value("SELECT 1" if self._connection.vendor != "oracle" else "SELECT 1 FROM dual")
        return time.perf_counter() - began

    def _value(self, query: str) -> Any:
        with self._connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchone()[0]

    def _room(self) -> Iterator[Finding]:
        enabled = [one for one in self._consumers if one.enabled]
        wanted = room.of_layout(layout(enabled)).get(self.alias, 0)
        found = room.ask(self.alias)
        if found is None:
            yield unseen("connections", f"{self._connection.display_name} tells no limit")
        elif found.pooled:
            yield well("connections", f"A pooler is in between; workers of one kafka_consume open up to {wanted}.")
        elif short := room.shortage(self.alias, wanted, found):
            yield warning("connections", short[:1].upper() + short[1:], room.SHORTAGE_HINT, wanted=wanted)
        else:
            saw = (
                f"Workers of one kafka_consume open up to {wanted} connections; {found.free} of {found.most} are left."
            )
            yield well("connections", saw, wanted=wanted, free=found.free)

    def _clock(self) -> Iterator[Finding]:
        vendor = self._connection.vendor
        if vendor == "sqlite":
            yield well("clock", "It is a file of this machine, and has its clock.")
        elif (query := _NOW.get(vendor)) is None:
            yield unseen("clock", f"how to ask {self._connection.display_name} for its time is not known")
        else:
            yield clocks.of_database(self.alias, lambda: float(self._value(query)))

    def _workers(self) -> Iterator[Finding]:
        if not conf.kafka().heartbeats.enabled:
            yield note("workers", 'KAFKA["heartbeats"]["enabled"] is False: workers do not say that they live.')
            return
        yield from workers.look(self.alias, [one for one in self._consumers if one.enabled])


def _first_lines(trouble: Exception) -> str:
    text = " ".join(line.strip() for line in str(trouble).splitlines()[:3])
    return f"{text[:300].rstrip('.')}."
