from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
from django.db import OperationalError

from django_kafka import signals
from django_kafka.clients.embedded import Request
from django_kafka.consuming import commits
from django_kafka.messages import Message
from tests.consuming import Seen, Workplace
from tests.servers.processes import wait_until

IMPATIENT = {"max.poll.interval.ms": 2000}
"""A member that does not poll for two seconds is put out of its group."""


def test_messages_in_flight_are_bounded_by_their_number(workplace: Workplace) -> None:
    most: list[int] = []
    seen = Seen(lambda _message: most.append(worker.lanes.in_flight))
    workplace.consume(seen, partitions=4, max_in_flight=10)
    for partition in range(4):
        workplace.send(range(100), partition=partition)
    with workplace.worker() as worker:
        seen.wait(400)
    assert 1 < max(most) <= 10
    assert [seen.of(partition) for partition in range(4)] == [list(range(100))] * 4


def test_messages_in_flight_are_bounded_by_their_bytes(workplace: Workplace) -> None:
    most: list[int] = []
    seen = Seen(lambda _message: most.append(worker.lanes.bytes))
    workplace.consume(seen, partitions=2, max_in_flight_bytes=5_000, serializer="bytes")
    for partition in range(2):
        workplace.send([b"x" * 1_000] * 100, partition=partition)
    with workplace.worker() as worker:
        seen.wait(200)
    assert 1_000 < max(most) <= 6_000
    assert workplace.committed() == {0: 100, 1: 100}


@pytest.mark.parametrize("parts", [{"key": b"k" * 1_000}, {"headers": [("h", b"x" * 1_000)]}], ids=["keys", "headers"])
def test_the_bytes_of_keys_and_headers_count(workplace: Workplace, parts: dict[str, Any]) -> None:
    most: list[int] = []
    seen = Seen(lambda _message: most.append(worker.lanes.in_flight))
    workplace.consume(seen, max_in_flight_bytes=5_000)
    workplace.send([None] * 100, **parts)
    with workplace.worker() as worker:
        seen.wait(100)
    assert 1 < max(most) <= 6


def test_one_message_larger_than_all_that_may_be_in_flight_is_handled(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, max_in_flight_bytes=100, serializer="bytes")
    workplace.send([b"x" * 500_000] * 3)
    with workplace.worker():
        seen.wait(3)


def test_a_full_worker_pauses_goes_on_polling_and_resumes(workplace: Workplace) -> None:
    go_on = threading.Event()
    seen = Seen(lambda _message: go_on.wait(30) and None)
    workplace.consume(seen, partitions=2, max_in_flight=4, options=IMPATIENT)
    for partition in range(2):
        workplace.send(range(50), partition=partition)
    with workplace.worker() as worker:
        wait_until(lambda: len(worker.lanes) == 2 and all(lane.paused for lane in worker.lanes))
        rebalances = worker.tally.rebalances
        time.sleep(3.5)  # well over max.poll.interval.ms
        assert worker.tally.rebalances == rebalances
        go_on.set()
        seen.wait(100)
        wait_until(lambda: not any(lane.paused for lane in worker.lanes))
    assert [seen.of(0), seen.of(1)] == [list(range(50))] * 2


def test_a_handler_may_run_longer_than_a_member_may_go_without_polling(workplace: Workplace) -> None:
    seen = Seen(lambda message: time.sleep(3.5) if message.value == 0 else None)
    workplace.consume(seen, options=IMPATIENT)
    workplace.send([0, 1])
    with workplace.worker() as worker:
        rebalances = worker.tally.rebalances
        seen.wait(2)
        assert worker.tally.rebalances - rebalances <= 1
    assert seen.values == [0, 1]
    assert workplace.committed() == {0: 2}


def test_the_last_of_max_messages_may_take_longer_than_a_member_may_go_without_polling(workplace: Workplace) -> None:
    busy: list[float] = []

    def take_long(_message: Message) -> None:
        before = time.process_time()
        time.sleep(3.5)
        busy.append(time.process_time() - before)

    seen = Seen(take_long)
    workplace.consume(seen, options=IMPATIENT)
    workplace.send([0, 1, 2])
    worker = workplace.start(max_messages=1)
    workplace.ended(worker)
    assert seen.values == [0]
    assert workplace.committed() == {0: 1}, "the member was put out of its group"
    assert busy[0] < 1.5, "the poller kept a processor busy"


