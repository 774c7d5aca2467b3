"""Records that are a key and a value and no more: their reports find them by that."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pytest_django import Settings

from django_kafka import services, tallies
from django_kafka.alike import LARGEST, AlikeReports
from django_kafka.clients.embedded import Cluster, Request
from django_kafka.deliveries import Deliveries, Delivery, delivery_of
from django_kafka.exceptions import CircuitOpen, DeliveryFailed, EncodeError, QueueFull
from django_kafka.producers import producers
from django_kafka.signals import delivery_failed, record_delivered
from tests.sending import program, read, use
from tests.servers.processes import wait_until

Pair = tuple[bytes | None, bytes | None]


@pytest.fixture
def name(embedded: Cluster, settings: Settings, topic: Callable[..., str]) -> str:
    """A topic of four partitions on an embedded cluster that the default producer sends to."""
    use(settings, embedded.bootstrap_servers)
    made = topic()
    embedded.create_topic(made)
    return made


def page_of(delivery: Delivery) -> AlikeReports:
    assert isinstance(delivery.reports, AlikeReports)
    return delivery.reports


def assert_true(cluster: Cluster, name: str, pairs: Sequence[Pair], deliveries: Sequence[Delivery]) -> None:
    """Compare what deliveries say with the log: each names the place of its own key and value, and no other's."""
    for delivery in deliveries:
        delivery.result(20)
    log = {(one.partition(), one.offset()): (one.key(), one.value()) for one in read(cluster, name, len(pairs))}
    places = [(delivery.partition, delivery.offset) for delivery in deliveries]
    assert len(set(places)) == len(pairs)
    assert [log[place] for place in places] == list(pairs)


VARIED: list[Pair] = [(key, value) for key in (None, b"", b"a", b"b") for value in (None, b"", b"x", b"y" * 300)]


@pytest.mark.parametrize("size", [1, 16, 999, 1000, 1001, 2500])
def test_each_delivery_of_a_batch_names_the_place_of_its_own_record(embedded: Cluster, name: str, size: int) -> None:
    pairs: list[Pair] = [(b"key-%d" % (number % 50), b"%d" % number) for number in range(size)]
    deliveries = services.produce_batch(name, [{"key": key, "value": value} for key, value in pairs])
    assert isinstance(deliveries, Deliveries)
    assert isinstance(deliveries[0].reports, AlikeReports)
    assert_true(embedded, name, pairs, deliveries)


def test_keys_and_values_that_are_absent_empty_or_repeated_are_told_apart(embedded: Cluster, name: str) -> None:
    pairs = VARIED * 7
    random.Random(7).shuffle(pairs)
    half = len(pairs) // 2
    deliveries = list(services.produce_batch(name, [{"key": key, "value": value} for key, value in pairs[:half]]))
    deliveries += [services.produce(name, key, value) for key, value in pairs[half:]]
    assert_true(embedded, name, pairs, deliveries)


def test_records_of_one_by_one_find_their_reports_over_many_pages(embedded: Cluster, name: str) -> None:
    pairs: list[Pair] = [(b"%d" % (number % 7), b"%d" % (number % 90)) for number in range(1200)]
    deliveries = [services.produce(name, key, value) for key, value in pairs]
    assert len({id(page_of(delivery)) for delivery in deliveries}) > 3
    assert_true(embedded, name, pairs, deliveries)


def _within(thing: Any) -> list[Any]:
    """Return what an object's containers hold."""
    inner = gc.get_referents(thing)
    return inner + [found for one in inner if isinstance(one, list | dict | tuple) for found in _within(one)]


def test_a_page_that_is_done_keeps_no_records(name: str) -> None:
    deliveries = services.produce_batch(name, [{"key": b"%d" % n, "value": b"v"} for n in range(20)])
    services.flush(20)
    page = page_of(deliveries[0])
    assert not any(isinstance(one, bytes) for one in _within(page))
    assert {delivery.state for delivery in deliveries} == {"acknowledged"}
    assert all(delivery.offset is not None for delivery in deliveries)


def test_nothing_is_kept_for_deliveries_that_nobody_has(name: str) -> None:
    deliveries = services.produce_batch(name, [{"key": b"%d" % n, "value": b"v"} for n in range(500)])
    page = weakref.ref(page_of(deliveries[0]))
    del deliveries
    gc.collect()
    assert page() is None
    services.flush(20)
    assert tallies.of_producer("default").acknowledged == 500
    assert tallies.of_producer("default").bytes == 500


