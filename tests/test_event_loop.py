"""Handlers that are `async def`, at work in a worker on the embedded cluster."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import OperationalError, connections

from django_kafka import services, signals
from django_kafka.clients.embedded import Cluster
from django_kafka.consuming import watchdog
from django_kafka.consuming.breaker import State
from django_kafka.consuming.crew import Crew
from django_kafka.consuming.watchdog import Watchdog
from django_kafka.exceptions import Reject, Retry, Skip
from django_kafka.messages import Message
from django_kafka.models import DeadLetter, Tenure
from tests.app.models import Effect
from tests.consuming import NAME, Awaited, Workplace
from tests.refusing import refusing
from tests.servers.processes import wait_until

ASYNC: dict[str, Any] = {"transaction": "none"}


class Watched:
    """A handler by key that proves the order of each and counts how many run at once."""

    __module__ = "tests.test_event_loop"

    def __init__(self, then: Callable[[Message], Any]) -> None:
        self.__qualname__ = "Watched"
        self.then = then
        self.running: set[Any] = set()
        self.at_once = 0
        self.overlaps: list[Any] = []
        self.values_of: dict[Any, list[Any]] = defaultdict(list)
        self.handled = 0

    async def __call__(self, message: Message) -> None:
        key = message.partition, message.raw_key
        if key in self.running:
            self.overlaps.append(key)
        self.running.add(key)
        self.at_once = max(self.at_once, len(self.running))
        try:
            await self.then(message)
            self.values_of[key].append(message.value)
            self.handled += 1
        finally:
            self.running.discard(key)

    def wait(self, count: int, seconds: float = 30) -> None:
        wait_until(lambda: self.handled >= count, seconds, f"fewer than {count} messages were handled")


async def nap(_message: Message) -> None:
    await asyncio.sleep(0.001)


def by_key(workplace: Workplace, count: int, keys: int) -> dict[Any, list[int]]:
    workplace.send(range(count), key_of=lambda number: b"k%d" % (number % keys))
    return {(0, b"k%d" % number): list(range(number, count, keys)) for number in range(keys)}


def until_it_is_set(event: threading.Event) -> Callable[[Message], Any]:
    async def wait(_message: Message) -> None:
        while not event.is_set():
            await asyncio.sleep(0.005)

    return wait


class Gate:
    """Where handlers on an event loop wait, each in one place; open from the end of its block, whatever happened."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.waits = False

    async def passed(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(setattr, self, "waits", True)
        await self._opened.wait()

    def __enter__(self) -> None: ...

    def __exit__(self, *_error: object) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._opened.set)


def but_the_first(wait: Callable[[Message], Any]) -> Callable[[Message], Any]:
    """A partition deals its messages when its first one is done."""

    async def handle(message: Message) -> None:
        if message.raw_key != b"first":
            await wait(message)

    return handle


# How many, and in which order


def test_hundreds_of_messages_run_at_once_in_one_thread(workplace: Workplace) -> None:
    go_on = threading.Event()
    watched = Watched(but_the_first(until_it_is_set(go_on)))
    workplace.consume(watched, ordering="key", concurrency=300, **ASYNC)
    workplace.send([99], key=b"first")
    by_key(workplace, 400, 400)
    before = threading.active_count()
    with workplace.worker():
        wait_until(lambda: len(watched.running) == 300)
        assert threading.active_count() - before < 20
        go_on.set()
        watched.wait(401)
    assert watched.at_once <= 300
    assert watched.overlaps == []
    assert workplace.committed() == {0: 401}


@pytest.mark.parametrize(("ordering", "at_once"), [("partition", 3), ("key", 5), ("unordered", 5)])
def test_what_runs_at_once_is_what_ordering_allows(workplace: Workplace, ordering: str, at_once: int) -> None:
    running = most = 0

    async def count(message: Message) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        # The first of a partition that deals its messages runs alone.
        while most < at_once and message.offset:
            await asyncio.sleep(0.001)
        running -= 1

    seen = Awaited(count)
    workplace.consume(seen, partitions=3, ordering=ordering, concurrency=5, **ASYNC)
    for partition in range(3):
        workplace.send(range(50), partition=partition, key_of=lambda number: b"%d" % (number % 10))
    with workplace.worker():
        seen.wait(150)
    assert most == at_once
    assert len(seen.threads) == 1
    if ordering == "partition":
        assert [seen.of(partition) for partition in range(3)] == [list(range(50))] * 3
    assert workplace.committed() == dict.fromkeys(range(3), 50)


