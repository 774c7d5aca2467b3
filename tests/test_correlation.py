"""The correlation id of a message: on each line that is logged while its handler runs, and on what that one sends."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from django_kafka import correlation, logs, services
from django_kafka.clients.embedded import Cluster
from django_kafka.correlation import CorrelationFilter
from django_kafka.messages import Message, Messages
from django_kafka.models import DeadLetter
from tests.consuming import Workplace
from tests.sending import NOBODY, read, use
from tests.servers.processes import wait_until
from tests.test_lists import consume as consume_lists

pytestmark = pytest.mark.django_db(transaction=True)

log = logging.getLogger("project.of.somebody")


class Lines(logging.Handler):
    """A handler as LOGGING would make it, with our filter."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.addFilter(CorrelationFilter())

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def ids(self, text: str) -> list[str]:
        return [one.correlation_id for one in self.records if text in one.getMessage()]  # type: ignore[attr-defined]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    root.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    log.setLevel(level)


def test_each_line_of_a_handler_and_of_what_becomes_of_its_message_has_the_id(
    lines: Lines, workplace: Workplace
) -> None:
    def handle(message: Message) -> None:
        log.info("handled %s", message.value)
        if message.value == 2:
            raise ValueError("no departure time")

    workplace.consume(handle)
    workplace.send([1], headers=[("X-Correlation-ID", b"abc")])
    workplace.send([2], headers=[("request-id", b"r"), ("correlation-id", b"c")])
    workplace.send([3])
    workplace.send([4], headers=[("correlation-id", None)])
    with workplace.worker() as worker:
        wait_until(lambda: worker.tally.handled == 3 and DeadLetter.objects.exists())
    log.info("outside")

    assert [lines.ids(f"handled {number}") for number in (1, 2, 3, 4)] == [["abc"], ["c"], ["-"], ["-"]]
    assert lines.ids("dead letter error=ValueError") == ["c"]
    assert lines.ids("outside") == ["-"]
    assert correlation.current() is None


@pytest.mark.parametrize("kind", ["message", "batch"])
def test_messages_that_share_a_transaction_have_their_own(lines: Lines, workplace: Workplace, kind: str) -> None:
    workplace.consume(lambda message: log.info("handled %s", message.value), transaction=kind)
    for number in range(5):
        workplace.send([number], headers=[("correlation-id", b"id-%d" % number)])
    with workplace.worker() as worker:
        wait_until(lambda: worker.tally.handled == 5)
    assert [lines.ids(f"handled {number}") for number in range(5)] == [[f"id-{number}"] for number in range(5)]


def test_a_list_has_none_but_may_say_which_message_it_is_at(lines: Lines, workplace: Workplace) -> None:
    def handle(messages: Messages) -> None:
        log.info("all of them")
        for message in messages:
            with correlation.about(message):
                log.info("handled %s", message.value)

    consume_lists(workplace, handle)
    workplace.send([0, 1], headers=[("correlation-id", b"abc")])
    with workplace.worker() as worker:
        wait_until(lambda: worker.tally.handled == 2)
    # The first fetch may find one alone.
    assert lines.ids("all of them") in (["-"], ["abc", "abc"])
    assert [lines.ids(f"handled {number}") for number in range(2)] == [["abc"], ["abc"]]


def test_coroutines_that_run_at_the_same_time_have_their_own(lines: Lines, workplace: Workplace) -> None:
    together = asyncio.Barrier(4)

    async def handle(message: Message) -> None:
        if message.value == "alone":
            # As the first message of a partition always is.
            return
        await together.wait()
        log.info("handled %s", message.value)
        await asyncio.to_thread(log.info, "in a thread %s", message.value)

    workplace.consume(handle, transaction="none", concurrency=4, ordering="unordered")
    workplace.send(["alone"])
    for number in range(4):
        workplace.send([number], headers=[("correlation-id", b"id-%d" % number)])
    with workplace.worker() as worker:
        wait_until(lambda: worker.tally.handled == 5)
    for text in ("handled", "in a thread"):
        assert [lines.ids(f"{text} {number}") for number in range(4)] == [[f"id-{number}"] for number in range(4)]


@pytest.mark.parametrize("carried", [True, False])
def test_records_of_a_handler_carry_it_on_unless_told_otherwise(workplace: Workplace, carried: bool) -> None:
    out = f"{workplace.topic}.out"

    def handle(message: Message) -> None:
        services.produce(out, None, 1)
        services.produce(out, None, 2, headers={"correlation-id": "another"})
        services.produce_batch(out, [{"key": None, "value": 3}])

    workplace.consume(handle, kafka={"logging": {"propagate_correlation": carried}})
    workplace.cluster.create_topic(out, 1)
    workplace.send([1], headers=[("X-Request-ID", b"abc")])
    with workplace.worker() as worker:
        wait_until(lambda: worker.tally.handled == 1)
        found = {message.value(): message.headers() for message in read(workplace.cluster, out, 3)}
    services.produce(out, None, 4).result(10)
    mine = [("X-Request-ID", b"abc")] if carried else None
    assert found == {b"1": mine, b"2": [("correlation-id", b"another")], b"3": mine}
    assert read(workplace.cluster, out, 4)[3].headers() is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"a\r\nERROR forged\x1b[31m\x00\xe2\x80\xae", "aERROR forged[31m"),
        (b"x" * 100_000, "x" * 128),
        ("ü".encode() * 200, "ü" * 128),
        (b"\xff\xfe", "fffe"),
        (b" \t", "-"),
        (b"", "-"),
    ],
    ids=["forged", "huge", "cut in a character", "bytes", "blank", "empty"],
)
def test_an_id_of_strangers_begins_no_line_and_does_not_flood(
    lines: Lines, workplace: Workplace, value: bytes, shown: str
) -> None:
    workplace.consume(lambda _message: log.info("handled"))
    workplace.send([1], headers=[("correlation-id", value)])
    with workplace.worker() as worker:
        wait_until(lambda: worker.tally.handled == 1)
    assert lines.ids("handled") == [shown]