def test_a_lane_that_waited_long_is_paused_and_then_goes_on(workplace: Workplace) -> None:
    down = threading.Event()
    down.set()

    def handle(_message: Message) -> None:
        if down.is_set():
            raise OperationalError("could not connect to server")

    seen = Seen(handle)
    workplace.consume(seen, max_poll_records=1)
    workplace.send(range(5))
    with workplace.worker() as worker:
        wait_until(lambda: any(lane.paused for lane in worker.lanes))
        down.clear()
        workplace.send(range(5, 10))
        seen.wait(10)
        wait_until(lambda: not any(lane.paused for lane in worker.lanes))
    assert seen.of(0) == list(range(10))


def test_workers_that_come_and_go_lose_nothing_and_keep_the_order(workplace: Workplace) -> None:
    seen = Seen(lambda _message: time.sleep(0.002))
    workplace.consume(seen, partitions=8, concurrency=2, max_poll_records=20)
    for partition in range(8):
        workplace.send(range(100), partition=partition)
    first = workplace.start()
    wait_until(lambda: len(seen.places) > 50)
    second = workplace.start()
    wait_until(lambda: len(second.lanes) >= 4, message="the second worker got no partitions")
    workplace.stop(first)
    third = workplace.start()
    seen.wait(800)
    wait_until(lambda: len(set(seen.places)) == 800)
    workplace.stop(second)
    workplace.stop(third)
    for partition in range(8):
        assert list(dict.fromkeys(seen.of(partition))) == list(range(100)), "first runs are out of order"
    # The embedded cluster takes no commits in mid-rebalance, so that some messages may come once more.
    workplace.ended(workplace.start(until_empty=True))
    assert workplace.committed() == dict.fromkeys(range(8), 100)


def test_a_handler_that_outlives_its_partition_neither_commits_nor_writes_a_letter(workplace: Workplace) -> None:
    running, let_go = threading.Event(), threading.Event()
    slow: list[int] = []

    def outlive(message: Message) -> None:
        if not slow:
            slow.append(message.partition)
            running.set()
            let_go.wait(60)
            raise ValueError("too late")

    seen = Seen(outlive)
    # Eager assignment takes the partition from the first worker when the second one joins, and may give it back to it.
    strategy = {"partition.assignment.strategy": "range"}
    workplace.consume(seen, concurrency=2, options={**IMPATIENT, **strategy})
    workplace.send([0, 1])
    with workplace.worker() as first:
        assert running.wait(20)
        rebalances = first.tally.rebalances
        with workplace.worker():
            wait_until(lambda: first.tally.rebalances > rebalances)
            wait_until(lambda: len(seen.of(0)) >= 2, message="the message was not handled anew")
            let_go.set()
            wait_until(lambda: first.lanes.in_flight == 0)
            assert not workplace.letters()
    assert seen.of(0)[:2] == [0, 1]
    workplace.ended(workplace.start(until_empty=True))
    assert not workplace.letters()
    assert workplace.committed() == {0: 2}


def test_a_lane_that_waits_is_handed_over_at_once(workplace: Workplace) -> None:
    down = threading.Event()
    down.set()

    def outage(_message: Message) -> None:
        if down.is_set():
            raise OperationalError("could not connect to server")

    seen = Seen(outage)
    workplace.consume(seen, partitions=2)
    for partition in range(2):
        workplace.send([0, 1], partition=partition)
    with workplace.worker() as first:
        wait_until(lambda: first.tally.waits and len(first.lanes) == 2)
        with workplace.worker() as second:
            wait_until(lambda: len(first.lanes) == 1 and len(second.lanes) == 1)
            down.clear()
            seen.wait(4)
    assert [seen.of(0), seen.of(1)] == [[0, 1], [0, 1]]


def test_partitions_that_come_and_go_are_told_with_the_worker(workplace: Workplace) -> None:
    told: list[tuple[str, Any, Any]] = []

    def came(sender: str, worker: Any, partitions: Any, **_event: Any) -> None:
        told.append(("came", worker, partitions))

    def left(sender: str, worker: Any, partitions: Any, lost: bool, **_event: Any) -> None:
        told.append(("left", worker, partitions))
        assert lost is False

    signals.partitions_assigned.connect(came)
    signals.partitions_revoked.connect(left)
    try:
        workplace.consume(Seen())
        with workplace.worker() as worker:
            wait_until(lambda: told)
    finally:
        signals.partitions_assigned.disconnect(came)
        signals.partitions_revoked.disconnect(left)
    place = [(workplace.topic, 0)]
    assert told == [("came", worker, place), ("left", worker, place)]


