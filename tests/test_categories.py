"""What each error is. Libraries that are there raise their own errors; of the others, classes of the same names do."""

from __future__ import annotations

import asyncio
import errno
import http.client
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kombu.exceptions
import psycopg
import pytest
import redis
from confluent_kafka import KafkaError as LibraryError
from confluent_kafka import KafkaException
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import DatabaseError, IntegrityError, InterfaceError, OperationalError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError
from pytest_django import Settings

from django_kafka import categories
from django_kafka.categories import Kind, Nature, UnknownCommit, of
from django_kafka.clients import errors
from django_kafka.conf.schema import CATEGORIES
from django_kafka.exceptions import (
    AuthenticationFailed,
    AuthorizationFailed,
    BrokersUnreachable,
    ConfigurationError,
    DecodeError,
    DeliveryDiscarded,
    DeliveryFailed,
    DeliveryPending,
    DeliveryTimeout,
    EncodeError,
    KafkaError,
    LoginRefused,
    NoHandler,
    QueueFull,
    RecordTooLarge,
)
from tests.databases import added, of_postgresql, of_sqlite
from tests.servers import PostgreSQL
from tests.servers.processes import free_port, wait_until

FAULT, PERMANENT, POISON, UNAVAILABLE = Kind.FAULT, Kind.PERMANENT, Kind.POISON, Kind.OUTAGE


def failed(code: str, retriable: bool, category: str) -> DeliveryFailed:
    return DeliveryFailed("no", code=code, retriable=retriable, category=category)


def foreign(path: str, *bases: type[BaseException], **attributes: Any) -> BaseException:
    """Make an error of a library that is not installed here: a class with its module, its name and its bases."""
    module, _dot, name = path.rpartition(".")
    error: BaseException = type(name, bases or (Exception,), {"__module__": module})("message")
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


def kind_of(path: str, *bases: type[BaseException]) -> type[BaseException]:
    return type(foreign(path, *bases))


def response(status: int, **headers: str) -> SimpleNamespace:
    return SimpleNamespace(status_code=status, headers={name.replace("_", "-"): text for name, text in headers.items()})


REQUESTS = kind_of("requests.exceptions.RequestException", OSError)
HTTPX_NETWORK = kind_of("httpx.NetworkError")
HTTPX_TIMEOUT = kind_of("httpx.TimeoutException")


