from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, IntegrityError, InterfaceError, OperationalError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from django_kafka.exceptions import (
    BrokersUnreachable,
    ConfigurationError,
    DecodeError,
    DeliveryDiscarded,
    DeliveryFailed,
    DeliveryTimeout,
    EncodeError,
    NoHandler,
    QueueFull,
    RecordTooLarge,
)
from django_kafka.retries import Again, DeadLetter, UnknownCommit, Wait, decide, pause, stops_worker
from tests.databases import added, of_postgresql, of_sqlite
from tests.servers import PostgreSQL
from tests.servers.processes import free_port, wait_until


def failed(code: str, retriable: bool, category: str) -> DeliveryFailed:
    return DeliveryFailed("no", code=code, retriable=retriable, category=category)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ValueError("its own fault"), DeadLetter("handler")),
        (DecodeError("x"), DeadLetter("serialization")),
        (NoHandler("x"), DeadLetter("serialization")),
        (EncodeError("x"), DeadLetter("serialization")),
        (RecordTooLarge("x"), DeadLetter("serialization")),
        (DeliveryDiscarded("x"), DeadLetter("handler")),
        (ConfigurationError("x"), DeadLetter("configuration")),
        (failed("MSG_SIZE_TOO_LARGE", False, "serialization"), DeadLetter("serialization")),
        (failed("TOPIC_AUTHORIZATION_FAILED", False, "authorization"), DeadLetter("authorization")),
        (failed("_MSG_TIMED_OUT", True, "timeout"), Wait("a record could not be delivered")),
        (QueueFull("x"), Wait("Kafka does not take the handler's records")),
        (DeliveryTimeout("x"), Wait("Kafka does not take the handler's records")),
        (BrokersUnreachable("x"), Wait("Kafka does not take the handler's records")),
        (UnknownCommit("x"), Wait("the database did not answer a COMMIT")),
        (InterfaceError("connection already closed"), Wait("the database connection is closed")),
        (InterfaceError("wrong number of parameters"), DeadLetter("handler")),
        (IntegrityError("UNIQUE constraint failed"), DeadLetter("handler")),
        (OperationalError(1213, "Deadlock found"), Again()),
        (OperationalError(1205, "Lock wait timeout exceeded"), Again()),
        (OperationalError(2006, "Server has gone away"), Wait("the database is unavailable (OperationalError)")),
        (OperationalError(1054, "Unknown column"), DeadLetter("handler")),
        (OperationalError("could not connect to server"), Wait("the database is unavailable (OperationalError)")),
        (OperationalError("something else"), DeadLetter("handler")),
    ],
    ids=lambda value: f"{type(value).__name__} {value}"[:60],
)
def test_each_kind_of_error_has_its_verdict(error: Exception, verdict: object) -> None:
    assert decide(error) == verdict


def test_pauses_double_up_to_the_longest_with_some_jitter() -> None:
    for waits, middle in ((1, 0.2), (2, 0.4), (5, 3.2), (8, 15.0), (1000, 15.0)):
        found = {pause(waits) for _ in range(50)}
        assert all(0.8 * middle <= one <= 1.2 * middle for one in found)
        assert len(found) > 1


WAIT = Wait("the database is unavailable (OperationalError)")


def error_of(work: Callable[[], object]) -> DatabaseError:
    with pytest.raises(DatabaseError) as raised:
        work()
    return raised.value


