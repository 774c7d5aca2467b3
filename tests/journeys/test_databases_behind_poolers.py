"""Workers whose database is reached through PgBouncer in transaction mode, or whose connections are Django's pool's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from tests.journeys.project import Project
from tests.journeys.steps import numbered, query, wait_committed, wait_effects, wait_letters, wait_said
from tests.servers import PgBouncer
from tests.servers.processes import wait_until

GATED = "tests.app.scenes.gated"
SLEEPS = "tests.app.scenes.sleep_in_database"


def through(project: Project, **database: Any) -> None:
    """Change how the processes of a project reach their database."""
    project.extra_env["JOURNEY_DATABASE_MORE"] = json.dumps(database)


def handle_and_replay(project: Project, name: str, mended: Path) -> str:
    """Handle 200 messages, store two that fail, and have the worker replay them; return what it said."""
    records = [{**record, "partition": number % 4} for number, record in enumerate(numbered(200))]
    for number in (50, 120):
        records[number]["value"] |= {"raise": "ValueError", "mended": str(mended)}
    project.produce(records, name)
    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    wait_letters(project, name, 2)
    assert len(project.effects(name)) == 198
    mended.touch()
    project.run("kafka_replay", "--all")
    wait_effects(project, name, 200)
    worker.terminate()
    assert worker.finish() == 0
    assert [letter["state"] for letter in project.letters(name)] == ["resolved"] * 2
    project.assert_ledger(name, settled=True)
    assert query(project, "SELECT count(*) FROM lynx_kafka_worker") == [(0,)]
    return worker.output()


def test_a_worker_behind_pgbouncer_handles_stores_and_replays(
    project: Project, topic: Callable[..., str], tmp_path: Path, pgbouncer: PgBouncer
) -> None:
    """With fewer connections to the server than it has threads, so that transactions change theirs all the time."""
    through(project, PORT=str(pgbouncer.port), DISABLE_SERVER_SIDE_CURSORS=True)
    name = project.create_topic(topic(), partitions=4)
    project.consumer("journey", name, GATED, concurrency=4, timeout="30s", processes=2)
    assert pgbouncer.pool < 4

    said = handle_and_replay(project, name, tmp_path / "mended")

    assert "is reached through a pooler; opens at most 14 connections to it" in said


def test_a_time_limit_behind_pgbouncer_ends_its_statement_and_no_other(
    project: Project, topic: Callable[..., str], pgbouncer: PgBouncer
) -> None:
    through(project, PORT=str(pgbouncer.port), DISABLE_SERVER_SIDE_CURSORS=True)
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, SLEEPS, concurrency=2, timeout="1s")
    records = [{**record, "partition": number % 2} for number, record in enumerate(numbered(40, sleep=0.01))]
    records[10]["value"]["sleep"] = 20
    project.produce(records, name)
    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    worker.terminate()
    assert worker.finish() == 0

    (letter,) = project.letters(name)
    assert (letter["category"], letter["offset"]) == ("timeout", 5)
    assert "statement timeout" in letter["error_message"]
    assert len(project.effects(name)) == 39
    with psycopg.connect(pgbouncer.dsn_of(project.database), autocommit=True, prepare_threshold=None) as connection:
        for _ in range(2 * pgbouncer.pool):
            assert connection.execute("SHOW statement_timeout").fetchone() == ("0",), "It was set for others as well."


def test_a_pgbouncer_that_is_killed_is_an_outage_and_nothing_is_lost(
    project: Project, topic: Callable[..., str], pgbouncer: PgBouncer
) -> None:
    through(project, PORT=str(pgbouncer.port), DISABLE_SERVER_SIDE_CURSORS=True)
    name = project.create_topic(topic(), partitions=4)
    project.consumer("journey", name, "tests.app.handlers.slow", concurrency=4)
    project.produce(numbered(600, keys=40, seconds=0.01), name)
    worker = project.manage("kafka_consume")
    wait_effects(project, name, 100)
    try:
        pgbouncer.kill()
        wait_said(worker, "the database is unavailable")
    finally:
        pgbouncer.start()
    wait_committed(project, name, 60)
    worker.terminate()
    assert worker.finish() == 0
    assert project.letters(name) == []
    project.assert_ledger(name, settled=True)


def test_a_worker_with_djangos_pool_handles_stores_and_replays(
    project: Project, topic: Callable[..., str], tmp_path: Path
) -> None:
    through(project, CONN_MAX_AGE=0, OPTIONS={"pool": {"min_size": 1, "max_size": 7}})
    name = project.create_topic(topic(), partitions=4)
    project.consumer("journey", name, GATED, concurrency=4)

    said = handle_and_replay(project, name, tmp_path / "mended")

    assert "has a pool of" not in said


def test_a_pool_that_is_smaller_than_the_threads_is_said_and_loses_nothing(
    project: Project, topic: Callable[..., str]
) -> None:
    through(project, CONN_MAX_AGE=0, OPTIONS={"pool": {"min_size": 1, "max_size": 3, "timeout": 1}})
    name = project.create_topic(topic(), partitions=4)
    project.consumer("journey", name, concurrency=4)
    project.produce([{**record, "partition": n % 4} for n, record in enumerate(numbered(200))], name)
    worker = project.manage("kafka_consume")
    wait_said(worker, 'DATABASES["default"] has a pool of 3 connections; a worker of all consumers uses 7.')
    wait_until(lambda: project.all_committed(name), 90, every=0.5)
    worker.terminate()
    assert worker.finish() == 0
    assert project.letters(name) == []
    project.assert_ledger(name, settled=True)


def test_a_server_with_too_few_connections_is_named_with_numbers(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=1)
    project.consumer("journey", name, concurrency=120, processes=2)
    with psycopg.connect(project.dsn):
        worker = project.manage("kafka_consume")
        wait_said(worker, "up to 246 connections to database 'default' may be opened, and its server has ")
        wait_said(worker, "max_connections 200, of which 3 are reserved and ")
        worker.terminate()
        assert worker.finish() == 0
        checked = project.run("check", "--deploy", "--database", "default")
    assert "django_kafka.W051" in checked
    assert "Up to 246 connections to database 'default' may be opened" in checked