@pytest.mark.parametrize(
    ("error", "category", "kind"),
    [
        (ValueError("its own fault"), "handler", FAULT),
        (DecodeError("x"), "serialization", POISON),
        (NoHandler("x"), "serialization", POISON),
        (EncodeError("x"), "serialization", PERMANENT),
        (RecordTooLarge("x"), "serialization", PERMANENT),
        (DeliveryDiscarded("x"), "handler", FAULT),
        (DeliveryPending("x"), "configuration", FAULT),
        (ConfigurationError("x"), "configuration", FAULT),
        (ImproperlyConfigured("x"), "configuration", FAULT),
        (failed("MSG_SIZE_TOO_LARGE", False, "serialization"), "serialization", PERMANENT),
        (failed("TOPIC_AUTHORIZATION_FAILED", False, "authorization"), "authorization", FAULT),
        (failed("_MSG_TIMED_OUT", True, "timeout"), "timeout", UNAVAILABLE),
        (QueueFull("x"), "network", UNAVAILABLE),
        (DeliveryTimeout("x"), "timeout", UNAVAILABLE),
        (BrokersUnreachable("x"), "network", UNAVAILABLE),
        (LoginRefused("x"), "authentication", UNAVAILABLE),
        (AuthenticationFailed("x"), "authentication", FAULT),
        (AuthorizationFailed("x"), "authorization", FAULT),
        (UnknownCommit("x"), "outage", UNAVAILABLE),
        (KafkaException(LibraryError(LibraryError._ALL_BROKERS_DOWN)), "network", UNAVAILABLE),
        (KafkaException(LibraryError(LibraryError._TIMED_OUT)), "timeout", UNAVAILABLE),
        (KafkaException(LibraryError(LibraryError.TOPIC_AUTHORIZATION_FAILED)), "authorization", FAULT),
        (InterfaceError("connection already closed"), "outage", UNAVAILABLE),
        (InterfaceError("wrong number of parameters"), "handler", FAULT),
        (IntegrityError("UNIQUE constraint failed"), "handler", FAULT),
        (OperationalError(1213, "Deadlock found"), "handler", Kind.CONTENTION),
        (OperationalError(1205, "Lock wait timeout exceeded"), "handler", Kind.CONTENTION),
        (OperationalError(2006, "Server has gone away"), "outage", UNAVAILABLE),
        (OperationalError(1045, "Access denied"), "authentication", UNAVAILABLE),
        (OperationalError(1142, "SELECT command denied"), "authorization", FAULT),
        (OperationalError(3024, "maximum statement execution time"), "timeout", FAULT),
        (OperationalError(1054, "Unknown column"), "handler", FAULT),
        (OperationalError("could not connect to server"), "outage", UNAVAILABLE),
        (OperationalError("something else"), "handler", FAULT),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "network", UNAVAILABLE),
        (ConnectionResetError(), "network", UNAVAILABLE),
        (BrokenPipeError(), "network", UNAVAILABLE),
        (socket.gaierror(socket.EAI_NONAME, "unknown host"), "network", UNAVAILABLE),
        (OSError(errno.EHOSTUNREACH, "no route"), "network", UNAVAILABLE),
        (TimeoutError(errno.ETIMEDOUT, "connection timed out"), "network", UNAVAILABLE),
        (OSError(errno.ENOSPC, "no space left"), "outage", UNAVAILABLE),
        (OSError(errno.EMFILE, "too many open files"), "outage", UNAVAILABLE),
        (TimeoutError(), "timeout", FAULT),
        (FileNotFoundError(errno.ENOENT, "no such file"), "handler", FAULT),
        (PermissionError(errno.EACCES, "denied"), "authorization", FAULT),
        (PermissionDenied(), "authorization", FAULT),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), "serialization", FAULT),
        (http.client.RemoteDisconnected("closed"), "network", UNAVAILABLE),
        (http.client.IncompleteRead(b""), "network", UNAVAILABLE),
        (http.client.InvalidURL("x"), "handler", FAULT),
        (urllib.error.URLError(ConnectionRefusedError()), "network", UNAVAILABLE),
        (urllib.error.URLError("unknown url type"), "handler", FAULT),
        (redis.ConnectionError("down"), "network", UNAVAILABLE),
        (redis.TimeoutError("down"), "network", UNAVAILABLE),
        (redis.AuthenticationError("no"), "authentication", FAULT),
        (redis.ResponseError("WRONGTYPE"), "handler", FAULT),
        (kombu.exceptions.OperationalError("down"), "network", UNAVAILABLE),
        (foreign("requests.exceptions.ConnectionError", REQUESTS), "network", UNAVAILABLE),
        (foreign("requests.exceptions.ReadTimeout", kind_of("requests.Timeout", REQUESTS)), "timeout", FAULT),
        (foreign("requests.exceptions.InvalidURL", REQUESTS), "handler", FAULT),
        (foreign("httpx.ConnectError", HTTPX_NETWORK), "network", UNAVAILABLE),
        (foreign("httpx.ConnectTimeout", HTTPX_TIMEOUT), "network", UNAVAILABLE),
        (foreign("httpx.ReadTimeout", HTTPX_TIMEOUT), "timeout", FAULT),
        (foreign("aiohttp.client_exceptions.ClientConnectionError"), "network", UNAVAILABLE),
        (foreign("botocore.exceptions.EndpointConnectionError"), "network", UNAVAILABLE),
        (foreign("urllib3.exceptions.MaxRetryError", reason=ConnectionRefusedError()), "network", UNAVAILABLE),
        (foreign("urllib3.exceptions.MaxRetryError", reason=TimeoutError()), "timeout", FAULT),
        (foreign("urllib3.exceptions.NewConnectionError"), "network", UNAVAILABLE),
        (foreign("mylib.ConnectionError"), "handler", FAULT),
    ],
    ids=lambda value: f"{type(value).__name__} {value}"[:60],
)
def test_each_error_has_its_category_and_its_kind(error: Exception, category: str, kind: Kind) -> None:
    nature = of(error)
    assert (nature.category, nature.kind) == (category, kind)
    assert bool(nature.reason) == (kind is UNAVAILABLE), "an outage says what is down"


