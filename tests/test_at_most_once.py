"""`guarantee: "at_most_once"` in workers on the embedded cluster: messages are committed before they are handled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connections

from django_kafka import signals
from django_kafka.clients.embedded import Request
from django_kafka.exceptions import BatchFailed, Skip
from django_kafka.handlers import kafka_handler
from django_kafka.messages import Message
from django_kafka.serializers import TopicDecoder
from tests.app.models import Effect
from tests.consuming import NAME, Seen, Workplace
from tests.servers import PostgreSQL
from tests.servers.processes import wait_until
from tests.test_effects_once_together import OfLists
from tests.test_handling import leave_effect
from tests.test_lists import Lists
from tests.test_messages import Raw
from tests.test_together import limited

__all__ = ["limited"]

ORDERINGS = pytest.mark.parametrize("ordering", ["partition", "key", "unordered"])


@ORDERINGS
def test_messages_are_committed_before_they_are_handled(workplace: Workplace, ordering: str) -> None:
    committed: list[int] = []

    def handle(message: Message) -> None:
        committed.append(workplace.committed()[0] - message.offset)

    seen = Seen(handle)
    workplace.consume(seen, guarantee="at_most_once", ordering=ordering, max_poll_records=3)
    workplace.send(range(9))
    with workplace.worker():
        seen.wait(9)
    assert sorted(seen.of(0)) == list(range(9))
    assert all(ahead >= 1 for ahead in committed), committed
    assert workplace.committed() == {0: 9}


@ORDERINGS
def test_no_more_than_one_fetch_of_a_partition_is_committed_ahead(workplace: Workplace, ordering: str) -> None:
    go_on = threading.Event()
    seen = Seen(lambda message: message.partition == 0 and message.offset == 30 and go_on.wait(30) and None)
    workplace.consume(
        seen, guarantee="at_most_once", ordering=ordering, max_poll_records=10, partitions=2, concurrency=2
    )
    workplace.send(range(200), key=b"k")
    with workplace.worker():
        wait_until(lambda: len(seen.of(0)) >= 30)
        workplace.send(range(100), partition=1, key=b"k")
        wait_until(lambda: len(seen.of(1)) == 100, message="the other partition did not go on")
        first = workplace.committed()[0]
        assert 30 < first <= 40, "what comes behind the message that runs is fetched, and not committed"
        go_on.set()
        seen.wait(300)
    assert workplace.committed() == {0: 200, 1: 100}


def test_what_was_committed_is_never_read_again(workplace: Workplace) -> None:
    """A worker that ends without a word, as by `SystemExit`, loses what it had committed."""

    def handle(message: Message) -> None:
        if message.offset == 4:
            raise SystemExit

    seen = Seen(handle)
    workplace.consume(seen, guarantee="at_most_once", max_poll_records=10)
    workplace.send(range(20))
    worker = workplace.start()
    workplace.ended(worker)
    lost = workplace.committed()[0]
    assert 4 < lost <= 14
    with workplace.worker():
        wait_until(lambda: 19 in seen.of(0))
    assert seen.of(0) == [0, 1, 2, 3, *range(lost, 20)]


def test_a_stop_handles_what_is_committed_and_no_more(workplace: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def handle(message: Message) -> None:
        if message.offset == 12:
            begun.set()
            assert go_on.wait(20)

    seen = Seen(handle)
    workplace.consume(seen, guarantee="at_most_once", max_poll_records=10)
    workplace.send(range(100))
    worker = workplace.start()
    assert begun.wait(20)
    worker.stop()
    go_on.set()
    workplace.ended(worker)
    committed = workplace.committed()[0]
    assert 12 < committed < 100
    assert seen.of(0) == list(range(committed))
    assert "nobody will" not in caplog.text
    with workplace.worker():
        seen.wait(100)
    assert seen.of(0) == list(range(100))


def test_a_stop_waits_for_no_outage_and_tells_what_is_lost(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(message: Message) -> None:
        if message.offset == 1:
            raise OperationalError("connection to server was lost")

    seen = Seen(handle)
    workplace.consume(seen, guarantee="at_most_once", max_poll_records=10)
    workplace.send(range(5))
    with workplace.worker() as worker:
        waits = worker.tally.waits
        wait_until(lambda: worker.tally.waits > waits)
        left = workplace.committed()[0] - 1
    assert f"{left} messages are committed and not handled, and nobody will" in caplog.text


def test_a_message_is_tried_again_after_its_effects_are_rolled_back(workplace: Workplace) -> None:
    seen = Seen(lambda message: 1 // (message.attempt - 1) and None)
    retry = {"max_retries": 1, "backoff": "10ms"}
    workplace.consume(seen, guarantee="at_most_once", retry=retry)
    workplace.send([0])
    with workplace.worker():
        seen.wait(1)
    assert not workplace.letters()


@pytest.mark.parametrize("error", [ValueError("bad"), OperationalError("connection to server was lost")])
def test_without_a_transaction_there_is_one_attempt(workplace: Workplace, error: Exception) -> None:
    attempts: list[int] = []

    def handle(message: Message) -> None:
        attempts.append(message.offset)
        if message.offset == 1:
            raise error
        if message.offset == 2:
            raise Skip("not for us")

    seen = Seen(handle)
    workplace.consume(seen, guarantee="at_most_once", transaction="none", retry={"max_retries": 5, "backoff": "10ms"})
    workplace.send(range(4))
    with workplace.worker():
        wait_until(lambda: 3 in attempts)
        wait_until(lambda: workplace.letters())
    assert attempts == [0, 1, 2, 3]
    assert [(letter.offset, letter.attempts) for letter in workplace.letters()] == [(1, 1)]


def test_a_commit_that_is_refused_keeps_its_messages_from_being_handled(workplace: Workplace) -> None:
    committed: list[int] = []
    seen = Seen(lambda _message: committed.append(workplace.committed()[0]))
    workplace.consume(seen, guarantee="at_most_once")
    with workplace.worker() as worker:
        workplace.send([0])
        seen.wait(1)
        workplace.cluster.push_errors(Request.OFFSET_COMMIT, *["UNKNOWN_TOPIC_OR_PART"] * 3)
        workplace.send([1])
        seen.wait(2)
        assert worker.error is None
    assert seen.values == [0, 1]
    assert committed == [1, 2]


def test_until_empty_and_a_limit_end_when_all_is_handled(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, guarantee="at_most_once", max_poll_records=7)
    workplace.send(range(40))
    workplace.ended(workplace.start(max_messages=10))
    assert seen.of(0) == list(range(10))
    workplace.ended(workplace.start(until_empty=True))
    assert seen.of(0) == list(range(40))
    assert workplace.committed() == {0: 40}


def test_memory_is_bounded(workplace: Workplace) -> None:
    go_on = threading.Event()
    most: list[Any] = []
    seen = Seen(lambda _message: go_on.wait(30) and None)
    workplace.consume(seen, guarantee="at_most_once", max_poll_records=10, max_in_flight=50)
    workplace.send(range(200))
    with workplace.worker() as worker:
        poller: Any = worker._poller
        wait_until(lambda: poller.queued >= 30)
        most = [poller.queued + worker.lanes.in_flight for _ in range(50) if not go_on.wait(0.01)]
        assert max(most) <= 50
        go_on.set()
        seen.wait(200)
    assert poller.queued == poller.queued_bytes == 0
    assert seen.of(0) == list(range(200))


def of_lists(workplace: Workplace, handler: Callable[[list[Message]], Any]) -> Callable[[list[Message]], Any]:
    return kafka_handler(topics=workplace.topic, consumer=NAME, batch=True)(handler)


@pytest.mark.parametrize("kind", ["batch", "lists"])
def test_several_messages_at_a_time_are_committed_before_they_are_handled(workplace: Workplace, kind: str) -> None:
    committed: list[int] = []

    def handle(message: Message) -> None:
        leave_effect(message)
        if message.offset % 9 == 4:
            raise ValueError
        if message.offset % 5 == 0:
            committed.append(workplace.committed()[0] - message.offset)

    seen = Seen(handle)
    handler: Callable[..., Any] = of_lists(workplace, OfLists(seen)) if kind == "lists" else seen
    shared = "batch" if kind == "batch" else "message"
    workplace.consume(handler, guarantee="at_most_once", transaction=shared, max_poll_records=10)
    workplace.send(range(40))
    with workplace.worker():
        wait_until(lambda: Effect.objects.count() == 36)
    bad = [4, 13, 22, 31]
    # What ran beside them ran again: its effects were rolled back.
    assert sorted(Effect.objects.values_list("offset", flat=True)) == [one for one in range(40) if one not in bad]
    assert [letter.offset for letter in workplace.letters()] == bad
    assert all(ahead >= 1 for ahead in committed), committed


@pytest.mark.parametrize("trouble", ["fails", "meets an outage", "names some", "names a wrong one", "meets poison"])
def test_without_a_transaction_nothing_of_a_list_is_given_again(workplace: Workplace, trouble: str) -> None:
    failed: list[int] = []

    def handle(messages: list[Message]) -> None:
        if len(messages) < 5:
            return
        if trouble == "fails":
            raise ValueError("bad")
        if trouble == "meets an outage":
            raise OperationalError("connection to server was lost")
        if trouble == "names some":
            raise BatchFailed({message: ValueError() for message in messages if message.offset % 2})
        if trouble == "names a wrong one":
            raise BatchFailed({Message(Raw(offset=99), TopicDecoder("text", "json")): ValueError()})
        for message in messages:
            assert message.value is not None

    def note(sender: str, message: Message, **_event: Any) -> None:
        failed.append(message.offset)

    seen = Lists(handle)
    signals.handler_failed.connect(note)
    try:
        workplace.consume(
            of_lists(workplace, seen), guarantee="at_most_once", transaction="none",
            retry={"max_retries": 5, "backoff": "10ms"}, circuit_breaker={"enabled": False},
        )  # fmt: skip
        workplace.send([*range(8), b"!no json", *range(9, 20)])
        with workplace.worker() as worker:
            wait_until(lambda: sum(map(len, seen.calls)) == 20)
            wait_until(lambda: worker.tally.handled + len(workplace.letters()) == 20)
    finally:
        signals.handler_failed.disconnect(note)
    assert [offset for call in seen.calls for offset in call] == list(range(20)), "none is given twice"
    letters = [(letter.offset, letter.attempts) for letter in workplace.letters()]
    wrong = [call for call in seen.calls if len(call) >= 5 and (trouble != "meets poison" or 8 in call)]
    whole = [offset for call in wrong for offset in call]
    assert whole
    assert letters == [(offset, 1) for offset in whole if trouble != "names some" or offset % 2]
    assert failed == [offset for offset, _attempts in letters]


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("kind", ["message", "batch", "lists"])
def test_after_a_commit_that_was_not_answered_there_is_no_other_attempt(
    workplace: Workplace, postgresql: PostgreSQL, kind: str
) -> None:
    runs: list[int] = []

    def handle(message: Message) -> None:
        runs.append(message.offset)
        with connections["limited"].cursor() as cursor:
            cursor.execute("INSERT INTO runs VALUES (%s)", [message.offset])
        if message.offset == 5:
            connections["limited"].connection.pgconn.finish()

    seen = Seen(handle)
    handler: Callable[..., Any] = of_lists(workplace, OfLists(seen)) if kind == "lists" else seen
    shared = "batch" if kind == "batch" else "message"
    workplace.consume(handler, guarantee="at_most_once", database="limited", transaction=shared)
    workplace.send(range(6))
    with workplace.worker() as worker:
        wait_until(lambda: workplace.letters())
        assert worker.report()["circuit"] == "closed"
    assert runs == list(range(6)), "none ran twice"
    letters = [letter.offset for letter in workplace.letters()]
    assert letters == list(range(letters[0], 6))
    assert (len(letters) > 1) == (kind != "message"), "all of that transaction have one"