def test_large_records_are_not_kept_until_their_reports_come(name: str) -> None:
    small, large = (services.produce(name, b"", b"v" * size) for size in (LARGEST, LARGEST + 1))
    assert isinstance(small.reports, AlikeReports)
    assert not isinstance(large.reports, AlikeReports)
    batch = services.produce_batch(name, [{"key": b"k", "value": b"v" * LARGEST}])
    assert not isinstance(batch[0].reports, AlikeReports)
    services.flush(20)
    assert {small.state, large.state, batch[0].state} == {"acknowledged"}


def test_records_with_more_than_key_and_value_are_never_taken_for_others(embedded: Cluster, name: str) -> None:
    plain = services.produce(name, b"k", b"v")
    headers = [services.produce(name, b"k", b"v", headers={"n": b"%d" % number}) for number in range(20)]
    assert isinstance(plain.reports, AlikeReports)
    assert not any(isinstance(delivery.reports, AlikeReports) for delivery in headers)
    services.flush(20)
    log = {(one.partition(), one.offset()): one.headers() for one in read(embedded, name, 21)}
    assert log[plain.partition or 0, plain.offset or 0] is None
    assert [log[one.partition or 0, one.offset or 0] for one in headers] == [
        [("n", b"%d" % number)] for number in range(20)
    ]


@pytest.mark.parametrize("together", [True, False])
def test_who_failed_is_who_is_told(embedded: Cluster, name: str, together: bool) -> None:
    """The leader of one partition refuses what it gets for good: the others' records are delivered."""
    heard: list[Delivery] = []

    def hear(delivery: Delivery, error: BaseException, **_more: Any) -> None:
        heard.append(delivery)

    pairs: list[Pair] = [(b"key-%d" % (number % 40), b"%d" % (number % 160)) for number in range(320)]
    delivery_failed.connect(hear)
    embedded.push_errors(Request.PRODUCE, "MSG_SIZE_TOO_LARGE")
    try:
        if together:
            deliveries = list(services.produce_batch(name, [{"key": key, "value": value} for key, value in pairs]))
        else:
            deliveries = [services.produce(name, key, value) for key, value in pairs]
        services.flush(20)
    finally:
        delivery_failed.disconnect(hear)
    failed = [delivery for delivery in deliveries if delivery.state == "failed"]
    assert 0 < len(failed) < len(pairs)
    assert set(heard) == set(failed)
    for delivery in failed:
        with pytest.raises(DeliveryFailed, match=r"MSG_SIZE_TOO_LARGE|too large"):
            delivery.result(0)
    kept = [(pair, one) for pair, one in zip(pairs, deliveries, strict=True) if one.state == "acknowledged"]
    assert len(kept) + len(failed) == len(pairs)
    assert_true(embedded, name, [pair for pair, _one in kept], [one for _pair, one in kept])
    assert tallies.of_producer("default").acknowledged == len(kept)
    assert sum(tallies.of_producer("default").failed.values()) == len(failed)


def test_failures_that_nobody_waits_for_are_told_and_counted(embedded: Cluster, name: str) -> None:
    heard: list[tuple[str, str]] = []

    def hear(delivery: Delivery, **_more: Any) -> None:
        heard.append((delivery.topic, delivery.state))

    delivery_failed.connect(hear)
    embedded.push_errors(Request.PRODUCE, "MSG_SIZE_TOO_LARGE")
    try:
        services.produce_batch(name, [{"key": b"k", "value": b"v"}] * 30)
        services.flush(20)
    finally:
        delivery_failed.disconnect(hear)
    assert heard == [(name, "failed")] * 30
    assert sum(tallies.of_producer("default").failed.values()) == 30


@pytest.mark.parametrize("kept", [True, False])
def test_receivers_hear_of_each_record_once_with_its_place(embedded: Cluster, name: str, kept: bool) -> None:
    heard: list[Delivery] = []

    def hear(delivery: Delivery, **_more: Any) -> None:
        heard.append(delivery)

    record_delivered.connect(hear)
    try:
        deliveries = services.produce_batch(name, [{"key": b"%d" % n, "value": b"v"} for n in range(300)])
        if not kept:
            del deliveries
        services.flush(20)
        wait_until(lambda: len(heard) == 300)
    finally:
        record_delivered.disconnect(hear)
    places = Counter((one.partition, one.offset) for one in heard)
    assert set(places) == {(one.partition(), one.offset()) for one in read(embedded, name, 300)}
    assert set(places.values()) == {1}
    if kept:
        assert set(heard) == set(deliveries)