def test_which_headers_may_have_it_is_a_setting(lines: Lines, workplace: Workplace) -> None:
    workplace.consume(
        lambda message: log.info("handled %s", message.value), kafka={"logging": {"correlation_headers": ["trip"]}}
    )
    workplace.send([1], headers=[("correlation-id", b"not this"), ("TRIP", b"first"), ("trip", b"last")])
    with workplace.worker() as worker:
        wait_until(lambda: worker.tally.handled == 1)
    assert lines.ids("handled 1") == ["last"]


def test_lines_of_ours_are_data_too(caplog: pytest.LogCaptureFixture, workplace: Workplace) -> None:
    def handle(message: Message) -> None:
        raise ValueError("no departure time")

    workplace.consume(handle)
    workplace.send([1])
    with workplace.worker():
        wait_until(lambda: DeadLetter.objects.exists())
        wait_until(lambda: any("dead letter" in one.getMessage() for one in caplog.records))
    (line,) = [one for one in caplog.records if "dead letter" in one.getMessage()]
    data = vars(line)
    assert (data["consumer"], data["topic"], data["partition"], data["offset"]) == ("ops", workplace.topic, 0, 0)
    assert (data["error"], data["attempts"]) == ("ValueError", 1)
    assert line.pathname.endswith("giving_up.py"), "where it was logged, not where it passed"
    assert re.search(r"consumer=ops topic=\S+ partition=0 offset=0 dead letter", line.getMessage())


def test_names_that_a_line_has_by_itself_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "django_kafka")
    lines = logs.of("django_kafka.tests")
    lines.info("name=%s consumer=%s at %d%% offset=%s", "n", "ops", 5, 7)
    lines.warning("consumer=%s", "ops", extra={"consumer": "given", "more": 1})
    try:
        raise ValueError("x")
    except ValueError:
        lines.exception("consumer=%s failed", "ops")
    first, second, third = map(vars, caplog.records)
    assert (first["name"], first["consumer"], first["offset"]) == ("django_kafka.tests", "ops", 7)
    assert (second["consumer"], second["more"]) == ("given", 1)
    assert third["exc_info"][0] is ValueError
    assert third["funcName"] == "test_names_that_a_line_has_by_itself_are_left_alone"


def test_a_factory_of_the_project_whose_records_have_such_a_name_loses_no_line(
    caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    usual = logging.getLogRecordFactory()
    request.addfinalizer(lambda: logging.setLogRecordFactory(usual))

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = usual(*args, **kwargs)
        record.consumer = "of the project"
        return record

    logging.setLogRecordFactory(factory)
    try:
        raise ValueError("x")
    except ValueError:
        logs.of("django_kafka.tests").exception("consumer=%s stopped", "ops")
    (line,) = caplog.records
    assert (line.getMessage(), vars(line)["consumer"]) == ("consumer=ops stopped", "of the project")
    assert line.exc_info is not None
    assert line.exc_info[0] is ValueError
    assert line.funcName == "test_a_factory_of_the_project_whose_records_have_such_a_name_loses_no_line"


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    logger = logging.getLogger("django_kafka")
    before = logger.level
    logger.setLevel(logging.NOTSET)
    yield logger
    logs.obey(None)
    logger.setLevel(before)


def test_the_level_of_settings_counts_where_logging_gives_none(
    ours: logging.Logger, settings: Settings, embedded: Cluster, topic: Callable[..., str]
) -> None:
    def send(**logging_: Any) -> int:
        use(settings, embedded.bootstrap_servers, logging=logging_)
        services.produce(topic(), None, 1).result(10)
        return ours.level

    assert send() == logging.NOTSET
    assert send(level="debug") == logging.DEBUG
    assert send(level="ERROR") == logging.ERROR
    assert send() == logging.NOTSET
    ours.setLevel(logging.INFO)
    assert send(level="ERROR") == logging.INFO


def test_the_level_counts_from_the_beginning_of_kafka_consume(ours: logging.Logger, settings: Settings) -> None:
    # Also in a supervisor, which never makes a client.
    settings.KAFKA = {"brokers": [NOBODY], "logging": {"level": "INFO"}}
    with pytest.raises(CommandError, match="no enabled consumer"):
        call_command("kafka_consume", skip_checks=True)
    assert ours.level == logging.INFO