def test_the_order_of_each_key_holds_through_retries_and_rebalances(workplace: Workplace) -> None:
    chance = random.Random(7)

    async def fail_often(_message: Message) -> None:
        await asyncio.sleep(chance.random() / 500)
        if chance.random() < 0.2:
            raise ValueError("not now")

    watched = Watched(fail_often)
    workplace.consume(
        watched, partitions=4, ordering="key", concurrency=20,
        retry={"max_retries": 1000, "backoff": "5ms", "multiplier": 1.0}, enable_auto_commit=False, **ASYNC,
    )  # fmt: skip
    for partition in range(4):
        workplace.send(range(200), partition=partition, key_of=lambda number: b"k%d" % (number % 5))
    sent = {(partition, b"k%d" % key): list(range(key, 200, 5)) for partition in range(4) for key in range(5)}
    with workplace.worker():
        watched.wait(50)
        with workplace.worker():
            watched.wait(300)
        wait_until(lambda: workplace.committed() == dict.fromkeys(range(4), 200), 60)
    firsts = {key: list(dict.fromkeys(values)) for key, values in watched.values_of.items()}
    assert firsts == sent
    assert watched.overlaps == []
    assert not workplace.letters()


def test_a_handler_that_awaits_nothing_leaves_turns_to_others(workplace: Workplace) -> None:
    seen = Awaited()
    workplace.consume(seen, partitions=2, concurrency=2, **ASYNC)
    workplace.send(range(400), partition=0)
    workplace.send(range(400), partition=1)
    with workplace.worker():
        seen.wait(800)
    assert seen.of(0) == seen.of(1) == list(range(400))
    assert workplace.committed() == {0: 400, 1: 400}


def test_a_message_that_takes_long_holds_up_only_its_key(workplace: Workplace) -> None:
    go_on = threading.Event()
    wait = until_it_is_set(go_on)

    async def hold(message: Message) -> None:
        if message.raw_key == b"k3":
            await wait(message)

    watched = Watched(hold)
    # With one lane for all keys, so that they are set apart.
    workplace.consume(watched, ordering="key", concurrency=2, **ASYNC)
    workplace.send([99], key=b"first")
    sent = by_key(workplace, 400, 100)
    with workplace.worker():
        watched.wait(397)
        go_on.set()
        watched.wait(401)
    assert {key: values for key, values in watched.values_of.items() if key != (0, b"first")} == sent
    assert workplace.committed() == {0: 401}


def test_messages_above_the_watermark_are_bounded(workplace: Workplace) -> None:
    go_on = threading.Event()
    wait = until_it_is_set(go_on)

    async def hold(message: Message) -> None:
        if message.raw_key == b"k0":
            await wait(message)

    watched = Watched(hold)
    workplace.consume(watched, ordering="key", concurrency=8, max_in_flight=40, **ASYNC)
    workplace.send([99], key=b"first")
    by_key(workplace, 400, 4)
    with workplace.worker() as worker:
        wait_until(lambda: worker.lanes.in_flight >= 20)
        assert worker.lanes.in_flight <= 60
        go_on.set()
        watched.wait(401)
    assert workplace.committed() == {0: 401}


# Failures


def test_what_fails_is_tried_again_and_becomes_a_letter(workplace: Workplace) -> None:
    attempts: list[tuple[int, int]] = []

    async def fail_on_one(message: Message) -> None:
        await asyncio.sleep(0)
        attempts.append((message.value, message.attempt))
        if message.value == 1:
            raise ValueError(f"attempt {message.attempt}")

    seen = Awaited(fail_on_one)
    workplace.consume(seen, retry={"max_retries": 2, "backoff": "10ms"}, **ASYNC)
    workplace.send([0, 1, 2])
    with workplace.worker():
        seen.wait(2)
    assert attempts == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1)]
    (letter,) = workplace.letters()
    assert (letter.offset, letter.attempts, letter.error_message, letter.category) == (1, 3, "attempt 3", "handler")
    assert letter.handler.startswith("tests.consuming.Seen")
    assert "fail_on_one" in letter.traceback
    assert workplace.committed() == {0: 3}


@pytest.mark.parametrize(
    ("ruling", "letters", "handled"), [(Skip("not ours"), [], 2), (Reject("no"), ["no"], 2), (Retry(0.01), [], 3)]
)
def test_a_handler_may_say_what_becomes_of_its_message(
    workplace: Workplace, ruling: Exception, letters: list[str], handled: int
) -> None:
    async def rule(message: Message) -> None:
        if message.value == 1 and message.attempt == 1:
            raise ruling

    seen = Awaited(rule)
    workplace.consume(seen, retry={"max_retries": 1}, **ASYNC)
    workplace.send([0, 1, 2])
    with workplace.worker():
        seen.wait(handled)
    assert [letter.error_message for letter in workplace.letters()] == letters
    assert seen.values == [0, 1, 2][-handled:] if handled == 3 else seen.values == [0, 2]
    assert workplace.committed() == {0: 3}


