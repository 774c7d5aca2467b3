"""Little that becomes much: batches that inflate, payloads above their bound, headers without end."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from confluent_kafka import Producer

from django_kafka.dead_letters import replaying
from django_kafka.handlers import kafka_handler
from django_kafka.messages import Message, Messages
from tests.consuming import NAME, Seen, Workplace
from tests.secured.journey import carried_out
from tests.servers.processes import wait_until

MANY_HEADERS = 100_000
"""librdkafka reads no more: it shows a message that has more of them without any."""


def throw(place: Workplace, value: bytes, partition: int = 0, *, codec: str = "zstd", **more: Any) -> None:
    """Send one value in a compressed batch of its own, as whoever wants to do harm."""
    options = {"compression.type": codec, "message.max.bytes": 1_000_000_000, "log_level": 0}
    producer = Producer({"bootstrap.servers": place.cluster.bootstrap_servers, **options})
    producer.produce(place.topic, value, partition=partition, **more)
    assert producer.flush(20) == 0


@pytest.mark.parametrize("serializer", ["json", "bytes"])
def test_a_value_above_max_payload_is_poison_that_keeps_its_bytes_and_is_replayed_when_the_bound_is_raised(
    workplace: Workplace, serializer: str
) -> None:
    seen = Seen()
    workplace.consume(seen, max_payload="1KiB", serializer=serializer, retry={"max_retries": 5, "backoff": "1m"})
    just, above = b'"' + b"x" * 1022 + b'"', b'"' + b"x" * 1023 + b'"'
    workplace.send([just, above, b'"last"'])
    with workplace.worker():
        seen.wait(2)
        wait_until(workplace.letters)
    (letter,) = workplace.letters()
    assert [offset for _partition, offset in seen.places] == [0, 2]
    assert (letter.offset, bytes(letter.value or b""), letter.attempts) == (1, above, 1)
    assert (letter.category, letter.error_type) == ("serialization", "django_kafka.exceptions.PayloadTooLarge")
    assert re.search(
        r"The value of \S+@1 has 1025 bytes, and `max_payload` of its consumer is 1024", letter.error_message
    )
    assert workplace.committed() == {0: 3}

    replaying.request([letter.pk])
    assert [one.state for one in carried_out()] == ["failed"]
    workplace.settings.KAFKA["consumers"][NAME]["max_payload"] = None
    workplace.settings.KAFKA = {**workplace.settings.KAFKA}
    replaying.request([letter.pk])
    assert [one.state for one in carried_out()] == ["succeeded"]
    assert seen.places[2:] == [(0, 1)]


def test_of_a_list_only_what_is_above_max_payload_becomes_a_letter(workplace: Workplace) -> None:
    handled: list[Any] = []

    def take(messages: Messages) -> None:
        values = messages.values()
        messages.keys()
        handled.extend(values)

    kafka_handler(topics=workplace.topic, consumer=NAME, batch=True)(take)
    workplace.consume(take, max_payload=10)
    workplace.send([*range(20), "x" * 20, *range(20, 30)])
    workplace.send([30], key_of=lambda _: b"k" * 11)
    with workplace.worker():
        wait_until(lambda: len(workplace.letters()) == 2 and len(handled) >= 30)
    assert handled == list(range(30))
    assert [letter.offset for letter in workplace.letters()] == [20, 31]


def test_a_batch_that_the_client_does_not_inflate_holds_up_its_partition_only_and_is_not_lost(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(lambda message: message.raw_value)
    low = {"fetch.max.bytes": 1_000_000, "receive.message.max.bytes": 2_000_000}
    workplace.consume(seen, partitions=2, options=low, serializer="bytes")
    for partition in range(2):
        throw(workplace, b"before", partition)
    throw(workplace, bytes(3_000_000))
    for partition in range(2):
        throw(workplace, b"after", partition)
    with workplace.worker() as worker:
        seen.wait(3)
        wait_until(lambda: "_BAD_COMPRESSION" in caplog.text)
        assert worker.alive
    assert "partition 0: Decompression (codec 0x4) of message at 1 " in caplog.text
    assert "receive.message.max.bytes" in caplog.text
    assert caplog.text.count("_BAD_COMPRESSION") == 1
    assert (workplace.committed(), workplace.letters()) == ({0: 1, 1: 2}, [])

    workplace.settings.KAFKA["consumers"][NAME]["options"] = {}
    workplace.settings.KAFKA = {**workplace.settings.KAFKA}
    with workplace.worker():
        seen.wait(5)
    assert [len(value) for value in seen.values[3:]] == [3_000_000, 5]
    assert workplace.committed() == {0: 3, 1: 2}


@pytest.mark.parametrize("count", [MANY_HEADERS, MANY_HEADERS + 1])
def test_a_message_with_headers_without_end_is_handled_or_stored(workplace: Workplace, count: int) -> None:
    counts: list[int] = []

    def handle(message: Message) -> None:
        counts.append(len(message.headers))
        raise ValueError("no")

    workplace.consume(Seen(handle))
    throw(workplace, b'"x"', headers=[("h", os.urandom(1))] * count)
    throw(workplace, b'"last"', key=b"last")
    with workplace.worker():
        wait_until(lambda: len(workplace.letters()) == 2)
    expected = count if count <= MANY_HEADERS else 0
    assert counts == [expected, 0]
    assert [len(letter.headers) for letter in workplace.letters()] == [expected, 0]
    assert workplace.committed() == {0: 2}
