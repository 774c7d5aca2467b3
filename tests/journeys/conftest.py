"""What a journey may ask for: `project`, on a real broker and a real database server."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.journeys.project import Project
from tests.servers import Kafka, PostgreSQL

MIGRATED = "journeys"
PROJECT = pytest.StashKey[Project]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Show what the processes of a journey said when it fails, where each of their threads is, and their rows."""
    report = yield
    if report.failed and PROJECT in item.stash:
        project = item.stash[PROJECT]
        if call.when == "call":
            report.sections.append(("rows", project.rows()))
            project.abort()
        for program in project.programs:
            report.sections.append((program.log.stem, program.output()[-20_000:]))
    return report


@pytest.fixture(scope="session")
def migrated_database(kafka: Kafka, postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that is migrated once; every journey works on a copy of its own."""
    execute(postgresql, f'CREATE DATABASE "{MIGRATED}"')
    directory = tmp_path_factory.mktemp("migrated")
    Project(cluster=kafka, server=postgresql, database=MIGRATED, directory=directory).run("migrate", "--verbosity=0")
    return MIGRATED


@pytest.fixture
def project(
    kafka: Kafka, postgresql: PostgreSQL, migrated_database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Project]:
    """A project with an empty database of its own; what it started is ended when the test is over.

    Tests with the mark `own_brokers` may stop and kill those that it has.
    """
    if request.node.get_closest_marker("own_brokers"):
        kafka = request.getfixturevalue("own_kafka")
    # A journey about an outage that failed half-way leaves a server down.
    kafka.start()
    postgresql.start()
    database = f"journey_{uuid.uuid4().hex[:10]}"
    execute(postgresql, f'CREATE DATABASE "{database}" TEMPLATE "{migrated_database}"')
    project = Project(cluster=kafka, server=postgresql, database=database, directory=tmp_path)
    request.node.stash[PROJECT] = project
    try:
        yield project
    finally:
        project.close()
        postgresql.start()
        execute(postgresql, f'DROP DATABASE "{database}" WITH (FORCE)')


def execute(server: PostgreSQL, statement: str) -> None:
    """Run one statement outside any transaction."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(statement)
