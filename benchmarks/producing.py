"""Producing: one by one and in batches, every delivery confirmed; and the filling of topics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from confluent_kafka import Producer

from .settings import BROKERS, KEYS, MESSAGES, SIZE, TOPIC

VALUE = b"v" * SIZE

# The same on both sides, so that the difference is the code around the client.
PRODUCER = {
    "bootstrap.servers": BROKERS,
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 5,
    "batch.size": 1_000_000,
    "partitioner": "murmur2_random",
}


def keys() -> list[bytes]:
    """Return a key for each message, made before the clock starts."""
    return [b"key-%d" % (number % KEYS) for number in range(MESSAGES)]


def fill() -> Iterator[None]:
    """Fill a topic, as quickly as it goes."""
    yield
    producer = Producer(PRODUCER)
    for start in range(0, MESSAGES, 10_000):
        numbers = range(start, min(start + 10_000, MESSAGES))
        records = [{"value": VALUE, "key": b"key-%d" % (number % KEYS)} for number in numbers]
        while records:
            producer.produce_batch(TOPIC, records)
            producer.poll(0)
            records = [one for one in records if "_error" in one]
            for one in records:
                del one["_error"]
            if records:
                producer.poll(0.05)
    assert producer.flush(120) == 0


def each_partition() -> Iterator[None]:
    """Put one message into each partition."""
    yield
    producer = Producer(PRODUCER)
    for partition in range(MESSAGES):
        producer.produce(TOPIC, VALUE, partition=partition)
    producer.flush()


def raw_produce() -> Iterator[None]:
    """`produce` in a loop with a delivery callback."""
    yield from produce_with(Producer(PRODUCER))


def produce_with(producer: Producer) -> Iterator[None]:
    """Produce in a loop and count what is confirmed."""
    made, confirmed = keys(), 0

    def count(error: Any, _message: Any) -> None:
        nonlocal confirmed
        assert error is None
        confirmed += 1

    # Connected before the clock starts, as a server's producer is: here and below.
    producer.produce(TOPIC, VALUE)
    assert producer.flush(60) == 0
    yield
    for number, key in enumerate(made):
        while True:
            try:
                producer.produce(TOPIC, VALUE, key, on_delivery=count)
                break
            except BufferError:
                producer.poll(0.1)
        if not number % 1000:
            producer.poll(0)
    producer.flush()
    assert confirmed == MESSAGES


def our_produce() -> Iterator[None]:
    """`services.produce` with its delivery."""
    from django_kafka import tallies

    yield from produce_all()
    assert tallies.of_producer("default").acknowledged == MESSAGES + 1


def produce_all() -> Iterator[None]:
    """Produce one by one and flush, whatever is counted."""
    from django_kafka import services

    made = keys()
    services.produce(TOPIC, None, VALUE).result(60)
    yield
    for key in made:
        services.produce(TOPIC, key, VALUE)
    assert services.flush(60) == 0


def raw_produce_batch() -> Iterator[None]:
    """The same loop as `raw_produce`: what `produce_batch` of ours is compared with."""
    yield from raw_produce()


def our_produce_batch() -> Iterator[None]:
    """`services.produce_batch`, 1,000 records at a time."""
    from django_kafka import services, tallies

    services.produce(TOPIC, None, VALUE).result(60)
    records = [{"key": key, "value": VALUE} for key in keys()]
    yield
    for start in range(0, MESSAGES, 1000):
        services.produce_batch(TOPIC, records[start : start + 1000])
    assert services.flush(60) == 0
    assert tallies.of_producer("default").acknowledged == MESSAGES + 1