HTTP_ERRORS = [
    lambda status, headers: foreign("requests.exceptions.HTTPError", REQUESTS, response=response(status, **headers)),
    lambda status, headers: foreign("httpx.HTTPStatusError", response=response(status, **headers)),
    lambda status, headers: foreign(
        "aiohttp.client_exceptions.ClientResponseError", status=status, headers=response(status, **headers).headers
    ),
]


@pytest.mark.parametrize("make", HTTP_ERRORS, ids=["requests", "httpx", "aiohttp"])
@pytest.mark.parametrize(
    ("status", "headers", "category", "kind", "after"),
    [
        (400, {}, "handler", FAULT, None),
        (401, {}, "authentication", FAULT, None),
        (403, {}, "authorization", FAULT, None),
        (404, {}, "handler", FAULT, None),
        (408, {}, "timeout", FAULT, None),
        (429, {}, "outage", UNAVAILABLE, None),
        (429, {"Retry_After": "7"}, "outage", UNAVAILABLE, 7.0),
        (500, {}, "network", FAULT, None),
        (500, {"Retry_After": "3"}, "outage", UNAVAILABLE, 3.0),
        (503, {}, "outage", UNAVAILABLE, None),
        (503, {"Retry_After": "86400"}, "outage", UNAVAILABLE, 900.0),
        (503, {"Retry_After": "soon"}, "outage", UNAVAILABLE, None),
        (503, {"Retry_After": "-5"}, "outage", UNAVAILABLE, None),
        (504, {}, "outage", UNAVAILABLE, None),
    ],
)
def test_an_http_status_tells_whose_fault_it_is_and_when_to_come_again(
    make: Callable[[int, dict[str, str]], BaseException],
    status: int,
    headers: dict[str, str],
    category: str,
    kind: Kind,
    after: float | None,
) -> None:
    nature = of(make(status, headers))
    assert (nature.category, nature.kind, nature.after) == (category, kind, after)


def test_a_retry_after_may_be_a_date() -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    after = of(foreign("httpx.HTTPStatusError", response=response(503, Retry_After=moment))).after
    assert after is not None
    assert 20 < after <= 30


