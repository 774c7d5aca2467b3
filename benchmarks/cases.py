"""What is measured. Each case runs in a process of its own and prints one line of JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import django
from confluent_kafka import Consumer, Producer

from . import failing
from .settings import BROKERS, MESSAGES, TOPIC

VALUE = b"v" * 200

# The same on both sides, so that the difference is the code around the client.
PRODUCER = {
    "bootstrap.servers": BROKERS,
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 5,
    "batch.size": 1_000_000,
    "partitioner": "murmur2_random",
}
BEST_CONSUMER = {"bootstrap.servers": BROKERS, "auto.offset.reset": "earliest", "fetch.queue.backoff.ms": 5}
PLAIN_CONSUMER = {"bootstrap.servers": BROKERS, "auto.offset.reset": "earliest"}


def ignore(message: object) -> None:
    """Handle a message by doing nothing."""


def keys() -> list[bytes]:
    """Return a key for each message, made before the clock starts."""
    return [b"key-%d" % (number % 10_000) for number in range(MESSAGES)]


def raw_produce() -> Iterator[None]:
    """`produce` in a loop with a delivery callback."""
    producer, made, confirmed = Producer(PRODUCER), keys(), 0

    def count(error: Any, _message: Any) -> None:
        nonlocal confirmed
        assert error is None
        confirmed += 1

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
    from django_kafka import services, tallies

    services.get_producer()
    made = keys()
    yield
    for key in made:
        services.produce(TOPIC, key, VALUE)
    assert services.flush(60) == 0
    assert tallies.of_producer("default").acknowledged == MESSAGES


def each_partition() -> Iterator[None]:
    """One message in each partition."""
    yield
    producer = Producer(PRODUCER)
    for partition in range(MESSAGES):
        producer.produce(TOPIC, VALUE, partition=partition)
    producer.flush()


def raw_produce_batch() -> Iterator[None]:
    """The same loop as `raw_produce`: what `produce_batch` of ours is compared with."""
    yield from raw_produce()


def our_produce_batch() -> Iterator[None]:
    """`services.produce_batch`, 1,000 records at a time."""
    from django_kafka import services, tallies

    services.get_producer()
    records = [{"key": key, "value": VALUE} for key in keys()]
    yield
    for start in range(0, MESSAGES, 1000):
        services.produce_batch(TOPIC, records[start : start + 1000])
    assert services.flush(60) == 0
    assert tallies.of_producer("default").acknowledged == MESSAGES


def raw_consume() -> Iterator[None]:
    """`consume(500)` with the best properties found."""
    yield from _raw_consume(BEST_CONSUMER)


def raw_consume_plain() -> Iterator[None]:
    """`consume(500)` with the client's own defaults."""
    yield from _raw_consume(PLAIN_CONSUMER)


def _raw_consume(properties: dict[str, Any]) -> Iterator[None]:
    consumer = Consumer({**properties, "group.id": uuid.uuid4().hex})
    consumer.subscribe([TOPIC])
    taken = 0
    while not taken:
        taken = len(consumer.consume(500, 0.1))
    yield
    while taken < MESSAGES:
        for message in consumer.consume(500, 0.1):
            ignore(message)
            taken += 1


def our_consume() -> Iterator[None]:
    """A worker with a handler that does nothing, at least once, dead letters armed."""
    from django_kafka.consuming.worker import Worker

    worker = Worker("bench", max_messages=MESSAGES)
    worker.start()
    while not worker.tally.received:
        time.sleep(0.0005)
    yield
    worker.join()
    assert worker.tally.handled == MESSAGES, worker.error


CASES: dict[str, Callable[[], Iterator[None]]] = {
    made.__name__: made
    for made in (
        raw_produce, each_partition, our_produce, raw_produce_batch, our_produce_batch,
        raw_consume, raw_consume_plain, our_consume,
        failing.our_insert, failing.our_insert_failing, failing.our_letters, failing.our_paused_lanes,
    )
}  # fmt: skip


def main(name: str) -> None:
    """Run one case: what comes before its first `yield` is not measured, nor what comes after its second."""
    if name.startswith("our_"):
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
        django.setup()
    case = CASES[name]()
    next(case)
    started, cpu = time.perf_counter(), time.process_time()
    next(case, None)
    seconds = time.perf_counter() - started
    cpu = time.process_time() - cpu
    next(case, None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"per_second": MESSAGES / seconds, "peak_mib": peak, "cores": cpu / seconds}))


if __name__ == "__main__":
    main(sys.argv[1])