class TestPostgreSQL:
    @pytest.fixture
    def database(self, postgresql: PostgreSQL, django_db_blocker: Any) -> Iterator[BaseDatabaseWrapper]:
        with added("retries", django_db_blocker, **of_postgresql(postgresql)) as connection:
            with psycopg.connect(postgresql.dsn, autocommit=True) as other:
                other.execute("DROP TABLE IF EXISTS thing")
                other.execute("CREATE TABLE thing (id int PRIMARY KEY, n int)")
                other.execute("INSERT INTO thing VALUES (1, 0), (2, 0)")
            yield connection

    @pytest.fixture
    def other(self, postgresql: PostgreSQL, database: BaseDatabaseWrapper) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(postgresql.dsn) as connection:
            yield connection

    def execute(self, database: BaseDatabaseWrapper, sql: str) -> None:
        with database.cursor() as cursor:
            cursor.execute(sql)

    def pid(self, database: BaseDatabaseWrapper) -> int:
        with database.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    def test_a_refused_connection_is_an_outage(self, django_db_blocker: Any, postgresql: PostgreSQL) -> None:
        nobody = {**of_postgresql(postgresql), "PORT": str(free_port())}
        with added("nobody", django_db_blocker, **nobody) as database:
            assert decide(error_of(database.cursor)) == WAIT

    def test_a_host_that_does_not_exist_is_an_outage(self, django_db_blocker: Any, postgresql: PostgreSQL) -> None:
        with added("nowhere", django_db_blocker, **{**of_postgresql(postgresql), "HOST": "no.such.host.invalid"}) as it:
            assert decide(error_of(it.cursor)) == WAIT

    def test_a_server_that_stops_is_an_outage_and_so_is_its_absence(
        self, postgresql: PostgreSQL, database: BaseDatabaseWrapper
    ) -> None:
        self.execute(database, "SELECT 1")
        postgresql.kill()
        try:
            assert decide(error_of(lambda: self.execute(database, "SELECT 1"))) == WAIT
            assert decide(error_of(lambda: self.execute(database, "SELECT 1"))) == WAIT
            database.close()
            assert decide(error_of(lambda: self.execute(database, "SELECT 1"))) == WAIT
        finally:
            postgresql.start()

    def test_a_backend_that_was_terminated_is_an_outage(
        self, database: BaseDatabaseWrapper, other: psycopg.Connection[Any]
    ) -> None:
        other.execute("SELECT pg_terminate_backend(%s)", [self.pid(database)])
        error = error_of(lambda: self.execute(database, "SELECT 1"))
        assert error.__cause__.sqlstate == "57P01"  # type: ignore[union-attr]
        assert decide(error) == WAIT
        assert decide(error_of(lambda: self.execute(database, "SELECT 1"))) == WAIT

    def test_a_deadlock_is_contention(self, database: BaseDatabaseWrapper, other: psycopg.Connection[Any]) -> None:
        self.execute(database, "SET deadlock_timeout = '20ms'")
        other.execute("SET deadlock_timeout = '30s'")
        other.execute("UPDATE thing SET n = 1 WHERE id = 2")
        waits = threading.Thread(target=lambda: other.execute("UPDATE thing SET n = 1 WHERE id = 1"))

        def work() -> None:
            with transaction.atomic(using="retries"):
                self.execute(database, "UPDATE thing SET n = 2 WHERE id = 1")
                waits.start()
                self.wait_for_lock(database)
                self.execute(database, "UPDATE thing SET n = 2 WHERE id = 2")

        error = error_of(work)
        waits.join(10)
        other.rollback()
        assert error.__cause__.sqlstate == "40P01"  # type: ignore[union-attr]
        assert decide(error) == Again()

    def wait_for_lock(self, database: BaseDatabaseWrapper) -> None:
        def waiting() -> bool:
            with database.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
                return bool(cursor.fetchone()[0])

        wait_until(waiting, 10)

    def test_a_serialization_failure_is_contention(
        self, database: BaseDatabaseWrapper, other: psycopg.Connection[Any]
    ) -> None:
        def work() -> None:
            with transaction.atomic(using="retries"):
                self.execute(database, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                self.execute(database, "SELECT * FROM thing")
                other.execute("UPDATE thing SET n = n + 1 WHERE id = 1")
                other.commit()
                self.execute(database, "UPDATE thing SET n = n + 1 WHERE id = 1")

        error = error_of(work)
        assert error.__cause__.sqlstate == "40001"  # type: ignore[union-attr]
        assert decide(error) == Again()

    def test_a_lock_that_is_not_given_in_time_is_contention(
        self, database: BaseDatabaseWrapper, other: psycopg.Connection[Any]
    ) -> None:
        other.execute("UPDATE thing SET n = 1 WHERE id = 1")
        self.execute(database, "SET lock_timeout = '30ms'")
        update = "UPDATE thing SET n = 2 WHERE id = 1"
        assert decide(error_of(lambda: self.execute(database, update))) == Again()
        nowait = "SELECT * FROM thing WHERE id = 1 FOR UPDATE NOWAIT"
        assert decide(error_of(lambda: self.execute(database, nowait))) == Again()

    def test_a_conflict_that_the_handler_swallowed_is_still_what_broke_its_transaction(
        self, database: BaseDatabaseWrapper, other: psycopg.Connection[Any]
    ) -> None:
        other.execute("UPDATE thing SET n = 1 WHERE id = 1")
        self.execute(database, "SET lock_timeout = '30ms'")

        def work() -> None:
            with transaction.atomic(using="retries"):
                try:
                    with transaction.mark_for_rollback_on_error(using="retries"):  # as Model.save() does
                        self.execute(database, "UPDATE thing SET n = 2 WHERE id = 1")
                except DatabaseError:
                    pass
                self.execute(database, "SELECT 1")

        error = error_of(work)
        assert isinstance(error, TransactionManagementError)
        assert decide(error) == Again()

    def test_a_database_that_became_read_only_is_an_outage(self, database: BaseDatabaseWrapper) -> None:
        self.execute(database, "SET default_transaction_read_only = on")
        error = error_of(lambda: self.execute(database, "UPDATE thing SET n = 1"))
        assert isinstance(decide(error), Wait)

    def test_a_full_house_is_an_outage(
        self, django_db_blocker: Any, postgresql: PostgreSQL, database: BaseDatabaseWrapper
    ) -> None:
        self.execute(database, "DROP ROLE IF EXISTS crowded")
        self.execute(database, "CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
        with added("crowded", django_db_blocker, **of_postgresql(postgresql, USER="crowded")) as crowded:
            assert decide(error_of(crowded.cursor)) == WAIT

    @pytest.mark.parametrize(
        "sql",
        [
            "INSERT INTO thing VALUES (1, 1)",
            "SELECT * FROM nowhere",
            "SELECT 1 / 0",
            "SET statement_timeout = '20ms'; SELECT pg_sleep(5)",
            "not SQL",
        ],
    )
    def test_what_the_handler_did_wrong_is_its_own_fault(self, database: BaseDatabaseWrapper, sql: str) -> None:
        assert decide(error_of(lambda: self.execute(database, sql))) == DeadLetter("handler")


class TestSQLite:
    @pytest.fixture
    def database(self, tmp_path: Path, django_db_blocker: Any) -> Iterator[BaseDatabaseWrapper]:
        with added("retries", django_db_blocker, **of_sqlite(tmp_path / "file.sqlite3")) as connection:
            with connection.cursor() as cursor:
                cursor.execute("CREATE TABLE thing (id integer PRIMARY KEY, text)")
            yield connection

    def insert(self, database: BaseDatabaseWrapper, text: str = "x", key: int | None = None) -> None:
        with database.cursor() as cursor:
            cursor.execute("INSERT INTO thing VALUES (%s, %s)", [key, text])

    def test_a_locked_file_is_contention(self, database: BaseDatabaseWrapper) -> None:
        with sqlite3.connect(database.settings_dict["NAME"]) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert decide(error_of(lambda: self.insert(database))) == Again()
        other.close()
        self.insert(database)

    def test_a_snapshot_that_is_too_old_is_contention(self, database: BaseDatabaseWrapper) -> None:
        with database.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode = WAL")

        def work() -> None:
            with transaction.atomic(using="retries"):
                with database.cursor() as cursor:
                    cursor.execute("SELECT count(*) FROM thing")
                    cursor.fetchall()
                other = sqlite3.connect(database.settings_dict["NAME"])
                other.execute("INSERT INTO thing VALUES (9, 'other')")
                other.commit()
                other.close()
                self.insert(database)

        error = error_of(work)
        assert error.__cause__.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT"  # type: ignore[union-attr]
        assert decide(error) == Again()

    def test_a_full_disk_is_an_outage(self, database: BaseDatabaseWrapper) -> None:
        with database.cursor() as cursor:
            cursor.execute("PRAGMA max_page_count = 3")
        error = error_of(lambda: self.insert(database, "x" * 50_000))
        assert error.__cause__.sqlite_errorname == "SQLITE_FULL"  # type: ignore[union-attr]
        assert decide(error) == WAIT

    def test_a_file_that_cannot_be_opened_is_an_outage(self, tmp_path: Path, django_db_blocker: Any) -> None:
        with added("nowhere", django_db_blocker, **of_sqlite(tmp_path / "no" / "such" / "file")) as database:
            assert decide(error_of(database.cursor)) == WAIT

    def test_a_file_that_became_read_only_is_an_outage(
        self, database: BaseDatabaseWrapper, django_db_blocker: Any
    ) -> None:
        address = f"file:{database.settings_dict['NAME']}?mode=ro"
        with added("read-only", django_db_blocker, **of_sqlite(address, uri=True)) as readonly:
            assert decide(error_of(lambda: self.insert(readonly))) == WAIT

    def test_what_the_handler_did_wrong_is_its_own_fault(self, database: BaseDatabaseWrapper) -> None:
        self.insert(database, key=1)
        assert decide(error_of(lambda: self.insert(database, key=1))) == DeadLetter("handler")
        with database.cursor() as cursor:
            assert decide(error_of(lambda: cursor.execute("SELECT * FROM nowhere"))) == DeadLetter("handler")


def test_an_error_of_a_socket_is_the_handlers_own() -> None:
    with pytest.raises(OSError) as raised:  # noqa: PT011
        socket.create_connection(("127.0.0.1", free_port()), timeout=1)
    assert decide(raised.value) == DeadLetter("handler")


@pytest.mark.parametrize(
    ("error", "stops"),
    [
        (MemoryError(), True),
        (SystemExit(), True),
        (KeyboardInterrupt(), True),
        (ExceptionGroup("g", [ValueError(), MemoryError()]), True),
        (ExceptionGroup("g", [ValueError(), ExceptionGroup("deep", [MemoryError()])]), True),
        (BaseExceptionGroup("g", [ValueError(), SystemExit()]), True),
        (ValueError(), False),
        (OperationalError(), False),
        (ExceptionGroup("g", [ValueError(), OperationalError()]), False),
    ],
)
def test_what_is_about_the_process_stops_the_worker_also_in_a_group(error: BaseException, stops: bool) -> None:
    assert stops_worker(error) is stops