def test_an_outage_is_waited_for_while_other_partitions_go_on(workplace: Workplace) -> None:
    down = threading.Event()
    down.set()

    async def meet(message: Message) -> None:
        if message.partition == 0 and down.is_set():
            raise OperationalError("connection to server was lost")

    seen = Awaited(meet)
    workplace.consume(seen, partitions=2, **ASYNC)
    workplace.send([0, 1], partition=0)
    with workplace.worker() as worker:
        waits = worker.tally.waits
        wait_until(lambda: worker.tally.waits >= waits + 2)
        workplace.send(range(3), partition=1)
        wait_until(lambda: seen.of(1) == [0, 1, 2])
        assert seen.of(0) == []
        down.clear()
        seen.wait(5)
    assert seen.of(0) == [0, 1]
    assert not workplace.letters()


def test_a_letter_that_is_refused_holds_its_lane_and_nothing_else(workplace: Workplace) -> None:
    async def fail(message: Message) -> None:
        if (message.partition, message.value) == (0, 1):
            raise ValueError("one")

    seen = Awaited(fail)
    workplace.consume(seen, partitions=2, enable_auto_commit=False, **ASYNC)
    with workplace.worker() as worker:
        with refusing("lynx_kafka_deadletter"):
            workplace.send([0, 1, 2], partition=0)
            wait_until(lambda: worker.tally.waits >= 2)
            workplace.send(range(5), partition=1)
            wait_until(lambda: len(seen.of(1)) == 5)
            assert seen.of(0) == [0]
            assert workplace.committed()[0] == 1
        seen.wait(7)
    (letter,) = workplace.letters()
    assert (letter.offset, letter.attempts) == (1, 1)
    assert workplace.committed() == {0: 3, 1: 5}


def test_letters_of_failures_in_a_row_are_stored_and_the_watermark_follows(workplace: Workplace) -> None:
    async def fail(message: Message) -> None:
        if 10 <= message.value < 90:
            raise ValueError("all of them")

    seen = Awaited(fail)
    workplace.consume(seen, circuit_breaker={"enabled": False}, **ASYNC)
    workplace.send(range(100))
    with workplace.worker():
        seen.wait(20)
    assert [letter.offset for letter in workplace.letters()] == list(range(10, 90))
    assert workplace.committed() == {0: 100}


