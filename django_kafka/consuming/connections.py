"""How many database connections the processes of one `kafka_consume` open, and whether their server has as many."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from .. import conf, logs
from .crew import database_connections

log = logs.of(__name__)

_ROOM = """
SELECT current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true)::int, 0),
       (SELECT coalesce(sum(numbackends), 0)::int - 1 FROM pg_stat_database),
       pg_backend_pid()
"""
"""Everybody may read these, and `pg_stat_activity` shows others' sessions only in part. The asking one is left out."""


def of_layout(layout: Iterable[Sequence[conf.Consumer]]) -> Counter[str]:
    """Return how many connections processes that run these consumers open at most, all together, by database."""
    most: Counter[str] = Counter()
    for consumers in layout:
        if consumers:
            most += database_connections(consumers)
    return most


def pool_shortages(consumers: Sequence[conf.Consumer]) -> Iterator[str]:
    """Yield a sentence for each of Django's pools that has fewer connections than a process of these consumers uses.

    Threads keep what they have while there is work, so that others may wait for as long as that lasts.
    """
    for alias, needed in of_layout([consumers]).items():
        pool = connections.settings.get(alias, {}).get("OPTIONS", {}).get("pool")
        if not pool:
            continue
        # psycopg_pool's own defaults: min_size=4, and max_size the same.
        limits = pool if isinstance(pool, dict) else {}
        size = limits.get("max_size") or limits.get("min_size", 4)
        if size < needed:
            yield f'DATABASES["{alias}"] has a pool of {size} connections; a worker of all consumers uses {needed}.'


POOL_HINT = "Raise the pool's `max_size`, or lower `concurrency`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a PostgreSQL server has for us."""

    most: int
    """Its `max_connections`."""
    reserved: int
    """How many of these only superusers, or privileged users, get."""
    in_use: int
    """How many are open now, besides the one that asks."""
    pooled: bool
    """Whether a pooler such as PgBouncer is in between: connections to it are none of the server's."""

    @property
    def free(self) -> int:
        """How many are left."""
        return max(0, self.most - self.reserved - self.in_use)


def ask(alias: str) -> Room | None:
    """Return what the server of a database has, None when it is no PostgreSQL. Raises what Django raises.

    On a connection of its own, beside any pool: a supervisor would keep a pool open that it never needs.
    """
    if connections[alias].vendor != "postgresql":
        return None
    connection = connections[alias].copy()
    connection.settings_dict["OPTIONS"].pop("pool", None)
    try:
        with connection.cursor() as cursor:
            cursor.execute(_ROOM)
            most, reserved, in_use, pid = cursor.fetchone()
        return Room(most=most, reserved=reserved, in_use=in_use, pooled=_told_pid(connection) not in (None, pid))
    finally:
        connection.close()


def _told_pid(connection: BaseDatabaseWrapper) -> int | None:
    """Return the process id that was told at login, which a pooler makes up."""
    opened = connection.connection
    info = getattr(opened, "info", None)
    found = getattr(info, "backend_pid", None)
    return found if isinstance(found, int) else None


def shortage(alias: str, needed: int, room: Room) -> str | None:
    """Return a sentence when the server has no room for so many connections, else None."""
    if room.pooled or needed <= room.free:
        return None
    return (
        f"up to {needed} connections to database {alias!r} may be opened, and its server has {room.free} left: "
        f"max_connections {room.most}, of which {room.reserved} are reserved and {room.in_use} in use."
    )


SHORTAGE_HINT = "Raise max_connections, lower `concurrency` or `processes`, or put PgBouncer in between."


class LimitCheck(threading.Thread):
    """Warns once, while workers start, of databases and pools that have fewer connections than they may open.

    In a thread, so that a database that does not answer holds up nothing.
    """

    def __init__(self, layout: Sequence[Sequence[conf.Consumer]]) -> None:
        super().__init__(name="kafka-connections", daemon=True)
        self._layout = layout

    def run(self) -> None:
        """Ask every database."""
        for sentence in pool_shortages(self._layout[0]):
            log.warning("%s %s", sentence, POOL_HINT)
        for alias, needed in of_layout(self._layout).items():
            try:
                room = ask(alias)
            except DatabaseError as error:
                log.info("database=%s cannot be asked how many connections it has: %s", alias, type(error).__name__)
                continue
            if room is None:
                continue
            if short := shortage(alias, needed, room):
                log.warning("%s %s", short, SHORTAGE_HINT)
            elif room.pooled:
                log.info("database=%s is reached through a pooler; opens at most %s connections to it", alias, needed)
