from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from pytest_django import Settings

from django_kafka.clients.embedded import Cluster, Request
from django_kafka.deliveries import Delivery
from django_kafka.exceptions import (
    BrokersUnreachable,
    ConfigurationError,
    DecodeError,
    DeliveryFailed,
    DeliveryTimeout,
)
from django_kafka.messages import Message, Messages
from django_kafka.producers import producers
from django_kafka.producing import produce
from django_kafka.serializers import TopicDecoder
from django_kafka.signals import delivery_failed, record_delivered
from tests.sending import NOBODY, took_less_than, use
from tests.servers.processes import wait_until


@pytest.fixture
def name(embedded: Cluster, settings: Settings, topic: Callable[..., str]) -> str:
    use(settings, embedded.bootstrap_servers)
    made = topic()
    embedded.create_topic(made, 1)
    return made


@contextmanager
def listening(signal: Any, receiver: Callable[..., Any]) -> Iterator[None]:
    signal.connect(receiver)
    try:
        yield
    finally:
        signal.disconnect(receiver)


class Raw:
    """A message as the client gives it."""

    def __init__(self, **parts: Any) -> None:
        self.parts = parts

    def topic(self) -> str | None:
        return self.parts.get("topic", "flights")

    def partition(self) -> int | None:
        return self.parts.get("partition", 3)

    def offset(self) -> int | None:
        return self.parts.get("offset", 2**40)

    def timestamp(self) -> tuple[int, int]:
        return self.parts.get("timestamp", (1, 1357017420123))

    def key(self) -> bytes | None:
        return self.parts.get("key", b"N14228")

    def value(self) -> bytes | None:
        return self.parts.get("value", b'{"n":1}')

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self.parts.get("headers")


def message(**parts: Any) -> Message:
    return Message(Raw(**parts), TopicDecoder("text", "json"))


def test_a_delivery_tells_where_its_record_is(name: str) -> None:
    delivery = produce(name, None, 1)
    assert delivery.result() is delivery
    assert repr(delivery) == f"<Delivery acknowledged topic={name} partition=0 offset=0>"
    assert delivery.done()
    assert delivery.result(0) is delivery


def test_without_acknowledgements_there_is_no_offset(embedded: Cluster, settings: Settings) -> None:
    use(settings, embedded.bootstrap_servers, {"default": {"acks": "0"}})
    assert produce("flights", None, 1).result().offset is None


def test_a_timeout_is_not_a_failure(embedded: Cluster, name: str) -> None:
    produce(name, None, 0).result()
    embedded.round_trip_time(1, 1500)
    delivery = produce(name, None, 1)
    with pytest.raises(DeliveryTimeout, match=r"after 0\.1 s; it is still on its way"):
        delivery.result(0.1)
    with pytest.raises(TimeoutError):
        delivery.result(0)
    assert delivery.state == "pending"
    assert delivery.result(20).offset == 1