class Refusing(BaseHTTPRequestHandler):
    """Answers 503, in seven seconds again."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Retry-After", "7")
        self.end_headers()

    def log_message(self, *_said: Any) -> None:
        """Say nothing."""


@pytest.fixture
def refusing_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def raised_by(work: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        work()
    return raised.value


def test_what_urllib_really_raises_is_known(refusing_server: str) -> None:
    refused = raised_by(lambda: urllib.request.urlopen(refusing_server, timeout=10))
    assert isinstance(refused, urllib.error.HTTPError)
    refused.close()
    assert of(refused) == Nature("outage", UNAVAILABLE, "another service cannot answer now (HTTP 503)", 7.0)
    nobody = raised_by(lambda: urllib.request.urlopen(f"http://127.0.0.1:{free_port()}/", timeout=10))
    assert (of(nobody).category, of(nobody).kind) == ("network", UNAVAILABLE)
    stranger = raised_by(lambda: urllib.request.urlopen("http://no.such.host.invalid/", timeout=10))
    assert of(stranger).kind is UNAVAILABLE


def test_what_asyncio_really_raises_is_a_timeout() -> None:
    async def work() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(5)

    assert of(raised_by(lambda: asyncio.run(work()))) == Nature("timeout")


@pytest.mark.parametrize(
    ("status", "category", "kind"),
    [
        (404, "serialization", FAULT),
        (422, "serialization", FAULT),
        (401, "authentication", FAULT),
        (403, "authorization", FAULT),
        (500, "outage", UNAVAILABLE),
        (503, "outage", UNAVAILABLE),
    ],
)
def test_a_schema_registry_that_is_down_is_an_outage(status: int, category: str, kind: Kind) -> None:
    error = foreign("confluent_kafka.schema_registry.error.SchemaRegistryError", http_status_code=status)
    assert (of(error).category, of(error).kind) == (category, kind)


class BookingFailed(Exception):
    """An error of a project."""


def wrapped(cause: BaseException) -> BookingFailed:
    error = BookingFailed()
    error.__cause__ = cause
    return error


def test_an_error_that_says_nothing_is_what_it_was_raised_from() -> None:
    assert of(wrapped(ConnectionRefusedError())).kind is UNAVAILABLE
    assert of(wrapped(wrapped(OperationalError(1213, "Deadlock")))).kind is Kind.CONTENTION
    assert of(wrapped(DecodeError("x"))) == Nature("serialization", POISON)
    assert of(wrapped(ValueError())) == Nature("handler")
    unchained = BookingFailed()
    unchained.__context__ = ConnectionRefusedError()
    assert of(unchained) == Nature("handler"), "only what was chained on purpose is looked at"


def test_a_circle_of_causes_ends() -> None:
    one, other = BookingFailed(), BookingFailed()
    one.__cause__, other.__cause__ = other, one
    assert of(one) == Nature("handler")


class Hostile(Exception):
    """Cannot be looked at."""

    __module__ = "requests.exceptions"

    @property
    def response(self) -> Any:
        raise RuntimeError("no")


def test_an_error_that_cannot_be_looked_at_is_the_handlers() -> None:
    Hostile.__name__ = "HTTPError"
    assert of(Hostile()) == Nature("handler")


# The project's own


class BankDown(BookingFailed):
    """What a project calls an outage."""


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_project_puts_its_exceptions_into_categories(settings: Settings, category: str) -> None:
    settings.KAFKA = {"error_categories": {category: ["tests.test_categories.BookingFailed"]}}
    kinds = {"outage": UNAVAILABLE, "serialization": POISON}
    found = of(BankDown(), categories.own())
    assert (found.category, found.kind) == (category, kinds.get(category, FAULT)), "what derives from it comes with it"


def test_the_nearest_class_decides_and_a_project_may_overrule_us(settings: Settings) -> None:
    settings.KAFKA = {
        "error_categories": {
            "outage": ["tests.test_categories.BankDown"],
            "timeout": ["tests.test_categories.BookingFailed"],
            "handler": ["builtins.ConnectionError"],
        }
    }
    own = categories.own()
    assert of(BankDown(), own).category == "outage"
    assert of(BookingFailed(), own).category == "timeout"
    assert of(ConnectionRefusedError(), own) == Nature("handler")


@pytest.mark.parametrize(
    ("path", "words"),
    [("no.where", "cannot be imported"), ("tests.test_categories.failed", "is of type function, not an exception")],
)
def test_a_path_that_is_no_exception_is_named(settings: Settings, path: str, words: str) -> None:
    settings.KAFKA = {"error_categories": {"outage": [path]}}
    with pytest.raises(ConfigurationError, match=words) as raised:
        categories.own()
    assert str(raised.value).startswith(f'KAFKA["error_categories"]["outage"] is \'{path}\'')


def test_no_library_is_imported_to_know_its_errors() -> None:
    code = (
        "import sys, django\n"
        "from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['django_kafka'], KAFKA={})\n"
        "django.setup()\n"
        "known = {'requests', 'httpx', 'urllib3', 'aiohttp', 'redis', 'kombu', 'botocore', 'psycopg'}\n"
        "found = known & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


CODES = {
    "authentication": ["SASL_AUTHENTICATION_FAILED", "_AUTHENTICATION", "_SSL", "ILLEGAL_SASL_STATE"],
    "authorization": ["TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED", "SECURITY_DISABLED"],
    "serialization": ["MSG_SIZE_TOO_LARGE", "INVALID_RECORD", "INVALID_TIMESTAMP", "_VALUE_SERIALIZATION"],
    "configuration": ["UNKNOWN_TOPIC_OR_PART", "_INVALID_ARG", "POLICY_VIOLATION", "UNSUPPORTED_COMPRESSION_TYPE"],
    "timeout": ["_MSG_TIMED_OUT", "_TIMED_OUT", "REQUEST_TIMED_OUT"],
    "network": ["_ALL_BROKERS_DOWN", "_TRANSPORT", "NOT_ENOUGH_REPLICAS", "LEADER_NOT_AVAILABLE", "_FATAL"],
}


@pytest.mark.parametrize(("code", "category"), [(code, category) for category in CODES for code in CODES[category]])
def test_a_code_of_kafka_has_its_category(code: str, category: str) -> None:
    assert errors.category(LibraryError(getattr(LibraryError, code))) == category


def test_every_code_of_kafka_has_a_category_that_settings_know() -> None:
    codes = [value for name, value in vars(LibraryError).items() if name.isupper() and isinstance(value, int)]
    assert len(codes) > 100
    assert {errors.category(LibraryError(code)) for code in codes} <= set(CATEGORIES)


def every(kind: type[Any]) -> set[type[Any]]:
    return {kind}.union(*(every(one) for one in kind.__subclasses__()))


def test_every_error_of_ours_has_a_category_that_settings_know() -> None:
    assert {one.category for one in every(KafkaError)} <= set(CATEGORIES)


# Databases, real ones


OUTAGE = Nature("outage", Kind.OUTAGE, "the database is unavailable (OperationalError)")
CONTENTION = Nature("handler", Kind.CONTENTION)
ITS_OWN = Nature("handler")


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
            assert of(error_of(database.cursor)) == OUTAGE

    def test_a_host_that_does_not_exist_is_an_outage(self, django_db_blocker: Any, postgresql: PostgreSQL) -> None:
        with added("nowhere", django_db_blocker, **{**of_postgresql(postgresql), "HOST": "no.such.host.invalid"}) as it:
            assert of(error_of(it.cursor)) == OUTAGE

    def test_a_server_that_stops_is_an_outage_and_so_is_its_absence(
        self, postgresql: PostgreSQL, database: BaseDatabaseWrapper
    ) -> None:
        self.execute(database, "SELECT 1")
        postgresql.kill()
        try:
            assert of(error_of(lambda: self.execute(database, "SELECT 1"))) == OUTAGE
            assert of(error_of(lambda: self.execute(database, "SELECT 1"))) == OUTAGE
            database.close()
            assert of(error_of(lambda: self.execute(database, "SELECT 1"))) == OUTAGE
        finally:
            postgresql.start()

    def test_a_backend_that_was_terminated_is_an_outage(
        self, database: BaseDatabaseWrapper, other: psycopg.Connection[Any]
    ) -> None:
        other.execute("SELECT pg_terminate_backend(%s)", [self.pid(database)])
        error = error_of(lambda: self.execute(database, "SELECT 1"))
        assert error.__cause__.sqlstate == "57P01"  # type: ignore[union-attr]
        assert of(error) == OUTAGE
        assert of(error_of(lambda: self.execute(database, "SELECT 1"))) == OUTAGE

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
        assert of(error) == CONTENTION

    def wait_for_lock(self, database: BaseDatabaseWrapper) -> None:
        def waiting() -> bool:
            with database.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
                return bool(cursor.fetchone()[0])

        wait_until(waiting)

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
        assert of(error) == CONTENTION

    def test_a_lock_that_is_not_given_in_time_is_contention(
        self, database: BaseDatabaseWrapper, other: psycopg.Connection[Any]
    ) -> None:
        other.execute("UPDATE thing SET n = 1 WHERE id = 1")
        self.execute(database, "SET lock_timeout = '30ms'")
        update = "UPDATE thing SET n = 2 WHERE id = 1"
        assert of(error_of(lambda: self.execute(database, update))) == CONTENTION
        nowait = "SELECT * FROM thing WHERE id = 1 FOR UPDATE NOWAIT"
        assert of(error_of(lambda: self.execute(database, nowait))) == CONTENTION

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
        assert of(error) == CONTENTION

    def test_a_database_that_became_read_only_is_an_outage(self, database: BaseDatabaseWrapper) -> None:
        self.execute(database, "SET default_transaction_read_only = on")
        error = error_of(lambda: self.execute(database, "UPDATE thing SET n = 1"))
        assert of(error).kind is Kind.OUTAGE

    def test_a_full_house_is_an_outage(
        self, django_db_blocker: Any, postgresql: PostgreSQL, database: BaseDatabaseWrapper
    ) -> None:
        self.execute(database, "DROP ROLE IF EXISTS crowded")
        self.execute(database, "CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
        with added("crowded", django_db_blocker, **of_postgresql(postgresql, USER="crowded")) as crowded:
            assert of(error_of(crowded.cursor)) == OUTAGE

    @pytest.mark.parametrize(
        "sql",
        [
            "INSERT INTO thing VALUES (1, 1)",
            "SELECT * FROM nowhere",
            "SELECT 1 / 0",
            "not SQL",
        ],
    )
    def test_what_the_handler_did_wrong_is_its_own_fault(self, database: BaseDatabaseWrapper, sql: str) -> None:
        assert of(error_of(lambda: self.execute(database, sql))) == ITS_OWN

    def test_a_statement_that_takes_too_long_is_a_timeout(self, database: BaseDatabaseWrapper) -> None:
        slow = "SET statement_timeout = '20ms'; SELECT pg_sleep(5)"
        assert of(error_of(lambda: self.execute(database, slow))) == Nature("timeout")

    def test_a_table_that_may_not_be_read_is_a_matter_of_authorization(
        self, database: BaseDatabaseWrapper, postgresql: PostgreSQL, django_db_blocker: Any
    ) -> None:
        self.execute(database, "DROP ROLE IF EXISTS stranger")
        self.execute(database, "CREATE ROLE stranger LOGIN")
        with added("stranger", django_db_blocker, **of_postgresql(postgresql, USER="stranger")) as stranger:
            error = error_of(lambda: self.execute(stranger, "SELECT * FROM thing"))
            assert error.__cause__.sqlstate == "42501"  # type: ignore[union-attr]
            assert of(error) == Nature("authorization")

    def test_a_driver_that_is_used_without_django_tells_the_same(self, other: psycopg.Connection[Any]) -> None:
        with pytest.raises(psycopg.Error) as raised:
            other.execute("SELECT * FROM nowhere")
        assert of(raised.value) == ITS_OWN
        with pytest.raises(psycopg.Error) as raised:
            psycopg.connect(host="127.0.0.1", port=free_port())
        assert of(raised.value).kind is Kind.OUTAGE


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
            assert of(error_of(lambda: self.insert(database))) == CONTENTION
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
        assert of(error) == CONTENTION

    def test_a_full_disk_is_an_outage(self, database: BaseDatabaseWrapper) -> None:
        with database.cursor() as cursor:
            cursor.execute("PRAGMA max_page_count = 3")
        error = error_of(lambda: self.insert(database, "x" * 50_000))
        assert error.__cause__.sqlite_errorname == "SQLITE_FULL"  # type: ignore[union-attr]
        assert of(error) == OUTAGE

    def test_a_file_that_cannot_be_opened_is_an_outage(self, tmp_path: Path, django_db_blocker: Any) -> None:
        with added("nowhere", django_db_blocker, **of_sqlite(tmp_path / "no" / "such" / "file")) as database:
            assert of(error_of(database.cursor)) == OUTAGE

    def test_a_file_that_became_read_only_is_an_outage(
        self, database: BaseDatabaseWrapper, django_db_blocker: Any
    ) -> None:
        address = f"file:{database.settings_dict['NAME']}?mode=ro"
        with added("read-only", django_db_blocker, **of_sqlite(address, uri=True)) as readonly:
            assert of(error_of(lambda: self.insert(readonly))) == OUTAGE

    def test_what_the_handler_did_wrong_is_its_own_fault(self, database: BaseDatabaseWrapper) -> None:
        self.insert(database, key=1)
        assert of(error_of(lambda: self.insert(database, key=1))) == ITS_OWN
        with database.cursor() as cursor:
            assert of(error_of(lambda: cursor.execute("SELECT * FROM nowhere"))) == ITS_OWN