class Odd:
    """A serializer of a project's own that returns what its value is."""

    def encode(self, value: Any, topic: str) -> Any:
        return value

    def decode(self, data: bytes, topic: str) -> Any:
        return data


class Token(bytes):
    """Bytes of a kind of their own, which may compare as they like."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = bytes.__hash__


def test_what_is_sent_is_bytes_whatever_a_serializer_returns(
    embedded: Cluster, name: str, settings: Settings, topic: Callable[..., str]
) -> None:
    use(settings, embedded.bootstrap_servers, {"default": {"serializer": "tests.test_alike.Odd"}})
    deliveries = [services.produce(name, None, Token(b"one"))]
    deliveries += services.produce_batch(name, [{"key": b"k", "value": Token(b"two")}])
    assert_true(embedded, name, [(None, b"one"), (b"k", b"two")], deliveries)
    with pytest.raises(EncodeError, match=r"its serializer returned int; it must return bytes"):
        services.produce(name, None, 7)


def test_many_threads_send_and_wait_at_once(embedded: Cluster, name: str) -> None:
    found: list[tuple[Pair, Delivery]] = []

    def send(thread: int) -> None:
        for number in range(150):
            pair = b"%d" % (number % 5), b"%d-%d" % (thread % 2, number % 30)
            delivery = services.produce(name, *pair)
            if not number % 50:
                delivery.result(20)
            found.append((pair, delivery))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 1200
    assert_true(embedded, name, [pair for pair, _one in found], [one for _pair, one in found])


def test_coroutines_wait_for_records_of_a_batch(name: str) -> None:
    async def send() -> list[Delivery]:
        deliveries = services.produce_batch(name, [{"key": b"%d" % n, "value": b"v"} for n in range(40)])
        return list(await asyncio.gather(*deliveries))

    assert [delivery.state for delivery in asyncio.run(send())] == ["acknowledged"] * 40


def test_a_record_that_found_no_room_is_not_taken_for_the_one_that_is_sent_again(
    embedded: Cluster, name: str, settings: Settings
) -> None:
    small = {"default": {"options": {"queue.buffering.max.messages": 1}}}
    use(settings, embedded.bootstrap_servers, small, connection={"timeout": "1s"})
    first = services.produce(name, b"k", b"first").result(20)
    embedded.broker_down()
    waits = services.produce(name, b"k", b"first")
    for send in (
        lambda: services.produce(name, b"k", b"again"),
        lambda: services.produce_batch(name, [{"key": b"k", "value": b"again"}] * 3),
    ):
        with pytest.raises(QueueFull):
            send()
    embedded.broker_up()
    waits.result(20)
    deliveries = [services.produce(name, b"k", b"again") for _number in range(3)]
    assert page_of(first) is page_of(deliveries[-1])
    assert_true(embedded, name, [(b"k", b"first")] * 2 + [(b"k", b"again")] * 3, [first, waits, *deliveries])


def test_a_record_that_the_client_refuses_is_not_waited_for(name: str, settings: Settings) -> None:
    """What the client refuses while it is handed over has no report: its page is done without it."""
    deliveries = [services.produce(name, b"k", b"v") for _number in range(3)]
    page = page_of(deliveries[0])
    place = next(page.places)
    page.keys[place], page.values[place] = b"k", b"v"
    page.refuse(place, DeliveryFailed("no", code="_NO", retriable=False))
    page.forget(place)
    services.flush(20)
    assert delivery_of(page, place).state == "failed"
    assert [delivery.state for delivery in deliveries] == ["acknowledged"] * 3
    assert len({(one.partition, one.offset) for one in deliveries}) == 3
    assert producers["default"].flush(0) == 0


def test_a_record_that_found_no_room_takes_no_report_of_the_same_one_sent_again(
    embedded: Cluster, settings: Settings, topic: Callable[..., str]
) -> None:
    small = {"default": {"options": {"queue.buffering.max.messages": 3}}}
    use(settings, embedded.bootstrap_servers, small, connection={"timeout": "1s"})
    name = topic()
    embedded.create_topic(name)
    first = services.produce(name, b"k", b"v").result(20)
    embedded.broker_down()
    try:
        taken = [services.produce(name, b"k", b"v") for _number in range(3)]
        with pytest.raises(QueueFull):
            services.produce(name, b"k", b"v")
    finally:
        embedded.broker_up()
    services.flush(20)
    taken.append(services.produce(name, b"k", b"v"))
    assert_true(embedded, name, [(b"k", b"v")] * 5, [first, *taken])


def test_a_record_that_an_open_circuit_refused_takes_no_report_of_the_same_one_sent_again(
    embedded: Cluster, name: str
) -> None:
    producer = producers["default"]
    producer.client.refuse(producer.refusal)
    for pair in ((b"k", b"v"), ("k", "v")):
        with pytest.raises(CircuitOpen):
            services.produce(name, *pair)
    producer.client.refuse(None)
    assert services.produce(name, b"k", b"v").result(20).state == "acknowledged"
    assert services.produce(name, "k", "v").result(20).state == "acknowledged"


@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize("refused", [True, False])
def test_a_report_of_a_record_that_nobody_has_a_delivery_of_harms_no_other(
    embedded: Cluster, name: str, heard: bool, refused: bool
) -> None:
    """Ctrl-C may come when the client has the record, but the caller not yet its delivery."""
    places: list[tuple[int | None, int | None]] = []

    def hear(delivery: Delivery, **_more: Any) -> None:
        places.append((delivery.partition, delivery.offset))

    if refused:
        embedded.push_errors(Request.PRODUCE, "MSG_SIZE_TOO_LARGE")
    if heard:
        record_delivered.connect(hear)
        delivery_failed.connect(hear)
    try:
        first, second = (services.produce(name, b"k", b"v") for _number in range(2))
        page_of(first).forget(first.place)
        services.flush(20)
    finally:
        record_delivered.disconnect(hear)
        delivery_failed.disconnect(hear)
    tally = tallies.of_producer("default")
    assert second.state == ("failed" if refused else "acknowledged")
    assert tally.acknowledged + sum(tally.failed.values()) == 2
    assert len(places) == (2 if heard else 0)
    assert len(set(places)) == (0 if not heard else 1 if refused else 2)


def test_who_listens_from_the_middle_of_a_page_hears_of_what_is_delivered_from_then_on(name: str) -> None:
    heard: list[Delivery] = []

    def hear(delivery: Delivery, **_more: Any) -> None:
        heard.append(delivery)

    before = [services.produce(name, b"%d" % number, b"v") for number in range(5)]
    services.flush(20)
    record_delivered.connect(hear)
    try:
        after = services.produce(name, b"k", b"v")
        services.flush(20)
    finally:
        record_delivered.disconnect(hear)
    assert page_of(before[0]) is page_of(after)
    assert heard == [after]
    assert {one.state for one in before} == {"acknowledged"}


def _read_all(deliveries: list[Delivery], places: set[tuple[int | None, int | None]]) -> None:
    places.update((one.result(5).partition, one.offset) for one in deliveries)


def _look_at_all(deliveries: list[Delivery], seconds: float) -> None:
    # A function: what is raised at the jump back of a loop that ends a `try` is not caught by it.
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        for delivery in deliveries:
            delivery.done()


# What a signal handler raises in a destructor goes no further: the interpreter says so and drops it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_reads_and_is_interrupted_loses_no_report(name: str) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_signal: Any) -> None:
        raise Interrupted

    interrupted = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(60):
            deliveries = [services.produce(name, b"%d" % (one % 100), b"v") for one in range(300)]
            services.flush(20)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00001 * (1 + number % 20))
                _look_at_all(deliveries, 1)
            except Interrupted:
                interrupted += 1
            # By another thread, which whoever was interrupted must not leave a lock to.
            places: set[tuple[int | None, int | None]] = set()
            reader = threading.Thread(target=_read_all, args=(deliveries, places), daemon=True)
            reader.start()
            reader.join(20)
            assert len(places) == 300
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 30


def test_a_child_waits_for_no_thread_that_was_not_forked_along(embedded: Cluster, topic: Callable[..., str]) -> None:
    code = """
import threading
delivery = services.produce(topic, b"k", b"v")
services.flush(20)
held, over = threading.Event(), threading.Event()
def read():
    with delivery.reports._lock:
        held.set()
        over.wait(30)
thread = threading.Thread(target=read)
thread.start()
held.wait(30)
if (child := os.fork()) == 0:
    import signal
    signal.alarm(10)
    print(delivery.state, flush=True)
    os._exit(0)
ended = os.waitpid(child, 0)[1]
over.set()
thread.join()
print(ended, delivery.state)
"""
    name = topic()
    embedded.create_topic(name)
    done = program(code, {"brokers": [embedded.bootstrap_servers]}, name)
    assert done.stdout.split() == ["acknowledged", "0", "acknowledged"], done.stderr
