from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any

import pytest

from django_kafka.consuming.worker import Worker
from django_kafka.messages import Message
from tests.consuming import Seen, Workplace
from tests.servers.processes import wait_until


class ByKey(Seen):
    """Keeps the values of each key in the order in which they were handled, and how many ran at once."""

    def __init__(self, then: Any = None) -> None:
        super().__init__(then)
        self.values_of: dict[bytes | None, list[Any]] = defaultdict(list)
        self.running: set[bytes | None] = set()
        self.at_once = 0
        self.overlaps: list[bytes | None] = []
        self.lock = threading.Lock()

    def __call__(self, message: Message) -> None:
        key = message.raw_key
        with self.lock:
            if key in self.running:
                self.overlaps.append(key)
            self.running.add(key)
            self.at_once = max(self.at_once, len(self.running))
        try:
            super().__call__(message)
            with self.lock:
                self.values_of[key].append(message.value)
        finally:
            with self.lock:
                self.running.discard(key)


def send(workplace: Workplace, count: int, keys: int) -> dict[bytes | None, list[int]]:
    """Send so many values in turn to so many keys of one partition; return the values of each."""
    for number in range(keys):
        workplace.send(range(number, count, keys), key=b"k%d" % number)
    return {b"k%d" % number: list(range(number, count, keys)) for number in range(keys)}


def test_keys_of_one_partition_run_side_by_side_and_each_in_its_order(workplace: Workplace) -> None:
    together = threading.Barrier(4)
    seen = ByKey(lambda message: message.value < 4 and together.wait(20) and None)
    workplace.consume(seen, ordering="key", concurrency=4)
    workplace.send([99], key=b"first")
    sent = send(workplace, 200, 20)
    with workplace.worker():
        seen.wait(201)
    assert {key: values for key, values in seen.values_of.items() if key != b"first"} == sent
    assert (seen.at_once, seen.overlaps) == (4, [])
    assert workplace.committed() == {0: 201}


def test_a_key_that_is_tried_again_holds_up_no_other(workplace: Workplace) -> None:
    succeed = threading.Event()

    def fail(message: Message) -> None:
        if message.raw_key == b"k3" and not succeed.is_set():
            raise ValueError("not yet")

    seen = ByKey(fail)
    workplace.consume(
        seen, ordering="key", concurrency=2, retry={"max_retries": 1000, "backoff": "20ms", "multiplier": 1.0},
        enable_auto_commit=False,
    )  # fmt: skip
    sent = send(workplace, 100, 10)
    with workplace.worker():
        seen.wait(90)
        wait_until(lambda: sum(map(len, seen.values_of.values())) == 90)
        assert b"k3" not in seen.values_of
        assert workplace.committed()[0] < 100
        succeed.set()
        seen.wait(100)
    assert seen.values_of == sent
    assert workplace.committed() == {0: 100}


def test_messages_above_the_watermark_are_bounded(workplace: Workplace) -> None:
    go_on = threading.Event()
    seen = ByKey(lambda message: message.raw_key == b"k0" and go_on.wait(30) and None)
    workplace.consume(seen, ordering="key", concurrency=4, max_in_flight=40)
    workplace.send([99], key=b"first")
    sent = send(workplace, 400, 4)
    with workplace.worker() as worker:
        wait_until(lambda: worker.lanes.in_flight >= 20)
        assert worker.lanes.in_flight <= 60
        go_on.set()
        seen.wait(401)
    assert {key: values for key, values in seen.values_of.items() if key != b"first"} == sent
    assert workplace.committed() == {0: 401}


