"""`guarantee: "at_most_once"` in workers on the embedded cluster: messages are committed before they are handled."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import OperationalError

from django_kafka.clients.embedded import Request
from django_kafka.exceptions import Skip
from django_kafka.messages import Message
from tests.consuming import Seen, Workplace
from tests.servers.processes import wait_until

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
    workplace.send(range(500))
    with workplace.worker() as worker:
        poller: Any = worker._poller
        wait_until(lambda: poller._queued >= 30)
        most = [poller._queued + worker.lanes.in_flight for _ in range(50) if not go_on.wait(0.01)]
        assert max(most) <= 50
        go_on.set()
        seen.wait(500)
    assert poller._queued == poller._queued_bytes == 0
    assert seen.of(0) == list(range(500))
