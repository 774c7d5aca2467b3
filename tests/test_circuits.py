"""The surge breaker at work: in a worker, on the embedded cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from django_kafka import conf, signals
from django_kafka.consuming.breaker import State
from django_kafka.consuming.worker import Worker
from django_kafka.exceptions import Reject
from django_kafka.messages import Message
from django_kafka.models import Worker as WorkerRow
from django_kafka.monitoring import heartbeats
from django_kafka.monitoring.heartbeats import Heartbeat
from tests.consuming import Seen, Workplace
from tests.refusing import refusing
from tests.servers.processes import wait_until

QUICK = {"window": 10, "cooldown": "200ms"}


class Fault:
    """A handler that fails while it is broken, and keeps every attempt."""

    def __init__(self) -> None:
        self.broken = threading.Event()
        self.broken.set()
        self.attempts: list[tuple[int, int]] = []

    def __call__(self, message: Message) -> None:
        self.attempts.append((message.partition, message.offset))
        if self.broken.is_set():
            raise ValueError("broken for everybody")


@contextmanager
def told() -> Iterator[list[tuple[Any, ...]]]:
    """Keep what the signals tell."""
    heard: list[tuple[Any, ...]] = []

    def opened(sender: str, worker: Any, reason: str, **_event: Any) -> None:
        heard.append(("opened", sender, worker.consumer.name, reason))

    def closed(sender: str, worker: Any, **_event: Any) -> None:
        heard.append(("closed", sender, worker.consumer.name))

    signals.circuit_opened.connect(opened)
    signals.circuit_closed.connect(closed)
    try:
        yield heard
    finally:
        signals.circuit_opened.disconnect(opened)
        signals.circuit_closed.disconnect(closed)


def is_open(worker: Worker) -> bool:
    return worker.circuit.standing().state is not State.CLOSED


def test_a_surge_pauses_handling_and_what_waited_is_handled_in_order_when_it_is_over(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    fault = Fault()
    seen = Seen(fault)
    workplace.consume(seen, circuit_breaker=QUICK)
    workplace.send(range(40))
    with told() as heard, workplace.worker() as worker:
        wait_until(lambda: len(fault.attempts) >= 8, message="it did not probe")
        assert worker.circuit.standing().state is not State.CLOSED
        assert [letter.offset for letter in workplace.letters()] == [0, 1, 2, 3]
        fault.broken.clear()
        seen.wait(36)
        wait_until(lambda: len(heard) == 2)
        assert not is_open(worker)
    assert seen.values == list(range(4, 40))
    assert [letter.offset for letter in workplace.letters()] == [0, 1, 2, 3]
    assert set(fault.attempts[4:8]) == {(0, 4)}, "while it was open only the first message was tried"
    reason = "5 of the last 5 messages failed, 5 of them with ValueError"
    assert heard == [("opened", "ops", "ops", reason), ("closed", "ops", "ops")]
    assert caplog.text.count("circuit opened") == 1
    assert caplog.text.count("circuit closed") == 1


def test_a_message_that_waited_keeps_its_failed_attempts_when_it_becomes_a_letter_after_all(
    workplace: Workplace,
) -> None:
    fault = Fault()
    workplace.consume(Seen(fault), circuit_breaker=QUICK, outage_patience="1s", enable_auto_commit=False)
    workplace.send(range(30))
    with workplace.worker() as worker:
        wait_until(lambda: workplace.committed() == {0: 30})
        standing = worker.circuit.standing()
        assert (standing.state, standing.writing) == (State.OPEN, True)
        fault.broken.clear()
        workplace.send(range(10))
        wait_until(lambda: not is_open(worker), message="it does not close after a window of successes")
    letters = workplace.letters()
    assert [letter.offset for letter in letters] == list(range(30))
    assert letters[3].attempts == 1
    assert letters[4].attempts == fault.attempts.count((0, 4)) >= 2


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([b"\xff"] * 40, {}),
        (list(range(40)), {"retry": {"max_retries": 0, "give_up_on": ["builtins.ValueError"]}}),
        ([{"reject": 1}] * 40, {}),
    ],
    ids=["poison", "give_up_on", "Reject"],
)
def test_what_tells_only_of_its_message_opens_nothing(
    workplace: Workplace, values: list[Any], options: dict[str, Any]
) -> None:
    def fail(message: Message) -> None:
        if message.value == {"reject": 1}:
            raise Reject("nobody wants it")
        raise ValueError

    workplace.consume(fail, circuit_breaker=QUICK, enable_auto_commit=False, **options)
    workplace.send(values)
    with workplace.worker() as worker:
        wait_until(lambda: workplace.committed() == {0: 40})
        assert not is_open(worker)
        assert worker.circuit.standing().episode == 0
    assert len(workplace.letters()) == 40


def test_it_can_be_switched_off(workplace: Workplace) -> None:
    workplace.consume(Seen(Fault()), circuit_breaker={**QUICK, "enabled": False}, enable_auto_commit=False)
    workplace.send(range(100))
    with workplace.worker() as worker:
        wait_until(lambda: workplace.committed() == {0: 100})
        assert worker.circuit.standing().episode == 0
    assert len(workplace.letters()) == 100


def test_a_message_counts_once_however_often_it_is_retried(workplace: Workplace) -> None:
    failures: dict[int, int] = {}

    def fail_twice(message: Message) -> None:
        failures[message.offset] = failures.get(message.offset, 0) + 1
        if failures[message.offset] <= 2:
            raise ValueError("two times")

    seen = Seen(fail_twice)
    workplace.consume(seen, circuit_breaker=QUICK, retry={"max_retries": 3, "backoff": "10ms", "max_backoff": "10ms"})
    workplace.send(range(20))
    with workplace.worker() as worker:
        seen.wait(20)
        assert worker.circuit.standing().episode == 0
    assert not workplace.letters()


def test_a_probe_that_will_be_retried_has_failed(workplace: Workplace) -> None:
    errors: list[type[Exception]] = [ValueError]
    attempts: list[int] = []

    def handle(message: Message) -> None:
        attempts.append(message.offset)
        for error in errors:
            raise error

    seen = Seen(handle)
    retry = {"max_retries": 1000, "backoff": "10ms", "max_backoff": "10ms", "retry_on": ["builtins.KeyError"]}
    workplace.consume(seen, circuit_breaker={**QUICK, "cooldown": "300ms"}, retry=retry)
    workplace.send(range(20))
    with workplace.worker() as worker:
        wait_until(lambda: is_open(worker))
        errors[0] = KeyError
        retries, count, began = worker.tally.retries, len(attempts), time.monotonic()
        wait_until(lambda: len(attempts) >= count + 4)
        assert time.monotonic() - began > 3 * 0.29, "each failed probe is followed by a cooldown"
        assert worker.tally.retries >= retries + 3
        errors.clear()
        seen.wait(16)
    assert len(workplace.letters()) == 4


def test_successes_of_other_partitions_count_while_their_slices_go_on(workplace: Workplace) -> None:
    """One partition is broken, the others are well: a failure ratio is not reached because slices are long."""
    handled = threading.Semaphore(0)
    failing = threading.Semaphore(0)

    def handle(message: Message) -> None:
        if message.partition == 0:
            failing.release()
            assert handled.acquire(timeout=20)
            return
        for _ in range(3):
            assert failing.acquire(timeout=20)
            handled.release()
        raise ValueError("broken in this partition")

    workplace.consume(
        handle, partitions=2, concurrency=2, circuit_breaker=QUICK, enable_auto_commit=False, transaction="none"
    )
    workplace.send(range(90), partition=0)
    workplace.send(range(30), partition=1)
    with workplace.worker() as worker:
        wait_until(lambda: workplace.committed() == {0: 90, 1: 30}, 40)
        assert worker.circuit.standing().episode == 0
    assert len(workplace.letters()) == 30


def test_when_it_opens_other_partitions_stop_after_the_message_that_runs(workplace: Workplace) -> None:
    begun, opened = threading.Event(), threading.Event()
    fault = Fault()

    def handle(message: Message) -> None:
        if message.partition == 1:
            fault(message)
        elif message.value == 5:
            begun.set()
            assert opened.wait(20)

    seen = Seen(handle)
    workplace.consume(
        seen, partitions=2, concurrency=2, circuit_breaker={"window": 10, "cooldown": "1h"}, transaction="none"
    )
    workplace.send(range(50), partition=0)
    with workplace.worker() as worker:
        assert begun.wait(20)
        workplace.send(range(20), partition=1)
        wait_until(lambda: is_open(worker))
        opened.set()
        seen.wait(6)
        time.sleep(0.3)
        assert seen.of(0) == list(range(6))
        fault.broken.clear()
        assert worker.close_circuit(1)
        seen.wait(66)
    assert seen.of(0) == list(range(50))


def test_letters_from_before_it_opened_are_stored_while_it_is_open(workplace: Workplace) -> None:
    seen = Seen(Fault())
    hour = {"outage_patience": "1h", "circuit_breaker": {**QUICK, "cooldown": "1h"}}
    workplace.consume(seen, partitions=5, enable_auto_commit=False, **hour)
    with workplace.worker() as worker:
        with refusing("lynx_kafka_deadletter"):
            for partition in range(5):
                workplace.send([0], partition=partition)
            wait_until(lambda: is_open(worker))
            assert not workplace.letters()
        wait_until(lambda: sum(workplace.committed().values()) == 4)
        assert is_open(worker)
    assert len(workplace.letters()) == 4


def test_a_worker_with_an_open_circuit_keeps_polling_and_stops_at_once_losing_nothing(workplace: Workplace) -> None:
    fault = Fault()
    seen = Seen(fault)
    workplace.consume(seen, circuit_breaker={**QUICK, "cooldown": "1h"}, max_in_flight=50, enable_auto_commit=False)
    workplace.send(range(200))
    with workplace.worker() as worker:
        wait_until(lambda: is_open(worker))
        wait_until(lambda: any(lane.paused for lane in worker.lanes), message="it did not go on polling")
    # It has ended, and did not wait for the cooldown of an hour.
    assert workplace.committed() == {0: 4}
    assert len(workplace.letters()) == 4
    fault.broken.clear()
    with workplace.worker():
        seen.wait(196)
    assert seen.values == list(range(4, 200))


def test_outages_open_nothing_however_many_partitions_meet_one(workplace: Workplace) -> None:
    down = threading.Event()
    down.set()

    def handle(_message: Message) -> None:
        if down.is_set():
            raise ConnectionRefusedError("the other side is down")

    seen = Seen(handle)
    workplace.consume(seen, partitions=6, circuit_breaker=QUICK)
    for partition in range(6):
        workplace.send([0], partition=partition)
    with workplace.worker() as worker:
        waits = worker.tally.waits
        wait_until(lambda: worker.tally.waits >= waits + 12)
        assert worker.circuit.standing().episode == 0
        down.clear()
        seen.wait(6)


def test_a_probe_that_meets_an_outage_is_made_again(workplace: Workplace) -> None:
    fault = Fault()
    down = threading.Event()

    def handle(message: Message) -> None:
        if down.is_set():
            raise ConnectionRefusedError("the other side is down")
        fault(message)

    seen = Seen(handle)
    workplace.consume(seen, circuit_breaker=QUICK)
    workplace.send(range(20))
    with workplace.worker() as worker:
        wait_until(lambda: is_open(worker))
        down.set()
        fault.broken.clear()
        waits = worker.tally.waits
        wait_until(lambda: worker.tally.waits >= waits + 2)
        assert is_open(worker)
        down.clear()
        seen.wait(16)
        wait_until(lambda: not is_open(worker))
    assert len(workplace.letters()) == 4


def test_an_operator_closes_it_and_a_wish_about_an_earlier_opening_does_nothing(workplace: Workplace) -> None:
    fault = Fault()
    seen = Seen(fault)
    workplace.consume(
        seen,
        circuit_breaker={**QUICK, "cooldown": "1h"},
        kafka={"heartbeats": {"interval": "100ms"}},
    )
    workplace.send(range(20))
    with told() as heard, workplace.worker() as worker:
        beat = Heartbeat([(conf.consumer("ops"), workplace.group)], [worker])
        worker.circuit.wake = beat.wake
        beat.start()
        try:
            wait_until(lambda: WorkerRow.objects.filter(circuit="open").exists())
            row = WorkerRow.objects.get()
            assert (row.circuit_episode, row.circuit_writing) == (1, False)
            wait_until(lambda: WorkerRow.objects.get().dead_lettered == 4)
            assert row.circuit_reason.startswith("5 of the last 5 messages failed")
            assert row.circuit_opened_at is not None
            WorkerRow.objects.update(circuit_close_asked=0)
            last = WorkerRow.objects.get().seen_at
            wait_until(lambda: WorkerRow.objects.get().seen_at > last)
            assert is_open(worker)
            fault.broken.clear()
            # Only a worker is asked that was heard of within three beats.
            wait_until(lambda: heartbeats.ask_to_close(WorkerRow.objects.all()) == 1)
            seen.wait(16)
            wait_until(lambda: WorkerRow.objects.filter(circuit="closed", circuit_opened_at=None).exists())
            wait_until(lambda: len(heard) == 2)
            assert heartbeats.ask_to_close(WorkerRow.objects.all()) == 0
        finally:
            beat.end()
    assert [event[0] for event in heard] == ["opened", "closed"]
    assert len(workplace.letters()) == 4


def test_paused_partitions_cost_no_computing_time(workplace: Workplace) -> None:
    fault = Fault()
    workplace.consume(Seen(fault), partitions=50, circuit_breaker={**QUICK, "cooldown": "1h"})
    for partition in range(50):
        workplace.send([0], partition=partition)
    with workplace.worker() as worker:
        wait_until(lambda: is_open(worker))
        wait_until(lambda: worker.lanes.in_flight >= 45)
        threads = [thread for thread in worker._threads if thread.native_id is not None]
        before = [time.pthread_getcpuclockid(thread.ident or 0) for thread in threads]
        used = [time.clock_gettime(clock) for clock in before]
        time.sleep(2)
        spent = sum(time.clock_gettime(clock) for clock in before) - sum(used)
        assert spent < 0.02, f"{spent:.3f} s of 2 s"