def test_a_handler_that_is_cancelled_by_itself_has_failed_and_the_next_message_is_untouched(
    workplace: Workplace,
) -> None:
    async def cancel(message: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        match message.value:
            case 1:
                raise asyncio.CancelledError
            case 2:
                task.cancel()
                await asyncio.sleep(10)
            case 3:
                task.cancel()
            case _:
                await asyncio.sleep(0.001)

    seen = Awaited(cancel)
    workplace.consume(seen, **ASYNC)
    workplace.send(range(6))
    with workplace.worker():
        wait_until(lambda: 5 in seen.values)
    assert seen.values == [0, 3, 4, 5]
    assert [letter.offset for letter in workplace.letters()] == [1, 2, 3]
    assert {letter.error_type for letter in workplace.letters()} == {"django_kafka.exceptions.HandlerCancelled"}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("wait", [0, 0.001])
def test_what_is_about_the_process_stops_the_worker_and_the_message_is_read_again(
    workplace: Workplace, error: BaseException, wait: float
) -> None:
    stops = threading.Event()

    async def stop(message: Message) -> None:
        if wait:
            await asyncio.sleep(wait)
        if message.value == 3 and not stops.is_set():
            stops.set()
            raise error

    seen = Awaited(stop)
    workplace.consume(seen, **ASYNC)
    workplace.send(range(6))
    worker = workplace.start()
    workplace.ended(worker)
    assert worker.error is error
    assert workplace.committed() == {0: 3}
    assert not workplace.letters()
    with workplace.worker():
        seen.wait(6)
    assert seen.values == [0, 1, 2, 3, 4, 5]


def test_a_surge_opens_the_circuit_which_probes_and_closes(workplace: Workplace) -> None:
    broken, attempts = threading.Event(), []
    broken.set()

    async def fail(message: Message) -> None:
        attempts.append(message.offset)
        if broken.is_set():
            raise ValueError("broken for everybody")

    seen = Awaited(fail)
    workplace.consume(seen, circuit_breaker={"window": 10, "cooldown": "200ms"}, concurrency=8, **ASYNC)
    workplace.send(range(40))
    with workplace.worker() as worker:
        wait_until(lambda: len(attempts) >= 8, message="it did not probe")
        assert worker.circuit.standing().state is not State.CLOSED
        broken.clear()
        seen.wait(36)
        wait_until(lambda: worker.circuit.standing().state is State.CLOSED)
    assert seen.values == list(range(4, 40))
    assert [letter.offset for letter in workplace.letters()] == [0, 1, 2, 3]
    assert set(attempts[4:8]) == {4}


# What handlers produce


@pytest.fixture
def far() -> Iterator[Cluster]:
    with Cluster(partitions=1) as cluster:
        cluster.create_topic("landed")
        yield cluster


def far_away(cluster: Cluster, **producer: Any) -> dict[str, Any]:
    return {
        "clusters": {"far": {"brokers": cluster.bootstrap_servers.split(","), "connection": {"timeout": "1s"}}},
        "producers": {"default": {"cluster": "far", **producer}},
    }


async def _produce(message: Message) -> None:
    services.produce("landed", None, message.value)


async def _produce_bytes(message: Message) -> None:
    services.produce("landed", b"key", b"%d" % message.value)


async def _aproduce(message: Message) -> None:
    await services.aproduce("landed", None, message.value)


async def _in_a_thread(message: Message) -> None:
    await sync_to_async(services.produce)("landed", None, message.value)


async def _in_any_thread(message: Message) -> None:
    await asyncio.to_thread(services.produce_batch, "landed", [{"key": None, "value": message.value}])


async def _in_a_task(message: Message) -> None:
    await asyncio.gather(*(services.aproduce("landed", None, message.value) for _ in range(3)))


@pytest.mark.parametrize("send", [_produce, _produce_bytes, _aproduce, _in_a_thread, _in_any_thread, _in_a_task])
def test_a_message_is_settled_when_the_records_of_its_handler_are_acknowledged(
    workplace: Workplace, far: Cluster, send: Callable[[Message], Any]
) -> None:
    seen = Awaited(send)
    workplace.consume(seen, kafka=far_away(far), enable_auto_commit=False, **ASYNC)
    far.broker_down(1)
    workplace.send([0, 1])
    with workplace.worker() as worker:
        seen.wait(1)
        (partition,) = list(worker.lanes)
        began = partition.taken
        # It is taken once more: the first wait for records is over.
        wait_until(lambda: partition.taken[1] > began[1])
        assert workplace.committed() == {0: 0}
        far.broker_up(1)
        wait_until(lambda: workplace.committed() == {0: 2})
    assert not workplace.letters()
    assert seen.values == [0, 1]


def test_what_a_handler_sent_before_it_skipped_its_message_is_waited_for_too(
    workplace: Workplace, far: Cluster
) -> None:
    skipped = threading.Event()

    async def send_and_skip(message: Message) -> None:
        await services.aproduce("landed", None, message.value)
        skipped.set()
        raise Skip("it is out already")

    workplace.consume(Awaited(send_and_skip), kafka=far_away(far), enable_auto_commit=False, **ASYNC)
    far.broker_down(1)
    workplace.send([0])
    with workplace.worker() as worker:
        assert skipped.wait(20)
        (partition,) = list(worker.lanes)
        wait_until(lambda: partition.slices and partition.slices[0].done == 1)
        assert partition.slices[0].settled == 0
        assert workplace.committed() == {0: 0}
        far.broker_up(1)
        wait_until(lambda: workplace.committed() == {0: 1})
    assert not workplace.letters()


def test_records_that_cannot_be_delivered_for_a_while_are_sent_again_and_their_handler_is_not(
    workplace: Workplace, far: Cluster
) -> None:
    seen = Awaited(_aproduce)
    workplace.consume(
        seen, kafka=far_away(far, delivery_timeout="500ms", send="immediate"), enable_auto_commit=False, **ASYNC
    )
    far.broker_down(1)
    workplace.send([0])
    with workplace.worker() as worker:
        wait_until(lambda: any(lane.paused for lane in worker.lanes), 40, "the lane was not paused")
        far.broker_up(1)
        wait_until(lambda: workplace.committed() == {0: 1}, 40)
        workplace.send([1])
        seen.wait(2)
        wait_until(lambda: workplace.committed() == {0: 2}, 40)
    assert seen.values == [0, 1]
    assert not workplace.letters()


def test_what_a_handler_leaves_running_is_not_waited_for_and_nothing_of_it_is_kept(
    workplace: Workplace, far: Cluster
) -> None:
    from django_kafka.gathering import gathered_by_context

    gathered: list[Any] = []
    go_on, tasks = threading.Event(), []

    async def later(message: Message) -> None:
        while not go_on.is_set():
            await asyncio.sleep(0.005)
        gathered.append(gathered_by_context.get())
        await services.aproduce("landed", None, message.value)
        gathered.append(len(gathered[0].sent))

    async def leave(message: Message) -> None:
        tasks.append(asyncio.create_task(later(message)))

    seen = Awaited(leave)
    workplace.consume(seen, kafka=far_away(far), enable_auto_commit=False, **ASYNC)
    workplace.send([0])
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 1})
        go_on.set()
        wait_until(lambda: len(gathered) == 2)
    assert gathered[1] == 0


