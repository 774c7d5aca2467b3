from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connection, connections, transaction

from django_kafka import handlers, registry, services, signals
from django_kafka.clients.embedded import Cluster, Request
from django_kafka.messages import Message
from django_kafka.models import DeadLetter
from tests.app.models import Effect
from tests.consuming import NAME, Seen, Workplace
from tests.refusing import refusing
from tests.servers.processes import wait_until


def leave_effect(message: Message) -> None:
    Effect.objects.create(
        topic=message.topic, partition=message.partition, offset=message.offset, payload=message.value
    )


def effects() -> list[int]:
    return list(Effect.objects.order_by("id").values_list("offset", flat=True))


def test_an_outage_waits_in_its_lane_and_is_no_letter(workplace: Workplace) -> None:
    down = threading.Event()
    down.set()

    def handle(message: Message) -> None:
        leave_effect(message)
        if message.partition == 0 and message.value == 1 and down.is_set():
            raise OperationalError("connection to server was lost")

    seen = Seen(handle)
    workplace.consume(seen, partitions=2)
    workplace.send([0, 1, 2], partition=0)
    with workplace.worker() as worker:
        waits = worker.tally.waits
        wait_until(lambda: worker.tally.waits >= waits + 2)
        workplace.send(range(3), partition=1)
        wait_until(lambda: len(seen.of(1)) == 3, message="the other partition did not go on")
        assert seen.of(0) == [0]
        down.clear()
        seen.wait(6)
    assert seen.of(0) == [0, 1, 2]
    assert not workplace.letters()
    assert len(effects()) == 6, "effects of attempts that met the outage were rolled back"


def test_a_connection_that_was_closed_behind_its_back_is_opened_anew(workplace: Workplace) -> None:
    closed: list[int] = []

    def handle(message: Message) -> None:
        if message.value == 1 and not closed:
            closed.append(1)
            connection.connection.close()
        leave_effect(message)

    seen = Seen(handle)
    workplace.consume(seen, transaction="none")
    workplace.send([0, 1, 2])
    with workplace.worker():
        seen.wait(2)
        wait_until(lambda: workplace.letters() or len(seen.places) == 3)
    # What the closed connection of SQLite says is no outage to `retries`; the thread itself must go on in any case.
    assert 2 in seen.values
    assert 2 in effects()


def test_contention_is_tried_again_at_once_and_is_no_letter(workplace: Workplace) -> None:
    import sqlite3

    failures = [1, 1]

    def handle(_message: Message) -> None:
        if failures:
            failures.pop()
            cause = sqlite3.OperationalError("database is locked")
            cause.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise OperationalError("database is locked") from cause

    seen = Seen(handle)
    workplace.consume(seen)
    workplace.send([0, 1])
    with workplace.worker() as worker:
        seen.wait(2)
    assert (worker.tally.contentions, worker.tally.waits) == (2, 0)
    assert seen.values == [0, 1]
    assert not workplace.letters()


@pytest.mark.sqlite
def test_a_writer_that_really_holds_the_database_is_contention(workplace: Workplace, tmp_path: Any) -> None:
    seen = Seen(leave_effect)
    workplace.consume(seen)
    connection.ensure_connection()
    connection.connection.execute("PRAGMA busy_timeout=0")
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Effect.objects.create(topic="held", partition=0, offset=0, payload=None)
            held.set()
            let_go.wait(20)
        connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(20)
    workplace.send([0])
    with workplace.worker() as worker:
        before = worker.tally.contentions
        wait_until(lambda: worker.tally.contentions > before)
        let_go.set()
        holder.join(20)
        seen.wait(1)
    assert not workplace.letters()


def test_a_letter_that_is_refused_holds_its_lane_until_it_is_stored(workplace: Workplace) -> None:
    def fail_on_one(message: Message) -> None:
        if message.value == 1:
            raise ValueError("one")

    seen = Seen(fail_on_one)
    workplace.consume(seen, enable_auto_commit=False)
    with workplace.worker() as worker:
        with refusing("lynx_kafka_deadletter"):
            workplace.send([0, 1, 2])
            wait_until(lambda: worker.tally.waits >= 2)
            assert seen.values == [0]
            assert wait_until(lambda: workplace.committed()[0] == 1), "nothing past the unstored letter is committed"
        seen.wait(2)
    (letter,) = workplace.letters()
    assert (letter.offset, letter.attempts, letter.error_message) == (1, 1, "one")
    assert workplace.committed() == {0: 3}


