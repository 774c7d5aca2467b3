"""Consuming with handlers that do nothing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer

from .settings import BROKERS, MESSAGES, TOPIC

BEST_CONSUMER = {"bootstrap.servers": BROKERS, "auto.offset.reset": "earliest", "fetch.queue.backoff.ms": 5}
PLAIN_CONSUMER = {"bootstrap.servers": BROKERS, "auto.offset.reset": "earliest"}


def ignore(message: object) -> None:
    """Handle a message, or a list of them, by doing nothing."""


def raw_consume() -> Iterator[None]:
    """`consume(500)` with the best properties found."""
    yield from _raw_consume(BEST_CONSUMER)


def raw_consume_lists() -> Iterator[None]:
    """The same, each list handed on whole: the best that the bare client does."""
    yield from consume_lists(BEST_CONSUMER)


def consume_lists(properties: dict[str, Any]) -> Iterator[None]:
    """Consume lists and hand each on whole."""
    consumer, taken = _first(properties)
    yield
    while taken < MESSAGES:
        messages = consumer.consume(500, 0.1)
        ignore(messages)
        taken += len(messages)


def raw_consume_many_keys() -> Iterator[None]:
    """The same on messages of which each has a key of its own."""
    yield from _raw_consume(BEST_CONSUMER)


def raw_consume_plain() -> Iterator[None]:
    """`consume(500)` with the client's own defaults."""
    yield from _raw_consume(PLAIN_CONSUMER)


def _raw_consume(properties: dict[str, Any]) -> Iterator[None]:
    consumer, taken = _first(properties)
    yield
    while taken < MESSAGES:
        for message in consumer.consume(500, 0.1):
            ignore(message)
            taken += 1


def _first(properties: dict[str, Any]) -> tuple[Consumer, int]:
    """Return a consumer that has received its first messages, and how many those were."""
    consumer = Consumer({**properties, "group.id": uuid.uuid4().hex})
    consumer.subscribe([TOPIC])
    taken = 0
    while not taken:
        taken = len(consumer.consume(500, 0.1))
    return consumer, taken


def our_consume() -> Iterator[None]:
    """A worker with a handler that does nothing, at least once, dead letters armed."""
    yield from work()


def our_consume_many_keys() -> Iterator[None]:
    """The same with order by key."""
    yield from work()


def our_consume_batch() -> Iterator[None]:
    """The same with a handler that takes a list."""
    from django_kafka.handlers import kafka_handler

    kafka_handler(topics=TOPIC, consumer="bench", batch=True)(ignore)
    yield from work()


def work() -> Iterator[None]:
    """Run a worker until every message is handled; the clock starts with the first ones that arrive.

    It ends with the last one, as that of the raw client does: neither leaves its group on the clock.
    """
    from django_kafka.consuming.worker import Worker

    worker = Worker("bench", max_messages=MESSAGES)
    worker.start()
    while not worker.tally.received and worker.alive:
        time.sleep(0.0005)
    yield
    while worker.alive and worker.tally.handled + worker.tally.dead_lettered < MESSAGES:
        time.sleep(0.005)
    yield
    worker.join()
    assert worker.error is None, worker.error
    assert worker.tally.handled == MESSAGES, worker.tally.handled
