from __future__ import annotations

import dataclasses
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group
from django.db import DatabaseError, IntegrityError, OperationalError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError
from pytest_django import Settings

from django_kafka import conf
from django_kafka.categories import UnknownCommit
from django_kafka.clients.embedded import Cluster
from django_kafka.deliveries import Delivery
from django_kafka.exceptions import DeliveryDiscarded, NoHandler
from django_kafka.execution import Connections, Execution
from django_kafka.gathering import here
from django_kafka.handlers import Handler, TopicHandlers
from django_kafka.messages import Message
from django_kafka.producing import aproduce, produce
from django_kafka.retries import Again, DeadLetter, Wait, decide
from django_kafka.serializers import TopicDecoder
from django_kafka.signals import handler_failed, message_handled, message_handling
from django_kafka.tallies import ConsumerTally
from tests.app.models import Effect
from tests.databases import added, of_postgresql
from tests.sending import read, use, values
from tests.servers import PostgreSQL
from tests.test_messages import Raw

Run = Callable[..., None]


def message(**parts: Any) -> Message:
    return Message(Raw(**parts), TopicDecoder("text", "json"))


def handlers(call: Callable[[Message], Any]) -> TopicHandlers:
    return TopicHandlers("flights", TopicDecoder("text", "json"), (), Handler("tests.handler", call))


def effect() -> None:
    Effect.objects.create(group="", topic="flights", partition=0, offset=0)


@pytest.fixture
def name(embedded: Cluster, settings: Settings, topic: Callable[..., str]) -> str:
    use(settings, embedded.bootstrap_servers, consumers={"ops": {"group_id": "g"}})
    made = topic()
    embedded.create_topic(made, 1)
    return made


@pytest.fixture
def make(settings: Settings) -> Iterator[Callable[..., Execution]]:
    def make(**changes: Any) -> Execution:
        if "ops" not in settings.KAFKA.get("consumers", {}):
            settings.KAFKA = {**settings.KAFKA, "consumers": {"ops": {"group_id": "g"}}}
        consumer = dataclasses.replace(conf.consumer("ops"), **changes)
        return Execution(consumer, ConsumerTally(), here.begin())

    yield make
    here.end()