# Contexts, threads and connections


def test_each_message_has_a_context_of_its_own(workplace: Workplace) -> None:
    seen_before: list[int] = []
    number: ContextVar[int] = ContextVar("number", default=0)

    async def count(message: Message) -> None:
        seen_before.append(number.get())
        number.set(message.value)
        await asyncio.sleep(0.001)
        assert number.get() == message.value

    seen = Awaited(count)
    workplace.consume(seen, partitions=2, concurrency=2, **ASYNC)
    for partition in range(2):
        workplace.send(range(1, 6), partition=partition)
    with workplace.worker():
        seen.wait(10)
    assert seen_before == [0] * 10
    assert not workplace.letters()


def test_the_orm_runs_in_a_few_threads_whose_connections_are_closed_in_the_end(workplace: Workplace) -> None:
    used: dict[int, Any] = {}
    of_message: dict[int, set[int]] = defaultdict(set)

    def look(value: int) -> None:
        of_message[value].add(threading.get_ident())
        used[threading.get_ident()] = connections["default"]

    async def store(message: Message) -> None:
        await Effect.objects.acreate(topic=message.topic, partition=0, offset=message.offset, payload=None)
        for _ in range(3):
            await sync_to_async(look)(message.value)
            await asyncio.sleep(0.001)

    seen = Awaited(store)
    workplace.consume(seen, ordering="unordered", concurrency=40, **ASYNC)
    workplace.send(range(200))
    with workplace.worker():
        seen.wait(200, 60)
    assert not workplace.letters()
    assert Effect.objects.count() == 200
    assert {len(threads) for threads in of_message.values()} == {1}, "all that one message calls runs in one thread"
    assert 1 < len(used) <= 8
    assert connections["default"] not in used.values()
    assert all(one.connection is None for one in used.values())


def test_a_connection_that_broke_is_replaced_before_the_next_call(workplace: Workplace) -> None:
    broken: list[int] = []

    def store(message: Message) -> None:
        if message.value == 1 and not broken:
            broken.append(1)
            connections["default"].connection.close()
        Effect.objects.create(topic=message.topic, partition=0, offset=message.offset, payload=None)

    seen = Awaited(lambda message: sync_to_async(store)(message))
    workplace.consume(seen, retry={"max_retries": 1, "backoff": "10ms"}, **ASYNC)
    workplace.send([0, 1, 2])
    with workplace.worker():
        wait_until(lambda: len(seen.places) + len(workplace.letters()) == 3)
    assert 2 in seen.values


def test_connections_of_other_threads_are_closed_too(workplace: Workplace) -> None:
    used: dict[int, Any] = {}

    def look() -> None:
        Effect.objects.count()
        used[threading.get_ident()] = connections["default"]

    seen = Awaited(lambda _message: asyncio.to_thread(look))
    workplace.consume(seen, ordering="unordered", concurrency=4, **ASYNC)
    workplace.send(range(20))
    with workplace.worker():
        seen.wait(20)
    assert used
    assert all(one.connection is None for one in used.values())


def test_a_thread_that_a_handler_calls_may_call_coroutines_which_call_threads(workplace: Workplace) -> None:
    @sync_to_async
    def inner() -> int:
        return Effect.objects.count()

    @sync_to_async
    def outer() -> int:
        return async_to_sync(inner)()

    seen = Awaited(lambda _message: outer())
    workplace.consume(seen, ordering="unordered", concurrency=4, **ASYNC)
    workplace.send(range(20))
    with workplace.worker():
        seen.wait(20)
    assert not workplace.letters()


def test_signals_reach_receivers_of_both_kinds(workplace: Workplace) -> None:
    told: list[tuple[str, int]] = []

    def plain(**event: Any) -> None:
        told.append(("plain", event["message"].offset))

    async def awaited(**event: Any) -> None:
        await asyncio.sleep(0)
        told.append(("awaited", event["message"].offset))

    async def fail(message: Message) -> None:
        if message.value:
            raise ValueError("one")

    names = ("message_handling", "message_handled", "handler_failed", "message_dead_lettered")
    receivers = [(getattr(signals, name), receiver) for name in names for receiver in (plain, awaited)]
    for signal, receiver in receivers:
        signal.connect(receiver)
    try:
        workplace.consume(Awaited(fail), **ASYNC)
        workplace.send([0, 1])
        with workplace.worker():
            wait_until(workplace.letters)
            wait_until(lambda: len(told) == 10)
    finally:
        for signal, receiver in receivers:
            signal.disconnect(receiver)
    assert sorted(told) == sorted([("plain", 0), ("awaited", 0)] * 2 + [("plain", 1), ("awaited", 1)] * 3)


