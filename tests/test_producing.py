from __future__ import annotations

import asyncio
import datetime as dt
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from pytest_django import Settings

from django_kafka import services, tallies
from django_kafka.batches import produce_batch
from django_kafka.clients.embedded import Cluster, Request
from django_kafka.deliveries import Delivery
from django_kafka.exceptions import (
    ConfigurationError,
    DeliveryDiscarded,
    DeliveryFailed,
    DeliveryPending,
    EncodeError,
    QueueFull,
    RecordTooLarge,
    UnknownName,
)
from django_kafka.producers import producers
from django_kafka.producing import produce
from django_kafka.records import Record
from django_kafka.signals import delivery_failed, produce_requested
from tests.sending import NOBODY, read, took_less_than, use, values
from tests.servers.processes import wait_until

TINY_QUEUE = {"options": {"queue.buffering.max.messages": 5}, "delivery_timeout": "30s"}


@pytest.fixture
def name(embedded: Cluster, settings: Settings, topic: Callable[..., str]) -> str:
    """A topic of four partitions on an embedded cluster that the default producer sends to."""
    use(settings, embedded.bootstrap_servers)
    made = topic()
    embedded.create_topic(made)
    return made


def test_a_record_arrives_as_it_was_given(embedded: Cluster, name: str) -> None:
    when = dt.datetime(2013, 1, 1, 5, 17, tzinfo=dt.UTC)
    headers = [("type", "landed"), ("type", b"\x00again"), ("empty", None), ("größe", "ß")]
    delivery = produce(name, "N14228", {"flight": 1545}, headers=headers, partition=2, timestamp=when).result()
    [message] = read(embedded, name, 1)
    assert (delivery.topic, delivery.partition, delivery.offset) == (name, 2, 0)
    assert (message.key(), message.value(), message.partition()) == (b"N14228", b'{"flight":1545}', 2)
    assert message.headers() == [
        ("type", b"landed"),
        ("type", b"\x00again"),
        ("empty", None),
        ("größe", "ß".encode()),
    ]
    assert message.timestamp() == (1, int(when.timestamp() * 1000))


def test_a_timestamp_needs_no_headers(embedded: Cluster, name: str) -> None:
    produce(name, None, 1, timestamp=1357017420000).result()
    produce(name, None, 2, headers={}).result()
    assert {message.timestamp()[1] for message in read(embedded, name, 2)} > {1357017420000}


def test_none_as_value_is_a_tombstone(embedded: Cluster, name: str) -> None:
    produce(name, "key", None).result()
    [message] = read(embedded, name, 1)
    assert (message.key(), message.value()) == (b"key", None)


def test_a_missing_value_is_an_error_and_no_tombstone(name: str) -> None:
    with pytest.raises(TypeError, match="value"):
        produce(name, {"id": 1})  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="has no 'value'; it has: key"):
        produce_batch(name, [{"key": "1"}])


def test_records_of_one_key_go_to_the_partition_that_java_chooses(embedded: Cluster, name: str) -> None:
    for number in range(3):
        produce(name, "21", number).result()
    # murmur2("21") = -973932308, by Kafka's own test of its hash.
    expected = (-973932308 & 0x7FFFFFFF) % 4
    assert {message.partition() for message in read(embedded, name, 3)} == {expected}


def test_names_get_the_prefix(embedded: Cluster, settings: Settings, topic: Callable[..., str]) -> None:
    use(settings, embedded.bootstrap_servers, {"default": {"topic": "own"}}, topic_prefix=topic("stage") + ".")
    prefix = settings.KAFKA["topic_prefix"]
    assert produce("flights", None, 1).result().topic == f"{prefix}flights"
    assert produce(None, None, 1).result().topic == f"{prefix}own"


def test_without_a_topic_the_producer_needs_one_of_its_own(name: str) -> None:
    with pytest.raises(ConfigurationError, match="No topic given, and producer 'default' has none of its own"):
        produce(None, None, 1)


def test_a_topic_of_249_characters_is_sent_to_and_250_are_refused(embedded: Cluster, settings: Settings) -> None:
    use(settings, embedded.bootstrap_servers, topic_prefix="prefix.")
    assert produce("t" * 242, None, 1).result().topic == "prefix." + "t" * 242
    with pytest.raises(ConfigurationError, match="is no name for a topic"):
        produce("t" * 243, None, 1)