def test_a_fetch_that_raises_after_it_took_messages_loses_none(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, partitions=3, max_poll_records=10)
    for partition in range(3):
        workplace.send(range(100), partition=partition)
    worker = workplace.start()
    client = worker._poller._client
    real, calls = client.fetch, [0]

    def fetch(most: int, timeout: float) -> list[Any]:
        messages = real(most, timeout)
        if messages:
            calls[0] += 1
            if calls[0] % 5 == 1:
                raise RuntimeError("a callback raised")
        return messages

    client.fetch = fetch  # type: ignore[method-assign]
    wait_until(lambda: len(set(seen.places)) == 300)
    workplace.stop(worker)
    assert calls[0] > 5
    for partition in range(3):
        assert list(dict.fromkeys(seen.of(partition))) == list(range(100))
    assert workplace.committed() == dict.fromkeys(range(3), 100)


@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_a_fetch_that_raises_repeats_nothing_that_is_settled_and_not_committed_yet(
    workplace: Workplace, strategy: str
) -> None:
    seen = Seen()
    # Of the last partition nothing is known yet: it is to begin at what the group has committed, the others are not.
    options = {"partition.assignment.strategy": strategy}
    workplace.consume(seen, partitions=3, auto_commit_interval="1h", options=options)
    for partition in range(2):
        workplace.send(range(50), partition=partition)
    with workplace.worker() as worker:
        seen.wait(100)
        wait_until(lambda: not worker.lanes.in_flight)
        wait_until(lambda: all(one.stored == 49 for one in worker.lanes if one.place[1] < 2))
        client, raised = worker._poller._client, threading.Event()
        real = client.fetch

        def fetch(most: int, timeout: float) -> list[Any]:
            client.fetch = real  # type: ignore[method-assign]
            raised.set()
            raise RuntimeError("a callback raised")

        client.fetch = fetch  # type: ignore[method-assign]
        assert raised.wait(20)
        # Nothing more comes to partition 1: it has to be committed all the same.
        for partition in (0, 2):
            workplace.send([0], partition=partition)
        seen.wait(102)
        assert workplace.committed() == {0: 0, 1: 0, 2: 0}
    assert sorted(seen.places) == sorted(
        [*((number, one) for number in range(2) for one in range(50)), (0, 50), (2, 0)]
    )
    assert workplace.committed() == {0: 51, 1: 50, 2: 1}


def test_a_log_that_raises_in_callbacks_loses_nothing(workplace: Workplace) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raised.append(record.getMessage())
            raise RuntimeError("disk full")

    raised: list[str] = []
    broken = Broken()
    names = ("consuming.polling", "consuming.member", "consuming.troubles", "client")
    loggers = [logging.getLogger(f"django_kafka.{name}") for name in names]
    seen = Seen()
    workplace.consume(seen, partitions=2)
    for partition in range(2):
        workplace.send(range(50), partition=partition)
    for logger in loggers:
        logger.addHandler(broken)
    try:
        with workplace.worker() as worker:
            seen.wait(100)
            workplace.cluster.broker_down(1)
            count = len(raised)
            wait_until(lambda: len(raised) > count)
            workplace.cluster.broker_up(1)
            for partition in range(2):
                workplace.send(range(50, 100), partition=partition)
            wait_until(lambda: len(set(seen.places)) == 200, 40)
            assert worker.error is None
    finally:
        for logger in loggers:
            logger.removeHandler(broken)
    assert raised
    for partition in range(2):
        assert list(dict.fromkeys(seen.of(partition))) == list(range(100))


def test_a_member_that_was_fenced_ends_its_worker_instead_of_idling(workplace: Workplace) -> None:
    workplace.consume(Seen(), options={"group.instance.id": "one"})
    worker = workplace.start()
    wait_until(lambda: len(worker.lanes))
    workplace.cluster.push_errors(Request.HEARTBEAT, "FENCED_INSTANCE_ID")
    workplace.ended(worker)
    assert worker.error is not None


