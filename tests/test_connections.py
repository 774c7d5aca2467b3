"""How many database connections one command opens, and what its server says to that: see consuming/connections.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.checks import CheckMessage, run_checks
from django.db import OperationalError, connections
from pytest_django import Settings

from django_kafka import conf
from django_kafka.consuming.connections import LimitCheck, Room, ask, of_layout, shortage
from django_kafka.consuming.supervisor import layout
from tests.databases import added, of_postgresql, of_sqlite
from tests.servers import PgBouncer, PostgreSQL
from tests.servers.processes import free_port, wait_until

TOPICS = {"flights": {"handler": "tests.app.handlers.ignore"}}


def declare(settings: Settings, **consumers: dict[str, Any]) -> list[list[conf.Consumer]]:
    """Put consumers into settings and return which process runs which."""
    settings.KAFKA = {
        "consumers": {name: {"group_id": name, "topics": TOPICS, **more} for name, more in consumers.items()},
        "dead_letters": {"database": "letters"},
    }
    return layout(list(conf.kafka().consumers.values()))


def test_threads_are_counted_in_every_process_that_has_them(settings: Settings) -> None:
    made = declare(
        settings,
        a={"database": "letters", "concurrency": 4},
        b={"database": "books", "concurrency": 2, "processes": 3},
    )
    # Each process: heartbeats, replays, leases. Then the handler threads, on both databases where these differ.
    assert of_layout(made) == {"letters": 3 * 3 + 4 + 3 * 2, "books": 3 * (1 + 2)}


def test_what_is_reserved_and_in_use_is_not_free() -> None:
    room = Room(most=100, reserved=3, in_use=60, pooled=False)
    assert room.free == 37
    assert shortage("letters", 37, room) is None
    assert shortage("letters", 38, room) == (
        "up to 38 connections to database 'letters' may be opened, and its server has 37 left: "
        "max_connections 100, of which 3 are reserved and 60 in use."
    )
    assert Room(most=10, reserved=3, in_use=8, pooled=False).free == 0


def test_connections_to_a_pooler_are_none_of_the_servers() -> None:
    assert shortage("letters", 5000, Room(most=100, reserved=3, in_use=60, pooled=True)) is None


@contextmanager
def letters(server: PostgreSQL, blocker: Any, **more: Any) -> Iterator[None]:
    with added("letters", blocker, **of_postgresql(server, **more)):
        yield


def test_a_server_tells_what_it_has_and_who_is_there(postgresql: PostgreSQL, django_db_blocker: Any) -> None:
    def added_by_three() -> int:
        with ExitStack() as guests:
            before = ask("letters")
            for _ in range(3):
                guests.enter_context(closing(psycopg.connect(postgresql.dsn)))
            after = ask("letters")
        assert before is not None
        assert after is not None
        assert (after.most, after.reserved, after.pooled) == (200, 3, False)
        return after.in_use - before.in_use

    with letters(postgresql, django_db_blocker):
        # Those that were closed before may be counted for a moment.
        wait_until(lambda: added_by_three() == 3)
        assert connections["letters"].connection is None, "It asks on a connection of its own."


def test_a_pooler_is_told_apart(postgresql: PostgreSQL, pgbouncer: PgBouncer, django_db_blocker: Any) -> None:
    with letters(postgresql, django_db_blocker, PORT=str(pgbouncer.port)):
        room = ask("letters")
    assert room is not None
    assert room.pooled


def test_asking_opens_no_pool(postgresql: PostgreSQL, django_db_blocker: Any) -> None:
    with letters(postgresql, django_db_blocker, OPTIONS={"pool": {"min_size": 2}}):
        assert ask("letters") is not None
        assert "letters" not in type(connections["letters"])._connection_pools  # type: ignore[attr-defined]


def checked(*databases: str, deploy: bool = True) -> list[CheckMessage]:
    found = run_checks(include_deployment_checks=deploy, databases=list(databases) or None)
    return [one for one in found if str(one.id) in ("django_kafka.W051", "django_kafka.W052")]


def test_only_a_database_that_is_named_is_asked(
    settings: Settings, postgresql: PostgreSQL, django_db_blocker: Any
) -> None:
    declare(settings, a={"database": "letters", "concurrency": 50, "processes": 4})
    with letters(postgresql, django_db_blocker):
        assert checked() == []
        assert checked("default") == []
        assert checked("letters", deploy=False) == []
        (warning,) = checked("letters")
    assert warning.id == "django_kafka.W051"
    assert warning.msg.startswith("Up to 212 connections to database 'letters' may be opened, and its server has 19")
    assert "PgBouncer" in (warning.hint or "")


def test_a_database_that_does_not_answer_is_a_warning_and_holds_up_no_worker(
    settings: Settings, postgresql: PostgreSQL, django_db_blocker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = declare(settings, a={"database": "letters"})
    caplog.set_level("INFO", "django_kafka")
    with letters(postgresql, django_db_blocker, PORT=str(free_port())):
        (warning,) = checked("letters")
        with pytest.raises(OperationalError):
            ask("letters")
        check = LimitCheck(made)
        check.start()
        check.join(30)
        assert not check.is_alive()
    assert warning.id == "django_kafka.W052"
    assert "database=letters cannot be asked how many connections it has: OperationalError" in caplog.text


def test_what_is_no_postgresql_is_not_asked(tmp_path: Path, django_db_blocker: Any) -> None:
    with added("letters", django_db_blocker, **of_sqlite(tmp_path / "letters")):
        assert ask("letters") is None