def test_many_threads_wait_for_one_delivery(embedded: Cluster, name: str) -> None:
    produce(name, None, 0).result()
    embedded.round_trip_time(1, 300)
    delivery = produce(name, None, 1)
    found: list[int | None] = []
    threads = [threading.Thread(target=lambda: found.append(delivery.result(20).offset)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [1] * 20


def test_who_waits_is_answered_without_waiting_for_company(name: str) -> None:
    produce(name, None, 0).result()
    began = time.monotonic()
    for number in range(20):
        produce(name, None, number).result()
    assert (time.monotonic() - began) / 20 < 0.045


def test_every_waiter_gets_the_failure(embedded: Cluster, name: str) -> None:
    embedded.push_errors(Request.PRODUCE, "INVALID_RECORD")
    delivery = produce(name, None, 1)
    for _ in range(2):
        with pytest.raises(DeliveryFailed):
            delivery.result(20)

    async def wait() -> None:
        await delivery

    with pytest.raises(DeliveryFailed):
        asyncio.run(wait())


def test_brokers_that_refuse_are_an_error_within_connection_timeout(settings: Settings) -> None:
    use(settings, NOBODY)
    delivery = produce("flights", None, 1)
    with took_less_than(2.5), pytest.raises(BrokersUnreachable, match="The record for 'flights' waits for a broker: "):
        delivery.result()
    assert delivery.state == "pending"

    async def wait() -> None:
        await delivery

    with took_less_than(2.5), pytest.raises(BrokersUnreachable):
        asyncio.run(wait())
    with took_less_than(1), pytest.raises(BrokersUnreachable):
        delivery.result(0.2)


def test_a_broker_that_never_answers_is_an_error_soon_after_connection_timeout(settings: Settings) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        use(settings, f"127.0.0.1:{silent.getsockname()[1]}", connection={"timeout": "2s"})
        with took_less_than(3.5), pytest.raises(BrokersUnreachable):
            produce("flights", None, 1).result()


def test_brokers_that_came_back_are_no_trouble_any_more(embedded: Cluster, name: str) -> None:
    produce(name, None, 0).result()
    embedded.broker_down()
    wait_until(lambda: producers["default"].unreachable())
    embedded.broker_up()
    produce(name, None, 1).result(20)
    assert producers["default"].unreachable() is None


def test_one_delivery_can_be_awaited_in_several_loops(embedded: Cluster, name: str) -> None:
    produce(name, None, 0).result()
    embedded.round_trip_time(1, 300)
    delivery = produce(name, None, 1)
    offsets: list[int | None] = []

    async def wait() -> None:
        waits = [asyncio.ensure_future(delivery) for _ in range(3)]
        offsets.extend([(await one).offset for one in waits])

    threads = [threading.Thread(target=lambda: asyncio.run(wait())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert offsets == [1] * 12


def test_an_await_that_is_given_up_does_not_disturb_the_delivery(embedded: Cluster, name: str) -> None:
    produce(name, None, 0).result()
    embedded.round_trip_time(1, 1000)
    delivery = produce(name, None, 1)

    async def wait() -> None:
        async with asyncio.timeout(0.05):
            await delivery

    with pytest.raises(TimeoutError):
        asyncio.run(wait())
    assert delivery.result(20).offset == 1


class AlmostClosed(asyncio.SelectorEventLoop):
    """A loop that closes between the question whether it is closed and the call."""

    closes = False

    def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> Any:
        if self.closes:
            raise RuntimeError("Event loop is closed")
        return super().call_soon_threadsafe(*arguments, **options)


def test_a_loop_that_closes_meanwhile_does_not_stop_the_reports_of_others(embedded: Cluster, name: str) -> None:
    produce(name, None, 0).result()
    embedded.round_trip_time(1, 1000)
    delivery = produce(name, None, 1)

    async def wait() -> None:
        async with asyncio.timeout(0.05):
            await delivery

    with asyncio.Runner(loop_factory=AlmostClosed) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, AlmostClosed)
        with pytest.raises(TimeoutError):
            runner.run(wait())
        loop.closes = True
        assert delivery.result(20).offset == 1
        assert produce(name, None, 2).result(20).offset == 2
        loop.closes = False


def test_receivers_that_raise_disturb_nobody(embedded: Cluster, name: str, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Delivery] = []

    def fail(**_event: Any) -> None:
        raise ZeroDivisionError

    def leave(**_event: Any) -> None:
        raise SystemExit

    def listen(delivery: Delivery, **_event: Any) -> None:
        told.append(delivery)

    with listening(record_delivered, fail), listening(record_delivered, listen):
        first = produce(name, None, 1).result(20)
        wait_until(lambda: told)
    with listening(record_delivered, leave):
        produce(name, None, 2).result(20)
        last = produce(name, None, 3).result(20)
    assert told == [first]
    assert last.offset == 2
    assert "ZeroDivisionError" in caplog.text


def test_a_log_that_raises_disturbs_nobody(embedded: Cluster, name: str) -> None:
    import logging

    def break_off(record: logging.LogRecord) -> bool:
        raise ZeroDivisionError

    log = logging.getLogger("django_kafka.producers")
    log.addFilter(break_off)
    told: list[Any] = []

    def listen(**event: Any) -> None:
        told.append(event["error"])

    try:
        with listening(delivery_failed, listen):
            embedded.push_errors(Request.PRODUCE, "INVALID_RECORD")
            with pytest.raises(DeliveryFailed):
                produce(name, None, 1).result(20)
            assert produce(name, None, 2).result(20).offset == 0
    finally:
        log.removeFilter(break_off)
    assert len(told) == 1


def test_a_receiver_that_waits_for_another_delivery_is_told_instead_of_waiting_for_ever(name: str) -> None:
    found: list[BaseException] = []
    asked = threading.Event()

    def wait(delivery: Delivery, **_event: Any) -> None:
        if asked.is_set():
            return
        asked.set()
        try:
            produce(name, None, "another").result(20)
        except ConfigurationError as error:
            found.append(error)

    with listening(record_delivered, wait):
        produce(name, None, 1).result(20)
        wait_until(lambda: found)
    assert "Receivers of record_delivered and delivery_failed cannot wait" in str(found[0])


def test_a_delivery_of_the_parent_does_not_hang_its_child(embedded: Cluster, name: str) -> None:
    produce(name, None, 0).result()
    embedded.round_trip_time(1, 500)
    delivery = produce(name, None, 1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            delivery.result(20)
        except DeliveryTimeout as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    assert "was sent by another process, before a fork" in os.read(reading, 1000).decode()
    os.close(reading)
    assert delivery.result(20).offset == 1


def test_a_message_reads_what_the_client_has() -> None:
    found = message(headers=[("type", b"a"), ("type", b"b"), ("nul", b"\0")])
    assert (found.topic, found.partition, found.offset, found.attempt) == ("flights", 3, 2**40, 1)
    assert (found.raw_key, found.key, found.raw_value, found.value) == (b"N14228", "N14228", b'{"n":1}', {"n": 1})
    assert found.headers == (("type", b"a"), ("type", b"b"), ("nul", b"\0"))
    assert (found.header("type"), found.header("nul"), found.header("none")) == (b"b", b"\0", None)
    assert found.timestamp_ms == 1357017420123
    assert found.timestamp == datetime(2013, 1, 1, 5, 17, 0, 123000, tzinfo=UTC)
    assert repr(found) == "<Message flights[3]@1099511627776>"


def test_a_tombstone_is_a_message_like_others() -> None:
    tombstone = message(value=None, key=None, headers=None, timestamp=(0, -1))
    assert tombstone
    assert (tombstone.value, tombstone.key, tombstone.headers) == (None, None, ())
    assert (tombstone.timestamp, tombstone.timestamp_ms) == (None, None)


def test_a_timestamp_outside_the_calendar_has_no_date() -> None:
    assert message(timestamp=(1, 2**62)).timestamp is None
    assert message(timestamp=(1, 2**62)).timestamp_ms == 2**62
    assert message(timestamp=(1, -62135596800001)).timestamp is None


def test_a_value_is_decoded_once_and_only_when_asked_for() -> None:
    found = message(value=b"{", key=b"\xff")
    assert found.raw_value == b"{"
    with pytest.raises(DecodeError, match=r"The value of flights\[3\]@1099511627776 cannot be read as json"):
        found.value  # noqa: B018
    with pytest.raises(DecodeError, match=r"The key of .* cannot be read as text: UnicodeDecodeError"):
        found.key  # noqa: B018
    good = message()
    assert good.value is good.value


def several(number: int, **parts: Any) -> Messages:
    return Messages([Raw(**{"offset": offset, **parts}) for offset in range(number)], TopicDecoder("text", "json"))


def made() -> int:
    """How many messages there are in this process."""
    return sum(type(one) is Message for one in gc.get_objects())


def test_messages_are_a_sequence() -> None:
    messages = several(5)
    assert isinstance(messages, Sequence)
    assert len(messages) == 5
    assert [one.offset for one in messages] == [0, 1, 2, 3, 4]
    assert [one.offset for one in reversed(messages)] == [4, 3, 2, 1, 0]
    assert (messages[0].offset, messages[-1].offset) == (0, 4)
    assert messages[3] in messages
    assert message(offset=3) not in messages
    assert (messages.index(messages[2]), messages.count(messages[2])) == (2, 1)
    for beyond in (5, -6):
        with pytest.raises(IndexError):
            messages[beyond]
    assert not several(0)


def test_a_message_of_a_sequence_is_always_the_same_object() -> None:
    messages = several(6)
    part = messages[1:5]
    assert part[1] is messages[2]
    assert messages[2] is list(messages)[2]
    assert messages[2] is messages[-4]
    assert messages[::-1][3] is messages[2]
    assert part[::2][1] is messages[3]
    assert {messages[2]: "named"}[part[1]] == "named"


def test_a_slice_of_messages_is_one_of_the_same_kind() -> None:
    messages = several(6)
    assert isinstance(messages[1:4], Messages)
    assert [one.offset for one in messages[1:4]] == [1, 2, 3]
    assert [one.offset for one in messages[::-2]] == [5, 3, 1]
    assert [one.offset for one in messages[4:1:-1][1:]] == [3, 2]
    assert messages[2:4].values() == [{"n": 1}, {"n": 1}]
    assert (len(messages[9:]), messages[9:].values()) == (0, [])


def test_messages_are_equal_to_the_same_ones() -> None:
    messages = several(3)
    assert messages == messages[:]
    assert messages == list(messages)
    assert list(messages) == messages
    assert messages != messages[:2]
    assert messages != several(3), "Others, though they look the same."
    assert messages != tuple(messages), "As with lists."
    with pytest.raises(TypeError):
        hash(messages)


def test_keys_and_values_are_read_without_making_a_message() -> None:
    messages = several(3, key=b"\xc3\xa9", value=b"[1]")
    before = made()
    assert messages.values() == [[1], [1], [1]]
    assert messages.keys() == ["\u00e9"] * 3
    assert (messages.raw_values(), messages.raw_keys()) == ([b"[1]"] * 3, [b"\xc3\xa9"] * 3)
    assert made() == before
    assert [one.value for one in messages] == messages.values()
    assert made() == before + 3


def test_what_has_no_key_or_value_reads_none_in_a_sequence_too() -> None:
    messages = several(2, key=None, value=None)
    assert (messages.keys(), messages.values()) == ([None, None], [None, None])
    assert (messages.raw_keys(), messages.raw_values()) == ([None, None], [None, None])


def test_the_value_of_a_sequence_that_cannot_be_read_is_named() -> None:
    raws = [
        Raw(offset=offset, key=b"\xff" if offset == 2 else b"N1", value=b"{" if offset == 1 else b"1")
        for offset in range(3)
    ]
    messages = Messages(raws, TopicDecoder("text", "json"))
    with pytest.raises(DecodeError, match=r"The value of flights\[3\]@1 cannot be read as json") as raised:
        messages.values()
    assert raised.value.place == ("flights", 3, 1)
    with pytest.raises(DecodeError) as raised:
        messages.keys()
    assert raised.value.place == ("flights", 3, 2)


def test_a_sequence_says_what_it_is_made_of() -> None:
    assert repr(several(3)) == "<Messages: 3 from <Message flights[3]@0> to <Message flights[3]@2>>"
    assert repr(several(0)) == "<Messages: none>"