# Time limits


def test_a_handler_is_cancelled_when_its_time_is_over(workplace: Workplace) -> None:
    left: list[float | None] = []

    async def hang(message: Message) -> None:
        left.append(message.time_left)
        if message.value == 1:
            await asyncio.sleep(30)

    seen = Awaited(hang)
    workplace.consume(seen, timeout="150ms", retry={"max_retries": 1, "backoff": "10ms"}, **ASYNC)
    workplace.send([0, 1, 2])
    with workplace.worker():
        seen.wait(2)
    (letter,) = workplace.letters()
    assert (letter.category, letter.attempts) == ("timeout", 2)
    assert letter.error_type == "django_kafka.exceptions.HandlerTimeout"
    assert letter.error_message == "The handler's time of 0.15 s is over; it was cancelled."
    assert all(one is not None and 0 < one <= 0.15 for one in left), "Each attempt has all of it."


def test_a_handler_that_outlives_its_cancellation_and_comes_back_has_succeeded(workplace: Workplace) -> None:
    async def go_on(_message: Message) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)

    seen = Awaited(go_on)
    workplace.consume(seen, timeout="50ms", **ASYNC)
    workplace.send([0])
    with workplace.worker():
        seen.wait(1)
    assert workplace.committed() == {0: 1}
    assert not workplace.letters()


def test_a_timeout_of_the_handlers_own_is_left_as_it_is(workplace: Workplace) -> None:
    async def time_out(_message: Message) -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(10)

    workplace.consume(Awaited(time_out), timeout="20s", **ASYNC)
    workplace.send([0])
    with workplace.worker():
        (letter,) = wait_until(workplace.letters)
    assert (letter.error_type, letter.category) == ("TimeoutError", "timeout")


