from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import OperationalError, connection, connections, transaction
from pytest_django import Settings

from django_kafka import categories, conf, deadlines, handlers, tallies
from django_kafka.exceptions import ConfigurationError, HandlerTimeout
from django_kafka.execution import Execution
from django_kafka.gathering import here
from django_kafka.handlers import TopicHandlers, kafka_handler
from django_kafka.messages import Message
from django_kafka.serializers import TopicDecoder
from tests.databases import added, of_postgresql
from tests.servers import PostgreSQL
from tests.test_messages import Raw

TOPIC = "flights"


def message() -> Message:
    return Message(Raw(topic=TOPIC), TopicDecoder("text", "json"))


@pytest.fixture
def use(settings: Settings) -> Iterator[Callable[..., TopicHandlers]]:
    """Have one handler for the topic of the consumer, and return it resolved."""
    taken: list[Callable[..., Any]] = []

    def use(function: Callable[..., Any], *, own: Any = None, topic: Any = None, **consumer: Any) -> TopicHandlers:
        topics = {TOPIC: {} if topic is None else {"timeout": topic}}
        settings.KAFKA = {"consumers": {"ops": {"group_id": "g", "topics": topics, **consumer}}}
        while taken:
            handlers.forget(taken.pop())
        kafka_handler(topics=TOPIC, consumer="ops", timeout=own)(function)
        taken.append(function)
        return handlers.for_topic("ops", TOPIC)

    yield use
    for one in taken:
        handlers.forget(one)


def run(found: TopicHandlers) -> Message:
    mine = message()
    execution = Execution(conf.consumer("ops"), tallies.of_consumer("ops"), here.begin())
    try:
        execution.run(mine, found)
    finally:
        here.end()
    return mine


class TestTheLimit:
    @pytest.mark.parametrize(
        ("consumer", "own", "topic", "limit"),
        [
            (None, None, None, None),
            ("30s", None, None, 30.0),
            ("30s", "1m", None, 60.0),
            ("30s", "1m", "2m", 120.0),
            (None, timedelta(seconds=5), None, 5.0),
            (None, None, 2.5, 2.5),
        ],
    )
    def test_the_topic_in_settings_goes_before_the_handler_and_that_before_the_consumer(
        self, use: Callable[..., TopicHandlers], consumer: Any, own: Any, topic: Any, limit: float | None
    ) -> None:
        found = use(lambda _message: None, own=own, topic=topic, timeout=consumer)
        assert found.default is not None
        assert found.default.timeout == limit
        assert handlers.limited("ops") == (limit is not None)

    def test_a_handler_that_is_named_in_settings_keeps_what_its_decorator_says(self, settings: Settings) -> None:
        kafka_handler(topics=TOPIC, consumer="ops", timeout="7s", dry_run=True)(named)
        try:
            topics = {TOPIC: {"handler": f"{__name__}.named"}}
            settings.KAFKA = {"consumers": {"ops": {"group_id": "g", "topics": topics}}}
            handler = handlers.for_topic("ops", TOPIC).default
            assert handler is not None
            assert (handler.timeout, handler.dry_run) == (7.0, True)
        finally:
            handlers.forget(named)

    @pytest.mark.parametrize("wrong", [0, -1, "soon", "5", True])
    def test_a_limit_that_is_none_is_refused_where_it_is_written(self, wrong: Any, settings: Settings) -> None:
        with pytest.raises(ConfigurationError, match=r"^timeout is .*; allowed: a duration from 1ms"):
            kafka_handler(topics=TOPIC, timeout=wrong)
        settings.KAFKA = {"consumers": {"ops": {"group_id": "g", "topics": {TOPIC: {"timeout": wrong}}}}}
        assert any('["timeout"]' in str(one) for one in conf.problems())

    def test_without_a_limit_the_function_itself_is_called(self, use: Callable[..., TopicHandlers]) -> None:
        def handle(_message: Message) -> None: ...

        found = use(handle, transaction="none")
        execution = Execution(conf.consumer("ops"), tallies.of_consumer("ops"), here.begin())
        here.end()
        assert execution.callable_for(found) is handle


def named(_message: Message) -> None: ...


class TestTheTimeLeft:
    def test_a_message_without_a_limit_has_none(self) -> None:
        assert message().time_left is None

    def test_a_handler_may_ask_for_it(self, use: Callable[..., TopicHandlers]) -> None:
        asked: list[float | None] = []

        def handle(message: Message) -> None:
            asked.append(message.time_left)
            time.sleep(0.05)
            asked.append(message.time_left)

        run(use(handle, timeout="1m", transaction="none"))
        first, second = asked
        assert first is not None
        assert second is not None
        assert 50 < second + 0.04 < first <= 60
        asked.clear()
        run(use(handle, timeout="10ms", transaction="none"))
        assert asked[1] == 0.0


class TestWhatRuns:
    def test_what_has_a_limit_is_in_the_list_while_it_runs(self, use: Callable[..., TopicHandlers]) -> None:
        seen: list[deadlines.Running] = []

        def handle(_message: Message) -> None:
            seen.append(deadlines.running[threading.get_ident()])
            assert deadlines.overdue("ops") == []
            time.sleep(0.45)
            assert deadlines.overdue("ops") == seen
            assert deadlines.overdue("other") == []
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run(use(handle, timeout="400ms", transaction="none"))
        (one,) = seen
        assert (one.consumer, one.message.topic, one.limit) == ("ops", TOPIC, 0.4)
        assert one.handler.endswith("handle")
        assert one.shown()["topic"] == TOPIC
        assert deadlines.running == {}

    def test_a_handler_that_runs_another_one_is_back_in_the_list_after_it(
        self, use: Callable[..., TopicHandlers]
    ) -> None:
        inner = deadlines.limited(lambda _message: None, limit=1, handler="inner", consumer="ops", database="default")

        def handle(message: Message) -> None:
            inner(message)
            assert deadlines.running[threading.get_ident()].handler != "inner"

        run(use(handle, timeout="1s", transaction="none"))
        assert deadlines.running == {}