@pytest.mark.parametrize("wrong", ["", ".", "..", "a b", "a/b", "ä", "a\n", b"bytes", 7])
def test_a_name_that_kafka_refuses_is_refused_before_it_is_sent(name: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no name for a topic; allowed: 1 to 249"):
        produce(wrong, None, 1)


def test_an_unknown_producer_is_a_sentence_with_those_there_are(name: str) -> None:
    with pytest.raises(UnknownName, match=r"""KAFKA\["producers"\] has no 'audit'; it has: default\."""):
        produce(name, None, 1, producer="audit")


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"partition": -1}, ConfigurationError, "The partition for .* is -1; it must be 0 to 2147483647, or None"),
        ({"partition": 2**31}, ConfigurationError, "is 2147483648; it must be 0 to 2147483647"),
        ({"partition": "1"}, ConfigurationError, "is '1'; it must be"),
        ({"partition": True}, ConfigurationError, "is True; it must be"),
        ({"timestamp": 0}, ConfigurationError, "The timestamp for .* is 0; it must be a datetime after 1970"),
        ({"timestamp": 2**63}, ConfigurationError, "must be a datetime after 1970, or milliseconds since then"),
        ({"timestamp": True}, ConfigurationError, "The timestamp for .* is True"),
        ({"timestamp": "now"}, ConfigurationError, "The timestamp for .* is 'now'"),
        ({"timestamp": dt.datetime(1970, 1, 1, tzinfo=dt.UTC)}, ConfigurationError, "a datetime after 1970"),
        ({"timestamp": dt.datetime(1965, 1, 1, tzinfo=dt.UTC)}, ConfigurationError, "a datetime after 1970"),
        ({"headers": {"a\0b": "x"}}, EncodeError, r"is called 'a\\x00b'; a name is text without NUL"),
        ({"headers": {"\ud800": "x"}}, EncodeError, "a name is text without NUL or lone surrogates"),
        ({"headers": [(b"name", "x")]}, EncodeError, "is called b'name'; a name is text"),
        ({"headers": {"a": "\ud800"}}, EncodeError, "The header 'a' for .* is str; it must be bytes, text"),
        ({"headers": {"a": 1}}, EncodeError, "The header 'a' for .* is int; it must be bytes, text .* or None"),
        ({"headers": [("a", "b", "c")]}, EncodeError, "no mapping and no pairs of name and value, but list"),
        ({"headers": 5}, EncodeError, "no mapping and no pairs of name and value, but int"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_a_sentence(
    name: str, options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        produce(name, "key", 1, **options)
    assert len(producers["default"].client) == 0


def test_a_value_that_does_not_serialize_names_topic_and_type_and_queues_nothing(name: str) -> None:
    with pytest.raises(EncodeError, match=rf"The value for '{name}', of type object, does not serialize: .*object"):
        produce(name, "key", object())
    with pytest.raises(EncodeError, match=rf"The key for '{name}', of type dict, does not serialize"):
        produce(name, {}, 1)
    with pytest.raises(EncodeError):
        produce_batch(name, [Record(key=None, value=1), Record(key=None, value={1, 2})])
    assert len(producers["default"].client) == 0
    assert services.flush(5) == 0


def test_the_largest_record_is_taken_and_one_byte_more_is_refused(
    embedded: Cluster, settings: Settings, topic: Callable[..., str]
) -> None:
    use(settings, embedded.bootstrap_servers, {"default": {"options": {"message.max.bytes": 5000}}})
    name = topic()
    headers = {"h": bytes(890)}
    assert produce(name, b"k" * 99, bytes(4900 - 99)).result().offset == 0
    produce(name, None, bytes(4900 - 891 - 10), headers=headers).result()
    with pytest.raises(RecordTooLarge, match=rf"'{name}' has 4901 bytes; producer 'default' sends up to 4900"):
        produce(name, b"k" * 99, bytes(4900 - 98))
    with pytest.raises(RecordTooLarge):
        produce(name, None, bytes(4900 - 891 - 9), headers=headers)


def test_a_failed_delivery_raises_is_told_and_is_counted(embedded: Cluster, name: str) -> None:
    told: list[tuple[str, Delivery, BaseException]] = []

    def listen(sender: str, delivery: Delivery, error: BaseException, **_event: Any) -> None:
        told.append((sender, delivery, error))

    before = tallies.of_producer("default").failed["INVALID_RECORD"]
    embedded.push_errors(Request.PRODUCE, "INVALID_RECORD")
    delivery_failed.connect(listen)
    try:
        delivery = produce(name, None, 1)
        with pytest.raises(DeliveryFailed, match="was not delivered") as raised:
            delivery.result()
        wait_until(lambda: told)
    finally:
        delivery_failed.disconnect(listen)
    assert (raised.value.code, raised.value.retriable, raised.value.category) == (
        "INVALID_RECORD",
        False,
        "serialization",
    )
    assert told == [("default", delivery, raised.value)]
    assert delivery.error is raised.value
    assert tallies.of_producer("default").failed["INVALID_RECORD"] == before + 1


@pytest.mark.parametrize("known", [False, True])
def test_an_unknown_partition_fails_the_delivery_whether_the_topic_is_known_or_not(name: str, known: bool) -> None:
    if known:
        produce(name, None, 1).result()
    before = tallies.of_producer("default").failed["_UNKNOWN_PARTITION"]
    delivery = produce(name, None, 1, partition=99)
    with pytest.raises(DeliveryFailed, match="Unknown partition") as raised:
        delivery.result()
    assert raised.value.code == "_UNKNOWN_PARTITION"
    assert not raised.value.retriable
    assert tallies.of_producer("default").failed["_UNKNOWN_PARTITION"] == before + 1


def test_a_record_that_nobody_takes_in_time_fails(settings: Settings) -> None:
    use(settings, NOBODY, {"default": {"delivery_timeout": "1200ms"}}, connection={"timeout": "30s"})
    delivery = produce("flights", None, 1)
    with took_less_than(10), pytest.raises(DeliveryFailed) as raised:
        delivery.result()
    assert (raised.value.code, raised.value.retriable, raised.value.category) == ("_MSG_TIMED_OUT", True, "timeout")


def test_a_batch_keeps_the_order_of_its_deliveries(embedded: Cluster, name: str) -> None:
    records = [Record(key=str(number), value=number, partition=number % 4) for number in range(2500)]
    deliveries = produce_batch(name, records)
    assert [delivery.result().partition for delivery in deliveries] == [number % 4 for number in range(2500)]
    sent = {(d.partition, d.offset): number for number, d in enumerate(deliveries)}
    assert all(
        sent[message.partition(), message.offset()] == json.loads(message.value() or b"")
        for message in read(embedded, name, 2500)
    )


def test_a_batch_takes_records_mappings_headers_and_timestamps(embedded: Cluster, name: str) -> None:
    records: list[Record | dict[str, Any]] = [
        Record(key="a", value=1, partition=0),
        {"key": "b", "value": 2, "partition": 0, "headers": {"h": "x"}},
        {"key": "c", "value": None, "partition": 0, "timestamp": 1357017420000},
        Record(key=None, value=b"raw", partition=0),
    ]
    deliveries = produce_batch(name, records)
    assert [delivery.result().offset for delivery in deliveries] == [0, 1, 2, 3]
    messages = read(embedded, name, 4)
    assert [one.value() for one in messages] == [b"1", b"2", None, b"raw"]
    assert [one.headers() for one in messages] == [None, [("h", b"x")], None, None]
    assert messages[2].timestamp() == (1, 1357017420000)
    assert not produce_batch(name, [])


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"key": 1, "value": 1, "header": {}}, r"A record of the batch has \['header'\]; it may have: key, value, he"),
        (5, "A record of the batch is int; it must be a Record, or a mapping"),
        ("text", "A record of the batch is str; it must be a Record, or a mapping"),
    ],
)
def test_a_record_of_a_batch_that_is_none_is_a_sentence(name: str, record: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        produce_batch(name, [Record(key=None, value=1), record])
    assert len(producers["default"].client) == 0


def test_one_bad_partition_in_a_batch_fails_only_its_own_delivery(name: str) -> None:
    produce(name, None, 0, partition=1).result()
    deliveries = produce_batch(name, [Record(key=None, value=n, partition=(1, 99, 1)[n]) for n in range(3)])
    assert [deliveries[index].result().offset for index in (0, 2)] == [1, 2]
    with pytest.raises(DeliveryFailed, match="Unknown partition"):
        deliveries[1].result()


def test_a_full_queue_waits_for_room_and_drops_nothing(embedded: Cluster, settings: Settings) -> None:
    use(settings, embedded.bootstrap_servers, {"default": TINY_QUEUE}, connection={"timeout": "20s"})
    embedded.create_topic("full", 1)
    deliveries = [produce("full", None, number) for number in range(40)]
    deliveries += produce_batch("full", [Record(key=None, value=number) for number in range(40, 120)])
    assert [delivery.result().offset for delivery in deliveries] == list(range(120))
    assert values(read(embedded, "full", 120)) == list(range(120))


def test_a_queue_that_stays_full_is_an_error_after_connection_timeout(settings: Settings) -> None:
    use(settings, NOBODY, {"default": TINY_QUEUE})
    deliveries = [produce("full", None, number) for number in range(5)]
    began = time.monotonic()
    with pytest.raises(QueueFull, match=r"No room for a record for 'full' .* within 1 s: 5 records wait"):
        produce("full", None, 5)
    assert 0.9 < time.monotonic() - began < 5
    assert [delivery.state for delivery in deliveries] == ["pending"] * 5
    # The client counts an event that nobody has served yet along with the records.
    wait_until(lambda: len(producers["default"].client) == 5)


def test_a_batch_that_finds_no_room_says_how_much_of_it_was_taken(settings: Settings) -> None:
    use(settings, NOBODY, {"default": TINY_QUEUE})
    with pytest.raises(QueueFull, match="5 of the 8 records of the batch were taken before"):
        produce_batch("full", [Record(key=None, value=number) for number in range(8)])
    wait_until(lambda: len(producers["default"].client) == 5)


def test_records_wait_while_the_broker_is_away_and_arrive_when_it_is_back(embedded: Cluster, name: str) -> None:
    produce(name, None, 0, partition=0).result()
    embedded.broker_down()
    delivery = produce(name, None, 1, partition=0)
    assert not delivery.done()
    embedded.broker_up()
    assert delivery.result(20).offset == 1


def test_fifty_threads_share_one_producer(embedded: Cluster, name: str) -> None:
    before = tallies.of_producer("default").acknowledged
    deliveries: list[Delivery] = []
    start = threading.Barrier(50)

    def send(thread: int) -> None:
        start.wait(20)
        deliveries.extend([produce(name, None, [thread, number], partition=thread % 4) for number in range(40)])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for delivery in deliveries:
        delivery.result(20)
    arrived = values(read(embedded, name, 2000))
    assert sorted(arrived) == [[thread, number] for thread in range(50) for number in range(40)]
    for thread in range(50):
        assert [number for sender, number in arrived if sender == thread] == list(range(40))
    assert tallies.of_producer("default").acknowledged == before + 2000


class TestOnCommit:
    pytestmark = pytest.mark.django_db(transaction=True)

    def test_outside_a_transaction_a_record_leaves_at_once(self, name: str) -> None:
        assert produce(name, None, 1).result(10).state == "acknowledged"

    def test_inside_a_transaction_it_leaves_with_the_commit(self, embedded: Cluster, name: str) -> None:
        with transaction.atomic():
            delivery = produce(name, None, 1)
            batch = produce_batch(name, [Record(key=None, value=2)])
            assert len(producers["default"].client) == 0
            with pytest.raises(DeliveryPending, match="is sent when the surrounding transaction commits"):
                delivery.result()
            with pytest.raises(DeliveryPending):
                delivery.result(1)
            assert delivery.state == "uncommitted"
        assert delivery.result(10).state == "acknowledged"
        batch[0].result(10)
        assert sorted(values(read(embedded, name, 2))) == [1, 2]

    def test_an_immediate_producer_does_not_wait_for_the_commit(
        self, embedded: Cluster, settings: Settings, topic: Callable[..., str]
    ) -> None:
        use(settings, embedded.bootstrap_servers, {"now": {"send": "immediate"}})
        with transaction.atomic():
            assert produce(topic(), None, 1, producer="now").result(10).offset == 0
            transaction.set_rollback(True)

    def test_a_rollback_discards(self, name: str) -> None:
        before = tallies.of_producer("default").discarded
        with transaction.atomic():
            delivery = produce(name, None, 1)
            transaction.set_rollback(True)
        with pytest.raises(DeliveryDiscarded, match=f"The record for '{name}' was not sent: its transaction did not"):
            delivery.result()
        assert delivery.state == "failed"
        assert tallies.of_producer("default").discarded == before + 1
        assert len(producers["default"].client) == 0

    def test_a_savepoint_that_is_rolled_back_discards_only_its_own(self, embedded: Cluster, name: str) -> None:
        with transaction.atomic():
            outer = produce(name, None, "outer")
            with transaction.atomic():
                inner = produce(name, None, "inner")
                transaction.set_rollback(True)
            assert inner.state == "failed"
            with transaction.atomic():
                kept = produce(name, None, "kept")
        outer.result(10)
        kept.result(10)
        with pytest.raises(DeliveryDiscarded):
            inner.result()
        assert sorted(values(read(embedded, name, 2))) == ["kept", "outer"]

    def test_records_leave_in_the_order_in_which_they_were_produced(self, embedded: Cluster, name: str) -> None:
        with transaction.atomic():
            for number in range(50):
                produce(name, "one key", number)
        assert values(read(embedded, name, 50)) == list(range(50))

    def test_after_a_hook_that_raised_a_delivery_is_discarded_and_not_pending_for_ever(self, name: str) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        try:
            with transaction.atomic():
                transaction.on_commit(fail)
                delivery = produce(name, None, 1)
        except ZeroDivisionError:
            pass
        with pytest.raises(DeliveryDiscarded):
            delivery.result(5)

    def test_a_record_that_is_refused_after_the_commit_fails_its_delivery_and_not_the_transaction(
        self, settings: Settings
    ) -> None:
        use(settings, NOBODY, {"default": TINY_QUEUE})
        with transaction.atomic():
            deliveries = [produce("full", None, number) for number in range(6)]
        assert [delivery.state for delivery in deliveries] == ["pending"] * 5 + ["failed"]
        with pytest.raises(QueueFull):
            deliveries[5].result()

    def test_an_outbox_is_not_available_yet(self, embedded: Cluster, settings: Settings) -> None:
        use(settings, embedded.bootstrap_servers, {"default": {"send": "outbox"}})
        with pytest.raises(ConfigurationError, match="outbox"):
            produce("flights", None, 1)


def test_a_coroutine_sends_and_awaits(embedded: Cluster, name: str) -> None:
    async def send() -> list[int | None]:
        deliveries = [await services.aproduce(name, None, number, partition=0) for number in range(20)]
        return [(await delivery).offset for delivery in deliveries]

    assert asyncio.run(send()) == list(range(20))
    assert values(read(embedded, name, 20)) == list(range(20))


def test_a_coroutine_takes_what_produce_takes(embedded: Cluster, settings: Settings, name: str) -> None:
    use(settings, embedded.bootstrap_servers, {"other": {"serializer": "text"}})

    async def send() -> None:
        await (await services.aproduce(name, "k", "v", producer="other", headers={"h": "1"}, timestamp=5, partition=1))

    asyncio.run(send())
    [message] = read(embedded, name, 1)
    assert (message.value(), message.headers(), message.timestamp()[1]) == (b"v", [("h", b"1")], 5)


def test_the_event_loop_goes_on_while_a_full_queue_makes_room(settings: Settings) -> None:
    use(settings, NOBODY, {"default": TINY_QUEUE})

    async def send() -> int:
        for number in range(4):
            await services.aproduce("full", None, number)
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        heart = asyncio.create_task(beat())
        with pytest.raises(QueueFull):
            await services.aproduce("full", None, 5)
        heart.cancel()
        return beats

    assert asyncio.run(send()) > 5, "One that is held up has no more than one."


def test_the_signal_asks_for_a_record(embedded: Cluster, name: str) -> None:
    answers = produce_requested.send(sender=None, topic=name, key="k", value=7, headers={"h": "x"})
    [delivery] = [answer for _receiver, answer in answers if isinstance(answer, Delivery)]
    delivery.result(10)
    [message] = read(embedded, name, 1)
    assert (message.key(), message.value(), message.headers()) == (b"k", b"7", [("h", b"x")])
    with pytest.raises(EncodeError):
        produce_requested.send(sender=None, topic=name, key="k", value=object())