def test_the_watchdog_shows_what_goes_on_after_its_cancellation(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    async def ignore_it(message: Message) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await gate.passed()

    seen = Awaited(ignore_it)
    workplace.consume(seen, timeout="50ms", **ASYNC)
    workplace.send([0])
    with workplace.worker() as worker:
        dog = Watchdog([worker])
        with gate:
            # Only what waits is wholly shown, so not what was told of while the handler took note of its end.
            wait_until(lambda: dog.look() or "its limit is 0.05 s" in caplog.text)
            wait_until(lambda: gate.waits)
            dog = Watchdog([worker])
            caplog.clear()
            dog.look()
            assert "its limit is 0.05 s" in caplog.text
            assert "await gate.passed()" in caplog.text
            assert "await self._opened.wait()" in caplog.text
            assert "all that it may run at a time (1) is past the limit" in caplog.text
        seen.wait(1)
        wait_until(lambda: dog.look() or "came back after" in caplog.text)
    assert "event loop is blocked" not in caplog.text
    worker.tally.overruns = 0


def test_the_watchdog_shows_what_blocks_the_event_loop(
    workplace: Workplace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "BLOCKED_AFTER", 0.1)
    begun, go_on = threading.Event(), threading.Event()

    async def block(_message: Message) -> None:
        assert begun.set() or go_on.wait(30)

    seen = Awaited(block)
    workplace.consume(seen, **ASYNC)
    workplace.send([0])
    with workplace.worker() as worker:
        assert begun.wait(30)
        dog = Watchdog([worker])
        wait_until(lambda: dog.look() or "its event loop is blocked" in caplog.text)
        assert "go_on.wait(30)" in caplog.text
        dog.look()
        assert caplog.text.count("its event loop is blocked") == 1
        go_on.set()
        wait_until(lambda: dog.look() or "its event loop goes on" in caplog.text)
        seen.wait(1)


def test_a_process_with_an_event_loop_has_a_watchdog(workplace: Workplace) -> None:
    alive: list[str] = []

    async def look(_message: Message) -> None:
        alive.extend(thread.name for thread in threading.enumerate())

    workplace.consume(Awaited(look), **ASYNC)
    workplace.send([1])
    Crew([NAME], until_empty=True).run()
    assert "kafka-watchdog" in alive


# Deaths, retry topics, held keys


def test_a_message_that_kills_its_worker_is_run_alone_and_becomes_a_letter(workplace: Workplace) -> None:
    async def kill(message: Message) -> None:
        await asyncio.sleep(0)
        if message.value == 2:
            raise SystemExit(7)

    seen = Awaited(kill)
    workplace.consume(seen, ordering="key", concurrency=8, kafka={"heartbeats": {"interval": "100ms"}}, **ASYNC)
    workplace.send(range(6), key=b"one")
    for _ in range(3):
        crew = Crew([NAME], until_empty=True)
        crew.run()
        assert isinstance(crew.error, SystemExit)
    crew = Crew([NAME], until_empty=True)
    crew.run()
    assert crew.error is None
    (letter,) = workplace.letters()
    assert (letter.offset, letter.error_type) == (2, "django_kafka.exceptions.WorkerKilled")
    assert set(seen.values) == {0, 1, 3, 4, 5}
    assert Tenure.objects.get().worker == ""
    assert workplace.committed() == {0: 6}


def test_the_message_that_is_marked_runs_with_nothing_beside_it(workplace: Workplace) -> None:
    Tenure.objects.create(
        cluster="default", group_id=workplace.group, topic=workplace.topic, partition=0, worker="dead",
        deaths=1, first=0, last=2,
    )  # fmt: skip
    running: list[int] = []
    beside: list[list[int]] = []

    async def look(message: Message) -> None:
        running.append(message.partition)
        if message.partition == 0 and message.offset < 3:
            beside.append(list(running))
        await asyncio.sleep(0.01)
        running.remove(message.partition)

    seen = Awaited(look)
    workplace.consume(seen, partitions=2, concurrency=4, kafka={"heartbeats": {"interval": "100ms"}}, **ASYNC)
    workplace.send(range(5), partition=0)
    workplace.send(range(50), partition=1)
    Crew([NAME], until_empty=True).run()
    assert beside == [[0]] * 3
    assert seen.of(0) == list(range(5))
    assert seen.of(1) == list(range(50))


def test_a_failed_message_waits_in_its_retry_topic_and_its_lane_goes_on(workplace: Workplace) -> None:
    attempts: list[tuple[Any, int]] = []
    began: list[float] = []

    async def fail(message: Message) -> None:
        attempts.append((message.value, message.attempt))
        if message.value == "for ever":
            began.append(time.monotonic())
        if message.value in ("twice", "for ever") and (message.attempt < 3 or message.value == "for ever"):
            raise ValueError("not yet")

    seen = Awaited(fail)
    retry = {"mode": "topics", "max_retries": 2, "backoff": "1500ms", "multiplier": 1.0}
    workplace.consume(seen, retry=retry, kafka={"producers": {"default": {}}}, **ASYNC)
    for number in (1, 2):
        workplace.cluster.create_topic(f"{workplace.group}.{workplace.topic}.retry.{number}", 1)
    workplace.send(["twice", "for ever", *range(50)])
    with workplace.worker():
        seen.wait(51)
        wait_until(workplace.letters)
    assert seen.values == [*range(50), "twice"]
    assert [attempt for value, attempt in attempts if value == "for ever"] == [1, 2, 3]
    assert all(later - earlier > 1.4 for earlier, later in pairwise(began)), "It waits until it is due."
    (letter,) = workplace.letters()
    assert (letter.topic, letter.offset, letter.attempts) == (workplace.topic, 1, 3)
    assert workplace.committed() == {0: 52}


def test_messages_of_a_held_key_are_parked(workplace: Workplace) -> None:
    async def fail(message: Message) -> None:
        await asyncio.sleep(0.001)
        if message.value == 3:
            raise ValueError("never")

    watched = Watched(fail)
    workplace.consume(watched, ordering="key", concurrency=16, on_dead_letter="hold_key", **ASYNC)
    sent = by_key(workplace, 60, 6)
    with workplace.worker() as worker:
        watched.wait(50)
        wait_until(lambda: worker.tally.parked == 9)
        workplace.send(range(100, 103), key_of=lambda number: b"k%d" % (3 if number == 101 else number))
        watched.wait(52)
        wait_until(lambda: worker.tally.parked == 10)
    assert watched.values_of.pop((0, b"k100")) == [100]
    assert watched.values_of.pop((0, b"k102")) == [102]
    assert dict(watched.values_of) == {key: values for key, values in sent.items() if key != (0, b"k3")}
    assert workplace.committed() == {0: 63}
    states = [letter.state for letter in workplace.letters()]
    assert states[0] == DeadLetter.State.OPEN


def test_what_a_crash_repeats_runs_before_the_letter_that_holds_its_key(workplace: Workplace) -> None:
    async def fail(message: Message) -> None:
        await asyncio.sleep(0.001)
        if message.value == 2:
            raise ValueError("never")

    seen = Awaited(fail)
    workplace.consume(seen, on_dead_letter="hold_key", auto_commit_interval="100ms", **ASYNC)
    workplace.send(range(5), key=b"a")
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 5})
    assert seen.values == [0, 1]
    workplace.set_back(0)
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 5})
    assert seen.values == [0, 1, 0, 1]
    assert [letter.state for letter in workplace.letters()] == ["open", "parked", "parked"]