def test_the_last_commit_makes_up_for_one_that_failed(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, enable_auto_commit=False)
    workplace.cluster.push_errors(Request.OFFSET_COMMIT, "INVALID_COMMIT_OFFSET_SIZE")
    workplace.send([0])
    with workplace.worker() as worker:
        seen.wait(1)
        wait_until(lambda: [lane.stored for lane in worker.lanes] == [0])
        time.sleep(0.3)
        assert workplace.committed() == {0: 0}
    assert workplace.committed() == {0: 1}


@pytest.mark.parametrize("automatic", [True, False])
def test_a_stop_in_the_midst_of_a_rebalance_commits_when_that_is_over(workplace: Workplace, automatic: bool) -> None:
    seen = Seen()
    workplace.consume(seen, enable_auto_commit=automatic, auto_commit_interval="1h", partitions=2)
    workplace.send(range(20))
    # As its group answers from the moment that another member joins until all have joined again.
    workplace.cluster.push_errors(Request.OFFSET_COMMIT, *["REBALANCE_IN_PROGRESS"] * 3)
    with workplace.worker():
        seen.wait(20)
    assert workplace.committed() == {0: 20, 1: 0}


def test_a_commit_that_is_refused_is_made_again(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, enable_auto_commit=False)
    workplace.cluster.push_errors(Request.OFFSET_COMMIT, "REBALANCE_IN_PROGRESS")
    workplace.send([0])
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 1})


@pytest.mark.parametrize("automatic", [True, False])
def test_a_commit_that_the_client_sends_again_overtakes_no_later_one(workplace: Workplace, automatic: bool) -> None:
    go_on = [threading.Event() for _ in range(3)]
    seen = Seen(lambda message: go_on[message.value].wait(20) and None)
    workplace.consume(seen, enable_auto_commit=automatic, auto_commit_interval="20ms")
    # The client sends a commit again that is answered so.
    workplace.cluster.push_errors(Request.OFFSET_COMMIT, *["COORDINATOR_LOAD_IN_PROGRESS"] * 2)
    workplace.send(range(3))
    with workplace.worker() as worker:
        for count, event in enumerate(go_on):
            wait_until(lambda count=count: [one.stored for one in worker.lanes] == [count - 1], every=0.001)
            event.set()
        wait_until(lambda: workplace.committed() == {0: 3})
        reached = time.monotonic()
        while time.monotonic() - reached < 1:
            assert workplace.committed() == {0: 3}


def test_a_worker_leaves_at_once_whose_partitions_were_committed_one_after_another(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_NO_ANSWER", 600.0)
    monkeypatch.setattr(commits, "_AT_MOST", 600.0)
    workplace.consume(Seen(), partitions=2)
    with workplace.worker():
        for partition in (0, 1):
            workplace.send([0], partition=partition)
            wait_until(lambda partition=partition: workplace.committed()[partition] == 1)


@pytest.mark.parametrize("automatic", [True, False])
def test_only_what_is_settled_is_committed(workplace: Workplace, automatic: bool) -> None:
    go_on = threading.Event()
    seen = Seen(lambda message: go_on.wait(20) and None if message.value == 3 else None)
    workplace.consume(seen, enable_auto_commit=automatic, options={})
    workplace.send(range(6))
    with workplace.worker():
        seen.wait(3)
        if not automatic:
            wait_until(lambda: workplace.committed() == {0: 3})
        assert workplace.committed()[0] <= 3
        go_on.set()
        seen.wait(6)
    assert workplace.committed() == {0: 6}


def test_a_jump_of_offsets_is_counted_and_gone_on_from(workplace: Workplace) -> None:
    seen = Seen()
    workplace.consume(seen, max_poll_records=5)
    workplace.send(range(10))
    with workplace.worker() as worker:
        seen.wait(10)
        before = worker.tally.offset_jumps
        (lane,) = worker.lanes
        lane.expected = 7
        workplace.send([10])
        seen.wait(11)
        assert worker.tally.offset_jumps == before + 1


def test_brokers_that_cannot_be_reached_are_named_and_waited_for(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    workplace.consume(seen)
    workplace.send([0])
    workplace.cluster.broker_down(1)
    with workplace.worker() as worker:
        wait_until(lambda: "_ALL_BROKERS_DOWN" in caplog.text)
        assert "trying again until one answers" in caplog.text
        workplace.cluster.broker_up(1)
        seen.wait(1, 40)
        assert worker.error is None