def test_a_worker_that_stops_while_a_letter_is_refused_reads_its_message_again(workplace: Workplace) -> None:
    fails = [True]

    def fail(message: Message) -> None:
        if message.value == 1 and fails[0]:
            raise ValueError

    seen = Seen(fail)
    workplace.consume(seen)
    workplace.send([0, 1, 2])
    with refusing("lynx_kafka_deadletter"), workplace.worker() as worker:
        before = worker.tally.waits
        wait_until(lambda: worker.tally.waits > before)
    assert workplace.committed() == {0: 1}
    fails[0] = False
    with workplace.worker():
        seen.wait(3)
    assert seen.values == [0, 1, 2]
    assert not workplace.letters()


def test_letters_are_committed_also_when_their_handler_left_autocommit_off(workplace: Workplace) -> None:
    def fail_halfway(_message: Message) -> None:
        transaction.set_autocommit(False)
        raise ValueError("before it could switch it on again")

    workplace.consume(fail_halfway, transaction="none", enable_auto_commit=False)
    workplace.send(range(3))
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 3})
    assert [letter.offset for letter in workplace.letters()] == [0, 1, 2]


def test_poison_goes_straight_to_the_letters_with_its_bytes(workplace: Workplace) -> None:
    seen = Seen(lambda message: message.value and None)
    workplace.consume(seen)
    workplace.send([b"\xff\x00not json", {"n": 1}, None])
    with workplace.worker():
        seen.wait(2)
    (letter,) = workplace.letters()
    assert bytes(letter.value or b"") == b"\xff\x00not json"
    assert letter.category == "serialization"
    assert seen.values == [{"n": 1}, None]


def test_a_message_that_no_handler_wants_is_poison(workplace: Workplace) -> None:
    workplace.consume(Seen())
    handlers.forget(workplace._subscribed[0])
    registry._register(
        "ops", workplace.topic, workplace._subscribed[0], registry.Wanted(header=(("type", "cancelled"),))
    )
    workplace.send([0])
    workplace.send([1], headers=[("type", b"cancelled")])
    with workplace.worker():
        wait_until(lambda: workplace.letters() and workplace._subscribed[0].values == [1])  # type: ignore[attr-defined]
    (letter,) = workplace.letters()
    assert (letter.category, letter.handler) == ("serialization", "")


def test_each_handler_thread_has_a_connection_of_its_own_and_closes_it(workplace: Workplace) -> None:
    mine: dict[int, Any] = {}
    together = threading.Barrier(3, timeout=20)

    def handle(_message: Message) -> None:
        Effect.objects.count()
        mine[threading.get_ident()] = connections["default"]
        together.wait()

    seen = Seen(handle)
    workplace.consume(seen, partitions=3, concurrency=3)
    for partition in range(3):
        workplace.send([0], partition=partition)
    with workplace.worker():
        seen.wait(3)
    assert len({id(one) for one in mine.values()}) == 3
    assert connections["default"] not in mine.values()
    assert all(one.connection is None for one in mine.values())


def test_what_cannot_be_closed_or_opened_stops_the_worker_instead_of_leaving_its_lane_to_nobody(
    workplace: Workplace,
) -> None:
    def break_connection(_message: Message) -> None:
        def refuse() -> None:
            raise RuntimeError("cannot be looked at")

        connection.ensure_connection()
        connection.errors_occurred = True
        connection.is_usable = refuse  # type: ignore[method-assign,assignment]

    seen = Seen(break_connection)
    workplace.consume(seen, max_poll_records=1, transaction="none")
    workplace.send([0, 1, 2])
    worker = workplace.start()
    workplace.ended(worker)
    assert isinstance(worker.error, RuntimeError)