@pytest.mark.django_db(transaction=True)
class TestInATransaction:
    def test_what_a_handler_wrote_stays_when_it_comes_back(self, make: Callable[..., Execution]) -> None:
        make().run(message(), handlers(lambda _message: effect()))
        assert Effect.objects.count() == 1

    def test_what_a_handler_wrote_is_gone_when_it_fails(self, make: Callable[..., Execution]) -> None:
        def handle(_message: Message) -> None:
            effect()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            make().run(message(), handlers(handle))
        assert Effect.objects.count() == 0

    def test_what_must_happen_in_the_same_transaction_happens_or_fails_with_it(
        self, make: Callable[..., Execution]
    ) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            make().run(message(), handlers(lambda _message: effect()), finish=fail)
        assert Effect.objects.count() == 0
        make().run(message(), handlers(lambda _message: effect()), finish=effect)
        assert Effect.objects.count() == 2

    def test_records_of_a_handler_that_fails_are_never_sent(
        self, make: Callable[..., Execution], embedded: Cluster, name: str
    ) -> None:
        sent: list[Delivery] = []

        def handle(_message: Message) -> None:
            sent.append(produce(name, None, 1))
            raise ZeroDivisionError

        execution = make()
        with pytest.raises(ZeroDivisionError):
            execution.run(message(), handlers(handle))
        with pytest.raises(DeliveryDiscarded):
            sent[0].result()
        assert execution.gathered.sent == []
        produce(name, None, "later").result()
        assert values(read(embedded, name, 1)) == ["later"]

    def test_records_of_a_handler_leave_with_its_commit_and_are_gathered(
        self, make: Callable[..., Execution], name: str
    ) -> None:
        execution = make()
        execution.run(message(), handlers(lambda _message: produce(name, None, 1)))
        [sent] = execution.gathered.sent
        assert sent.delivery.result(20).offset == 0
        sent.again()
        assert sent.delivery.result(20).offset == 1

    def test_a_hook_that_fails_after_the_commit_is_no_failure_of_the_handler(
        self, make: Callable[..., Execution], embedded: Cluster, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        sent: list[Delivery] = []

        def fail() -> None:
            raise ZeroDivisionError

        def handle(_message: Message) -> None:
            effect()
            sent.append(produce(name, None, "before the hook"))
            transaction.on_commit(fail)
            sent.append(produce(name, None, "after the hook"))

        execution = make()
        execution.run(message(), handlers(handle))
        assert Effect.objects.count() == 1
        assert execution.tally.hook_errors == 1
        assert [delivery.result(20).offset for delivery in sent] == [0, 1]
        assert values(read(embedded, name, 2)) == ["before the hook", "after the hook"]
        assert [one.delivery for one in execution.gathered.sent] == sent
        [record] = [one for one in caplog.records if "an on_commit hook failed" in one.getMessage()]
        assert record.levelno == logging.ERROR
        assert "consumer=ops topic=flights partition=3 offset=1099511627776" in record.getMessage()
        assert record.exc_info is not None
        execution.gathered.clear()
        execution.run(message(), handlers(lambda _message: effect()))
        assert Effect.objects.count() == 2

    def test_a_hook_that_runs_out_of_memory_is_no_hook_that_failed(self, make: Callable[..., Execution]) -> None:
        def fail() -> None:
            raise MemoryError

        def handle(_message: Message) -> None:
            transaction.on_commit(fail)

        execution = make()
        with pytest.raises(MemoryError):
            execution.run(message(), handlers(handle))
        assert execution.tally.hook_errors == 0

    def test_records_that_a_handler_sends_from_a_coroutine_are_gathered_too(
        self, make: Callable[..., Execution], name: str
    ) -> None:
        execution = make()
        execution.run(message(), handlers(lambda _message: async_to_sync(aproduce)(name, None, 1)))
        [sent] = execution.gathered.sent
        assert sent.delivery.result(20).offset == 0
        sent.again()
        assert sent.delivery.result(20).offset == 1
        here.end()
        async_to_sync(aproduce)(name, None, 2).result(20)
        assert len(execution.gathered.sent) == 1

    def test_a_worker_that_is_told_to_leave_keeps_nothing(self, make: Callable[..., Execution]) -> None:
        def handle(_message: Message) -> None:
            effect()
            raise SystemExit

        with pytest.raises(SystemExit):
            make().run(message(), handlers(handle))
        assert Effect.objects.count() == 0

    def test_a_handler_that_caught_what_broke_its_transaction_has_failed_by_that(
        self, make: Callable[..., Execution], name: str
    ) -> None:
        Group.objects.create(name="seen before")
        sent: list[Delivery] = []

        def handle(_message: Message) -> None:
            effect()
            sent.append(produce(name, None, 1))
            with suppress(IntegrityError):
                Group.objects.create(name="seen before")

        with pytest.raises(TransactionManagementError, match="caught a database error") as raised:
            make().run(message(), handlers(handle))
        assert isinstance(raised.value.__cause__, IntegrityError)
        assert decide(raised.value) == DeadLetter("handler")
        assert Effect.objects.count() == 0
        with pytest.raises(DeliveryDiscarded):
            sent[0].result()

    def test_contention_that_a_handler_caught_is_contention(self, make: Callable[..., Execution]) -> None:
        def handle(_message: Message) -> None:
            effect()
            with suppress(OperationalError), transaction.mark_for_rollback_on_error():
                cause = sqlite3.OperationalError("database is locked")
                cause.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise OperationalError("database is locked") from cause

        with pytest.raises(TransactionManagementError) as raised:
            make().run(message(), handlers(handle))
        assert decide(raised.value) == Again()

    def test_why_an_earlier_transaction_broke_is_not_said_of_a_later_one(self, make: Callable[..., Execution]) -> None:
        def break_it(_message: Message) -> None:
            with suppress(OperationalError), transaction.mark_for_rollback_on_error():
                raise OperationalError("could not connect to server")

        execution = make()
        with pytest.raises(TransactionManagementError) as first:
            execution.run(message(), handlers(break_it))
        assert isinstance(decide(first.value), Wait)
        with pytest.raises(TransactionManagementError) as second:
            execution.run(message(), handlers(lambda _message: transaction.set_rollback(True)))
        assert second.value.__cause__ is None
        assert decide(second.value) == DeadLetter("handler")

    def test_a_database_error_that_a_handler_caught_around_an_atomic_of_its_own_is_its_own_affair(
        self, make: Callable[..., Execution]
    ) -> None:
        Group.objects.create(name="seen before")

        def handle(_message: Message) -> None:
            effect()
            with suppress(IntegrityError), transaction.atomic():
                Group.objects.create(name="seen before")

        make().run(message(), handlers(handle))
        assert Effect.objects.count() == 1

    def test_a_handler_that_closes_the_connection_of_its_transaction_has_failed(
        self, make: Callable[..., Execution]
    ) -> None:
        def handle(_message: Message) -> None:
            effect()
            connection.close()

        execution = make()
        with pytest.raises(TransactionManagementError, match="closed the connection of its transaction"):
            execution.run(message(), handlers(handle))
        assert Effect.objects.count() == 0
        execution.run(message(), handlers(lambda _message: effect()))
        assert Effect.objects.count() == 1

    def test_what_would_not_be_committed_because_autocommit_is_off_is_not_handled(
        self, make: Callable[..., Execution]
    ) -> None:
        execution = make()
        transaction.set_autocommit(False)
        try:
            with pytest.raises(TransactionManagementError, match="switched autocommit off"):
                execution.run(message(), handlers(lambda _message: effect()))
            Connections().tend()
            execution.run(message(), handlers(lambda _message: effect()))
        finally:
            connection.close()
        assert Effect.objects.count() == 1

    def test_without_a_transaction_effects_stay(self, make: Callable[..., Execution]) -> None:
        def handle(_message: Message) -> None:
            effect()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            make(transaction="none").run(message(), handlers(handle))
        assert Effect.objects.count() == 1

    def test_signals_tell_of_what_happens(self, make: Callable[..., Execution]) -> None:
        told: list[tuple[str, str]] = []

        def listener(word: str) -> Callable[..., None]:
            def listen(sender: str, **event: Any) -> None:
                told.append((word, sender))
                if word == "handling":
                    raise ValueError("goes no further")

            return listen

        signals = {"handling": message_handling, "handled": message_handled, "failed": handler_failed}
        listeners = {word: listener(word) for word in signals}
        for word, signal in signals.items():
            signal.connect(listeners[word])
        try:
            make().run(message(), handlers(lambda _message: None))
            with pytest.raises(ZeroDivisionError):
                make().run(message(), handlers(lambda _message: 1 // 0))
        finally:
            for word, signal in signals.items():
                signal.disconnect(listeners[word])
        assert told == [("handling", "ops"), ("handled", "ops"), ("handling", "ops"), ("failed", "ops")]


def test_a_handler_without_transaction_and_listeners_is_called_as_it_is(make: Callable[..., Execution]) -> None:
    def handle(_message: Message) -> None:
        pass

    assert make(transaction="none").callable_for(handlers(handle)) is handle
    assert make().callable_for(handlers(handle)) is not handle


def test_a_message_without_handler_is_poison(make: Callable[..., Execution]) -> None:
    nothing = TopicHandlers("flights", TopicDecoder("text", "json"), (), None)
    with pytest.raises(NoHandler):
        make(transaction="none").callable_for(nothing)(message())


class TestOnPostgreSQL:
    @pytest.fixture
    def database(self, postgresql: PostgreSQL, django_db_blocker: Any) -> Iterator[BaseDatabaseWrapper]:
        with psycopg.connect(postgresql.dsn, autocommit=True) as other:
            other.execute("DROP TABLE IF EXISTS work CASCADE")
            other.execute("CREATE TABLE work (n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED)")
            other.execute("""
                CREATE OR REPLACE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    IF NEW.n = 13 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
                    IF NEW.n = 14 THEN PERFORM pg_sleep(30); END IF;
                    RETURN NULL;
                END $$""")
            other.execute("""
                CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON work DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION at_commit()""")
        with added("work", django_db_blocker, **of_postgresql(postgresql)) as connection:
            yield connection

    def insert(self, number: int) -> Callable[[Message], None]:
        def handle(_message: Message) -> None:
            with connections["work"].cursor() as cursor:
                cursor.execute("INSERT INTO work VALUES (%s)", [number])

        return handle

    def rows(self, postgresql: PostgreSQL) -> list[int]:
        with psycopg.connect(postgresql.dsn) as other:
            return [row[0] for row in other.execute("SELECT n FROM work ORDER BY n")]

    def test_a_commit_that_was_not_answered_is_told_apart(
        self,
        make: Callable[..., Execution],
        postgresql: PostgreSQL,
        database: BaseDatabaseWrapper,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        execution = make(database="work")
        with pytest.raises(UnknownCommit) as raised:
            execution.run(message(), handlers(self.insert(13)))
        assert isinstance(raised.value.__cause__, OperationalError)
        assert isinstance(decide(raised.value), Wait)
        assert execution.tally.unknown_commits == 1
        assert "its COMMIT was not answered; it is handled again" in caplog.text
        Connections().tend()
        execution.run(message(), handlers(self.insert(1)))
        assert self.rows(postgresql) == [1]

    def test_a_server_that_dies_during_the_commit_leaves_it_unknown(
        self, make: Callable[..., Execution], postgresql: PostgreSQL, database: BaseDatabaseWrapper
    ) -> None:
        execution = make(database="work")
        killer = threading.Thread(target=self.kill_who_commits, args=(postgresql,))
        killer.start()
        try:
            with pytest.raises(UnknownCommit):
                execution.run(message(), handlers(self.insert(14)))
        finally:
            killer.join(30)
            postgresql.start()
        assert execution.tally.unknown_commits == 1

    def kill_who_commits(self, postgresql: PostgreSQL) -> None:
        deadline = time.monotonic() + 20
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        with psycopg.connect(postgresql.dsn, autocommit=True) as other:
            while not other.execute(sleeping).fetchone()[0]:  # type: ignore[index]
                assert time.monotonic() < deadline
                time.sleep(0.02)
        postgresql.kill()

    def test_a_commit_that_is_refused_is_the_handlers_failure(
        self, make: Callable[..., Execution], postgresql: PostgreSQL, database: BaseDatabaseWrapper
    ) -> None:
        execution = make(database="work")
        execution.run(message(), handlers(self.insert(1)))
        with pytest.raises(IntegrityError) as raised:
            execution.run(message(), handlers(self.insert(1)))
        assert decide(raised.value) == DeadLetter("handler")
        assert execution.tally.unknown_commits == 0
        execution.run(message(), handlers(self.insert(2)))
        assert self.rows(postgresql) == [1, 2]

    def test_a_commit_that_meets_a_conflict_is_contention(
        self, make: Callable[..., Execution], postgresql: PostgreSQL, database: BaseDatabaseWrapper
    ) -> None:
        with psycopg.connect(postgresql.dsn) as other:
            other.isolation_level = psycopg.IsolationLevel.SERIALIZABLE

            def handle(found: Message) -> None:
                with database.cursor() as cursor:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                    cursor.execute("SELECT count(*) FROM work")
                    other.execute("SELECT count(*) FROM work")
                    cursor.execute("INSERT INTO work VALUES (3)")
                    other.execute("INSERT INTO work VALUES (4)")
                    other.commit()

            execution = make(database="work")
            with pytest.raises(OperationalError) as raised:
                execution.run(message(), handlers(handle))
        assert decide(raised.value) == Again()
        assert execution.tally.unknown_commits == 0
        assert self.rows(postgresql) == [4]

    def test_a_connection_that_breaks_inside_the_handler_is_an_outage_and_mended_by_tending(
        self, make: Callable[..., Execution], postgresql: PostgreSQL, database: BaseDatabaseWrapper
    ) -> None:
        def handle(_message: Message) -> None:
            with database.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        execution = make(database="work")
        with pytest.raises(OperationalError) as raised:
            execution.run(message(), handlers(handle))
        assert isinstance(decide(raised.value), Wait)
        assert execution.tally.unknown_commits == 0
        Connections().tend()
        execution.run(message(), handlers(self.insert(5)))
        assert self.rows(postgresql) == [5]

    def test_an_error_that_a_handler_caught_leaves_nothing_to_commit_and_is_its_failure(
        self, make: Callable[..., Execution], postgresql: PostgreSQL, database: BaseDatabaseWrapper
    ) -> None:
        told: list[str] = []

        def handle(found: Message) -> None:
            self.insert(1)(found)
            transaction.on_commit(lambda: told.append("committed"), using="work")
            with suppress(DatabaseError), database.cursor() as cursor:
                cursor.execute("SELECT 1/0")

        execution = make(database="work")
        with pytest.raises(TransactionManagementError, match="caught a database error") as raised:
            execution.run(message(), handlers(handle))
        assert decide(raised.value) == DeadLetter("handler")
        assert told == []
        execution.run(message(), handlers(self.insert(2)))
        assert self.rows(postgresql) == [2]

    def test_an_error_that_a_handler_caught_around_an_atomic_of_its_own_is_its_own_affair(
        self, make: Callable[..., Execution], postgresql: PostgreSQL, database: BaseDatabaseWrapper
    ) -> None:
        def handle(found: Message) -> None:
            self.insert(1)(found)
            with suppress(DatabaseError), transaction.atomic(using="work"), database.cursor() as cursor:
                cursor.execute("SELECT 1/0")

        make(database="work").run(message(), handlers(handle))
        assert self.rows(postgresql) == [1]

    def backend(self, database: BaseDatabaseWrapper) -> int:
        with database.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    def test_tending_keeps_a_good_connection_also_with_conn_max_age_0(self, database: BaseDatabaseWrapper) -> None:
        assert database.settings_dict["CONN_MAX_AGE"] == 0
        mine, first = Connections(), self.backend(database)
        for _ in range(3):
            mine.tend()
            assert self.backend(database) == first
        mine.rest()
        assert self.backend(database) == first

    def test_tending_closes_what_is_over_its_age(self, postgresql: PostgreSQL, django_db_blocker: Any) -> None:
        with added("aged", django_db_blocker, **of_postgresql(postgresql, CONN_MAX_AGE=3600)) as aged:
            mine, first = Connections(), self.backend(aged)
            mine.tend()
            assert self.backend(aged) == first
            aged.close_at = time.monotonic() - 1
            mine.tend()
            assert aged.connection is None
            assert self.backend(aged) != first

    def test_health_checks_replace_a_connection_that_broke_while_idle(
        self, postgresql: PostgreSQL, django_db_blocker: Any
    ) -> None:
        own = of_postgresql(postgresql, CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True)
        with added("checked", django_db_blocker, **own) as checked:
            mine, first = Connections(), self.backend(checked)
            with psycopg.connect(postgresql.dsn, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", [first])
            mine.tend()
            assert self.backend(checked) != first

    def test_tending_ends_a_transaction_that_a_handler_left_open(
        self, postgresql: PostgreSQL, database: BaseDatabaseWrapper
    ) -> None:
        transaction.set_autocommit(False, using="work")
        self.insert(1)(message())
        Connections().tend()
        assert database.connection is None
        self.insert(2)(message())
        assert self.rows(postgresql) == [2]

    def test_a_thread_that_ends_closes_its_connections(self, database: BaseDatabaseWrapper) -> None:
        self.backend(database)
        Connections().close()
        assert database.connection is None

    def test_a_connection_inside_a_transaction_is_left_alone(self, database: BaseDatabaseWrapper) -> None:
        with transaction.atomic(using="work"):
            first = self.backend(database)
            database.close_at = time.monotonic() - 1
            Connections().tend()
            Connections().close()
            assert self.backend(database) == first