@pytest.mark.django_db(transaction=True)
class TestStatements:
    @pytest.mark.parametrize("kind", ["message", "none"])
    def test_none_is_begun_when_the_time_is_over(self, use: Callable[..., TopicHandlers], kind: str) -> None:
        def handle(_message: Message) -> None:
            Group.objects.create(name="early")
            time.sleep(0.45)
            Group.objects.create(name="late")

        with pytest.raises(HandlerTimeout, match=r"time of 0\.4 s is over") as caught:
            run(use(handle, timeout="400ms", transaction=kind))
        assert categories.of(caught.value) == categories.Nature("timeout")
        assert Group.objects.count() == (0 if kind == "message" else 1)

    def test_a_handler_that_comes_back_late_has_succeeded(self, use: Callable[..., TopicHandlers]) -> None:
        def handle(_message: Message) -> None:
            Group.objects.create(name="early")
            time.sleep(0.45)

        run(use(handle, timeout="400ms"))
        assert Group.objects.count() == 1

    def test_what_belongs_to_the_message_and_not_to_the_handler_is_done_late_as_well(
        self, use: Callable[..., TopicHandlers]
    ) -> None:
        found = use(lambda _message: time.sleep(0.45), timeout="400ms")
        execution = Execution(conf.consumer("ops"), tallies.of_consumer("ops"), here.begin())
        try:
            execution.run(message(), found, finish=lambda: Group.objects.create(name="finish") and None)
        finally:
            here.end()
        assert Group.objects.count() == 1

    def test_a_block_is_left_in_order_when_the_time_is_over_inside_it(self, use: Callable[..., TopicHandlers]) -> None:
        def handle(_message: Message) -> None:
            Group.objects.create(name="kept")
            try:
                with transaction.atomic():
                    Group.objects.create(name="gone")
                    time.sleep(0.45)
                    Group.objects.count()
            except TimeoutError:
                pass

        run(use(handle, timeout="400ms"))
        assert [group.name for group in Group.objects.all()] == ["kept"]

    def test_nothing_stays_behind_on_the_connection(self, use: Callable[..., TopicHandlers]) -> None:
        def handle(_message: Message) -> None:
            Group.objects.count()
            time.sleep(0.45)

        run(use(handle, timeout="400ms"))
        assert Group.objects.count() == 0
        assert connection.execute_wrappers == []


@pytest.fixture
def server(postgresql: PostgreSQL, django_db_blocker: Any) -> Iterator[Any]:
    with added("limited", django_db_blocker, **of_postgresql(postgresql)) as found:
        found.ensure_connection()  # what that takes is no part of what is limited
        yield found


def setting() -> str:
    with connections["limited"].cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        return str(cursor.fetchone()[0])


def sleep(seconds: float) -> None:
    with connections["limited"].cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


@pytest.mark.usefixtures("server")
class TestOnPostgreSQL:
    def test_the_server_ends_a_statement_that_runs_past_the_limit(self, use: Callable[..., TopicHandlers]) -> None:
        began = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            run(use(lambda _message: sleep(20), timeout="200ms", database="limited"))
        assert 0.15 < time.monotonic() - began < 5
        assert categories.of(caught.value) == categories.Nature("timeout")
        assert setting() == "0", "Nothing of it stays after the transaction."

    def test_it_is_the_rest_of_the_time_that_a_statement_has(self, use: Callable[..., TopicHandlers]) -> None:
        had: list[tuple[float, str]] = []

        def handle(message: Message) -> None:
            sleep(0)
            time.sleep(1.1)
            had.append((message.time_left or 0.0, setting()))

        run(use(handle, timeout="2s", database="limited"))
        ((left, shown),) = had
        assert left < 1
        assert 0 < int(shown.removesuffix("ms")) <= left * 1000, "It had what was left, not all of it."

    def test_a_rollback_to_a_savepoint_does_not_lift_it(self, use: Callable[..., TopicHandlers]) -> None:
        shown: list[str] = []

        def handle(_message: Message) -> None:
            with transaction.atomic("limited"):
                sleep(0)
                transaction.set_rollback(True, using="limited")
            shown.append(setting())

        run(use(handle, timeout="30s", database="limited"))
        assert shown != ["0"]

    @pytest.mark.parametrize(("theirs", "holds"), [("10s", True), ("90s", False), ("2min", False), ("1500ms", True)])
    def test_a_shorter_limit_of_the_database_stays(
        self, use: Callable[..., TopicHandlers], theirs: str, holds: bool
    ) -> None:
        with connections["limited"].cursor() as cursor:
            cursor.execute(f"SET statement_timeout = '{theirs}'")
        shown: list[str] = []
        run(use(lambda _message: shown.append(setting()), timeout="1m", database="limited"))
        assert (shown[0] == setting()) is holds

    def test_it_costs_one_statement_however_many_the_handler_runs(self, use: Callable[..., TopicHandlers]) -> None:
        sent: list[str] = []

        def count(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
            sent.append(sql)
            return execute(sql, *rest)

        def handle(_message: Message) -> None:
            for _ in range(5):
                sleep(0)

        found = use(handle, timeout="30s", database="limited")
        with connections["limited"].execute_wrapper(count):
            run(found)
        assert len(sent) == 6
        sent.clear()
        silent = use(lambda _message: None, timeout="30s", database="limited")
        with connections["limited"].execute_wrapper(count):
            run(silent)
        assert sent == []