class Far:
    """A second cluster, which the consumer's own does not depend on, for what handlers produce."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.kafka = {
            "clusters": {"far": {"brokers": cluster.bootstrap_servers.split(","), "connection": {"timeout": "1s"}}},
            "producers": {"default": {"cluster": "far", "delivery_timeout": "500ms", "send": "immediate"}},
        }


@pytest.fixture
def far() -> Iterator[Far]:
    with Cluster(partitions=1) as cluster:
        cluster.create_topic("landed")
        yield Far(cluster)


@pytest.mark.parametrize("send", [services.produce, async_to_sync(services.aproduce)], ids=["function", "coroutine"])
def test_a_message_is_settled_when_the_records_of_its_handler_are_acknowledged(
    workplace: Workplace, far: Far, send: Callable[..., Any]
) -> None:
    def produce(message: Message) -> None:
        send("landed", None, message.value)

    clusters = {"far": {"brokers": far.cluster.bootstrap_servers.split(",")}}
    producers = {"default": {"cluster": "far", "send": "immediate"}}
    seen = Seen(produce)
    workplace.consume(seen, kafka={"clusters": clusters, "producers": producers}, enable_auto_commit=False)
    far.cluster.broker_down(1)
    workplace.send([0, 1])
    with workplace.worker():
        seen.wait(1)
        time.sleep(0.3)
        assert workplace.committed() == {0: 0}
        far.cluster.broker_up(1)
        wait_until(lambda: workplace.committed() == {0: 2})
    assert not workplace.letters()


def test_a_worker_that_runs_out_of_memory_while_it_waits_for_records_stops(workplace: Workplace, far: Far) -> None:
    def produce(message: Message) -> None:
        services.produce("landed", None, message.value).fail(MemoryError())

    workplace.consume(produce, kafka=far.kafka)
    far.cluster.broker_down(1)
    workplace.send([0])
    worker = workplace.start()
    workplace.ended(worker)
    assert isinstance(worker.error, MemoryError)
    assert workplace.committed() == {0: 0}
    assert not workplace.letters()


def test_a_lane_goes_on_after_its_producer_met_a_fatal_error(workplace: Workplace, far: Far) -> None:
    def produce(message: Message) -> None:
        services.produce("landed", None, message.value)

    seen = Seen(produce)
    workplace.consume(seen, kafka=far.kafka, enable_auto_commit=False)
    workplace.send([0])
    with workplace.worker():
        wait_until(lambda: workplace.committed() == {0: 1})
        far.cluster.push_errors(Request.PRODUCE, "OUT_OF_ORDER_SEQUENCE_NUMBER")
        workplace.send([1, 2])
        wait_until(lambda: workplace.committed() == {0: 3})
    assert seen.values == [0, 1, 2]
    assert not workplace.letters()


def test_a_lane_goes_on_after_its_records_could_not_be_delivered_for_a_while(workplace: Workplace, far: Far) -> None:
    def produce(message: Message) -> None:
        services.produce("landed", None, message.value)

    seen = Seen(produce)
    workplace.consume(seen, kafka=far.kafka, enable_auto_commit=False)
    far.cluster.broker_down(1)
    workplace.send([0])
    with workplace.worker() as worker:
        wait_until(lambda: any(lane.paused for lane in worker.lanes), 40, "the lane was not paused")
        far.cluster.broker_up(1)
        wait_until(lambda: workplace.committed() == {0: 1}, 40)
        workplace.send([1])
        seen.wait(2)
        wait_until(lambda: workplace.committed() == {0: 2}, 40)
    assert seen.values == [0, 1]
    assert not workplace.letters()


def test_a_letter_for_a_record_that_kafka_refused_may_be_stored_late_and_the_lane_goes_on(
    workplace: Workplace, far: Far
) -> None:
    def produce(message: Message) -> None:
        if message.value == 0:
            services.produce("landed", None, message.value)

    seen = Seen(produce)
    workplace.consume(seen, kafka=far.kafka)
    far.cluster.push_errors(Request.PRODUCE, "TOPIC_AUTHORIZATION_FAILED")
    with workplace.worker() as worker:
        with refusing("lynx_kafka_deadletter"):
            workplace.send([0])
            wait_until(lambda: worker.tally.waits)
        workplace.send([1])
        seen.wait(2)
    (letter,) = workplace.letters()
    assert letter.offset == 0
    assert letter.error_type == "django_kafka.exceptions.DeliveryForbidden"
    assert workplace.committed() == {0: 2}


def test_what_a_receiver_of_a_letter_produces_is_not_blamed_on_the_next_message(workplace: Workplace, far: Far) -> None:
    def alert(**_event: Any) -> None:
        services.produce("landed", None, "alert")

    def fail_on_zero(message: Message) -> None:
        if message.value == 0:
            raise ValueError

    seen = Seen(fail_on_zero)
    workplace.consume(seen, kafka=far.kafka)
    far.cluster.push_errors(Request.PRODUCE, "TOPIC_AUTHORIZATION_FAILED")
    signals.message_dead_lettered.connect(alert)
    try:
        workplace.send([0, 1])
        with workplace.worker():
            seen.wait(1)
    finally:
        signals.message_dead_lettered.disconnect(alert)
    assert [letter.offset for letter in workplace.letters()] == [0]
    assert workplace.committed() == {0: 2}


def test_a_full_producer_queue_is_an_outage(workplace: Workplace, far: Far) -> None:
    def produce(message: Message) -> None:
        services.produce("landed", None, message.value)

    options = {"queue.buffering.max.messages": 1}
    producers = {"default": {**far.kafka["producers"]["default"], "options": options}}
    seen = Seen(produce)
    workplace.consume(seen, kafka={**far.kafka, "producers": producers}, partitions=2, concurrency=2)
    far.cluster.broker_down(1)
    for partition in range(2):
        workplace.send(range(2), partition=partition)
    with workplace.worker() as worker:
        before = worker.tally.waits
        wait_until(lambda: worker.tally.waits >= before + 4, 60)
        far.cluster.broker_up(1)
        seen.wait(4, 60)
        assert worker.error is None
    assert not workplace.letters()


def test_signals_tell_of_a_message_what_happens_to_it(workplace: Workplace) -> None:
    told: list[tuple[Any, ...]] = []

    def note(name: str) -> Callable[..., None]:
        def receive(sender: str, **event: Any) -> None:
            event.pop("signal")
            told.append((name, sender, event.pop("message").offset, event))

        return receive

    receivers = {
        name: note(name) for name in ("message_handling", "message_handled", "handler_failed", "message_dead_lettered")
    }

    def fail_on_one(message: Message) -> None:
        if message.value == 1:
            raise ValueError("one")

    seen = Seen(fail_on_one)
    for name, receiver in receivers.items():
        getattr(signals, name).connect(receiver)
    try:
        workplace.consume(seen)
        workplace.send([0, 1])
        with workplace.worker():
            wait_until(workplace.letters)
    finally:
        for name, receiver in receivers.items():
            getattr(signals, name).disconnect(receiver)
    assert [entry[:3] for entry in told] == [
        ("message_handling", "ops", 0),
        ("message_handled", "ops", 0),
        ("message_handling", "ops", 1),
        ("handler_failed", "ops", 1),
        ("message_dead_lettered", "ops", 1),
    ]
    assert isinstance(told[3][3]["error"], ValueError)
    letter = told[4][3]["letter"]
    assert isinstance(letter, DeadLetter)
    assert (letter.offset, letter.error_message, letter.attempts) == (1, "one", 1)
    assert letter.handler.startswith("tests.consuming.Seen")
    assert told[4][3]["error"].error_type == "ValueError"


def test_a_header_name_that_is_no_text_neither_crashes_nor_blocks_anything(workplace: Workplace) -> None:
    seen = Seen(lambda message: [value for _name, value in message.headers] and fail())

    def fail() -> None:
        raise ValueError("with headers")

    workplace.consume(seen)
    send_with_raw_header(workplace.cluster, workplace.topic, b"caf\xe9", b"au lait")
    workplace.send([1])
    with workplace.worker():
        seen.wait(1)
    (letter,) = workplace.letters()
    assert (letter.error_message, letter.headers) == ("with headers", [("\ufffd", b"au lait")])


def send_with_raw_header(cluster: Cluster, topic: str, name: bytes, value: bytes) -> None:
    """Send what confluent_kafka refuses to send, as clients in other languages may."""
    import ctypes

    from django_kafka.clients import librdkafka

    library = librdkafka.load()
    reason = ctypes.create_string_buffer(512)
    configuration = library.rd_kafka_conf_new()
    library.rd_kafka_conf_set(configuration, b"bootstrap.servers", cluster.bootstrap_servers.encode(), reason, 512)
    producer = ctypes.c_void_p(library.rd_kafka_new(0, configuration, reason, 512))
    end, named, content, partition, header = 0, 1, 4, 3, 9
    code = library.rd_kafka_producev(
        producer, named, ctypes.c_char_p(topic.encode()), partition, ctypes.c_int32(0),
        content, ctypes.c_char_p(b"0"), ctypes.c_size_t(1),
        header, ctypes.c_char_p(name), ctypes.c_char_p(value), ctypes.c_ssize_t(len(value)), end,
    )  # fmt: skip
    assert code == 0
    assert library.rd_kafka_flush(producer, 10_000) == 0
    library.rd_kafka_destroy(producer)


def test_a_broken_log_stops_nobody_from_stopping(workplace: Workplace) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("disk full")

    def leave(_message: Message) -> None:
        raise SystemExit(3)

    workplace.consume(leave)
    workplace.send([0])
    broken = Broken(level=logging.ERROR)
    logger = logging.getLogger("django_kafka.consuming.worker")
    logger.addHandler(broken)
    hook, threading.excepthook = threading.excepthook, lambda _args: None
    try:
        worker = workplace.start()
        workplace.ended(worker)
    finally:
        logger.removeHandler(broken)
        threading.excepthook = hook
    assert isinstance(worker.error, SystemExit)


async def forgotten(message: Message | list[Message]) -> None:
    """What a plain handler calls and does not await."""


def forgetful(message: Message | list[Message]) -> Any:
    """Return a coroutine, as a lambda around an `async def` function does."""
    return forgotten(message)


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("transaction", ["none", "message", "batch"])
def test_a_handler_that_leaves_a_coroutine_to_nobody_has_failed(
    workplace: Workplace, transaction: str, lists: bool
) -> None:
    if lists:
        handlers.kafka_handler(topics=workplace.topic, consumer=NAME, batch=True)(forgetful)
    workplace.consume(forgetful, transaction=transaction)
    workplace.send(range(3))
    with workplace.worker():
        wait_until(lambda: len(workplace.letters()) == 3)
    assert {letter.error_type for letter in workplace.letters()} == {"TypeError"}
    assert "which nobody awaits" in workplace.letters()[0].error_message