def test_dead_letters_go_to_their_topic(workplace: Workplace) -> None:
    async def fail(message: Message) -> None:
        if message.value == 1:
            raise ValueError("one")

    seen = Awaited(fail)
    workplace.cluster.create_topic(f"{workplace.topic}.dlt", 1)
    kafka = {"producers": {"default": {}}, "dead_letters": {"topic": "{topic}.dlt"}}
    workplace.consume(seen, kafka=kafka, **ASYNC)
    workplace.send([0, 1, 2])
    with workplace.worker():
        seen.wait(2)
        wait_until(lambda: workplace.committed() == {0: 3})
    assert len(workplace.letters()) == 1


# Stopping and handing over


def test_a_stop_awaits_what_runs_and_begins_nothing_more(workplace: Workplace) -> None:
    go_on = threading.Event()
    watched = Watched(but_the_first(until_it_is_set(go_on)))
    workplace.consume(watched, ordering="key", concurrency=5, **ASYNC)
    workplace.send([99], key=b"first")
    by_key(workplace, 100, 10)
    with workplace.worker() as worker:
        wait_until(lambda: len(watched.running) == 5)
        worker.stop()
        wait_until(lambda: all(one.halted for one in worker.lanes))
        running = len(watched.running)
        handled = watched.handled
        go_on.set()
    assert watched.handled == handled + running
    (reached,) = workplace.committed().values()
    assert reached <= watched.handled
    with workplace.worker():
        wait_until(lambda: sum(len(set(values)) for values in watched.values_of.values()) == 101)
        # Some were handled before behind one that was not, and are read again.
        wait_until(lambda: workplace.committed() == {0: 101})


def test_a_partition_that_leaves_is_drained_while_others_go_on(workplace: Workplace) -> None:
    watched = Watched(nap)
    workplace.consume(watched, partitions=4, concurrency=4, **ASYNC)
    for partition in range(4):
        workplace.send(range(300), partition=partition)
    with workplace.worker():
        watched.wait(100)
        with workplace.worker():
            watched.wait(600)
        # The embedded cluster takes no commits in mid-rebalance, so that some messages may come once more.
        wait_until(lambda: workplace.committed() == dict.fromkeys(range(4), 300))
    assert watched.overlaps == []


def test_what_outlives_its_partition_settles_nothing(workplace: Workplace) -> None:
    go_on, started = threading.Event(), threading.Event()
    wait = until_it_is_set(go_on)

    async def fail_late(message: Message) -> None:
        if message.value == 1 and not started.is_set():
            started.set()
            await wait(message)
            raise ValueError("too late")

    seen = Awaited(fail_late)
    workplace.consume(seen, **ASYNC)
    workplace.send([0, 1, 2])
    with workplace.worker() as worker:
        assert started.wait(20)
        (partition,) = list(worker.lanes)
        worker.lanes.drop(worker.lanes.halt([partition.place]))
        go_on.set()
        wait_until(lambda: partition.busy == 0)
        assert not workplace.letters()
    assert workplace.committed()[0] <= 1


def test_a_worker_can_be_started_and_stopped_many_times_and_leaves_no_thread(workplace: Workplace) -> None:
    seen = Awaited(lambda _message: sync_to_async(Effect.objects.count)())
    workplace.consume(seen, concurrency=4, **ASYNC)
    workplace.send(range(3))
    for _ in range(3):
        with workplace.worker():
            pass
    with workplace.worker():
        seen.wait(3)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(f"kafka-{NAME}")] == []


def test_a_loop_that_cannot_take_lanes_stops_the_worker(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Awaited()
    workplace.consume(seen, **ASYNC)
    workplace.send([0])
    worker = workplace.start()
    seen.wait(1)

    def fail(_timeout: float) -> None:
        raise MemoryError

    monkeypatch.setattr(worker.lanes, "next", fail)
    workplace.send([1])
    workplace.ended(worker)
    assert isinstance(worker.error, MemoryError)
    assert workplace.committed() == {0: 1}


def test_what_is_wrong_with_the_loop_itself_stops_the_worker(workplace: Workplace) -> None:
    async def end_the_loop(_message: Message) -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.01)

    workplace.consume(Awaited(end_the_loop), **ASYNC)
    workplace.send([0])
    worker = workplace.start()
    workplace.ended(worker)
    assert isinstance(worker.error, (RuntimeError, SystemExit))
    assert workplace.committed() == {0: 0}
    assert not workplace.letters()