@pytest.mark.parametrize("ordering", ["key", "unordered"])
def test_a_stop_leaves_what_is_not_settled_to_the_next_worker(workplace: Workplace, ordering: str) -> None:
    started, go_on = threading.Semaphore(0), threading.Event()

    def hold(message: Message) -> None:
        if message.value % 10 == 5 and not go_on.is_set():
            started.release()
            go_on.wait(20)

    seen = ByKey(hold)
    workplace.consume(seen, ordering=ordering, concurrency=3)
    sent = send(workplace, 100, 10)
    with workplace.worker() as worker:
        assert started.acquire(timeout=20)
        worker.stop()
        wait_until(lambda: all(one.halted for one in worker.lanes))
        go_on.set()
    (reached,) = workplace.committed().values()
    handled = {value for values in seen.values_of.values() for value in values}
    order = [value for number in range(10) for value in sent[b"k%d" % number]]
    assert handled >= set(order[:reached]), "what is committed was handled"
    with workplace.worker():
        wait_until(lambda: {value for values in seen.values_of.values() for value in values} == set(range(100)))
        wait_until(lambda: workplace.committed() == {0: 100})


def test_unordered_messages_of_one_key_run_side_by_side(workplace: Workplace) -> None:
    together = threading.Barrier(4)
    seen = Seen(lambda message: 0 < message.value <= 4 and together.wait(20) and None)
    workplace.consume(seen, ordering="unordered", concurrency=4)
    workplace.send(range(100), key=b"one")
    with workplace.worker():
        seen.wait(100)
    assert sorted(seen.values) == list(range(100))
    assert workplace.committed() == {0: 100}


def test_a_dead_letter_of_one_key_lets_the_watermark_pass(workplace: Workplace) -> None:
    def fail(message: Message) -> None:
        if message.value == 7:
            raise ValueError("never")

    seen = ByKey(fail)
    workplace.consume(seen, ordering="key", concurrency=4)
    send(workplace, 50, 10)
    with workplace.worker():
        seen.wait(49)
        wait_until(lambda: len(workplace.letters()) == 1)
    assert [letter.key for letter in workplace.letters()] == [b"k7"]
    assert workplace.committed() == {0: 50}


def test_a_held_key_is_not_overtaken_by_other_threads(workplace: Workplace) -> None:
    def fail(message: Message) -> None:
        if message.value == 3:
            raise ValueError("never")

    seen = ByKey(fail)
    workplace.consume(seen, ordering="key", concurrency=4, on_dead_letter="hold_key")
    sent = send(workplace, 60, 6)
    with workplace.worker():
        seen.wait(50)
        wait_until(lambda: sum(letter.state == "parked" for letter in workplace.letters()) == 9)
    assert dict(seen.values_of) == {k: v for k, v in sent.items() if k != b"k3"}
    assert workplace.committed() == {0: 60}


def test_a_message_that_stops_its_worker_is_read_again(workplace: Workplace) -> None:
    stops = threading.Event()

    def stop(message: Message) -> None:
        if message.value == 30 and not stops.is_set():
            stops.set()
            raise SystemExit(3)

    seen = ByKey(stop)
    workplace.consume(seen, ordering="key", concurrency=3)
    send(workplace, 60, 6)
    worker: Worker = workplace.start()
    workplace.ended(worker)
    assert isinstance(worker.error, SystemExit)
    (reached,) = workplace.committed().values()
    assert reached <= 5, "it is the sixth of the first key"
    with workplace.worker():
        wait_until(lambda: {value for values in seen.values_of.values() for value in values} == set(range(60)))
        # Behind the one that stopped it, some of other keys were handled before, and are read again.
        wait_until(lambda: workplace.committed() == {0: 60})


def test_a_partition_that_comes_back_to_a_worker_goes_on_in_order(workplace: Workplace) -> None:
    slow = threading.Event()
    seen = ByKey(lambda _message: None if slow.is_set() else time.sleep(0.002))
    workplace.consume(seen, partitions=4, ordering="key", concurrency=4)
    for partition in range(4):
        workplace.send(range(300), partition=partition, key=b"p%d" % partition)
    with workplace.worker():
        seen.wait(50)
        with workplace.worker():
            seen.wait(300)
        slow.set()
        seen.wait(1200)
        wait_until(lambda: all(len(set(values)) == 300 for values in seen.values_of.values()))
        # The embedded cluster takes no commits in mid-rebalance, so that some messages may come once more.
        wait_until(lambda: workplace.committed() == dict.fromkeys(range(4), 300))
    assert seen.overlaps == []
