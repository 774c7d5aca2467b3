"""RegioHelden's django-kafka: a topic that produces and a consumer class. Runs in its own environment."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any

import django
from django.conf import settings

BROKERS, TOPIC, GROUP = os.environ["BENCH_BROKERS"], os.environ["BENCH_TOPIC"], os.environ["BENCH_GROUP"]
MESSAGES, KEYS, SIZE = (int(os.environ[f"BENCH_{name}"]) for name in ("MESSAGES", "KEYS", "SIZE"))

settings.configure(
    SECRET_KEY="benchmarks",
    INSTALLED_APPS=["django_kafka"],
    DJANGO_KAFKA={
        "GLOBAL_CONFIG": {"bootstrap.servers": BROKERS},
        "PRODUCER_CONFIG": {
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "partitioner": "murmur2_random",
        },
    },
)
django.setup()

from django_kafka.consumer import Consumer, Topics  # type: ignore[attr-defined]  # noqa: E402
from django_kafka.topic import Topic  # type: ignore[attr-defined]  # noqa: E402

from django_kafka import kafka  # noqa: E402


class Bench(Topic):  # type: ignore[misc]
    """The topic, and a handler that does nothing."""

    name = TOPIC
    taken = 0
    started = 0.0

    def consume(self, msg: Any) -> None:
        """Count, so that the end is seen."""
        if not Bench.taken:
            Bench.started = time.perf_counter()
        Bench.taken += 1


class Reader(Consumer):  # type: ignore[misc]
    """As its documentation has it, with the best property that we know for the client below."""

    topics = Topics(Bench())
    config = {
        "group.id": GROUP,
        "auto.offset.reset": "earliest",
        "enable.auto.offset.store": False,
        "fetch.queue.backoff.ms": 5,
    }


class Enough:
    """Tells the consumer to stop."""

    def is_set(self) -> bool:
        """Tell whether every message was taken."""
        return Bench.taken >= MESSAGES


def produce() -> float:
    """Send everything; return the seconds until the last is confirmed."""
    topic, confirmed = Bench(), 0
    keys, value = [f"key-{number % KEYS}" for number in range(MESSAGES)], "v" * SIZE

    def count(error: Any, _message: Any) -> None:
        nonlocal confirmed
        assert error is None
        confirmed += 1

    started = time.perf_counter()
    for key in keys:
        while True:
            try:
                topic.produce(value, key=key, on_delivery=count)
                break
            except BufferError:
                kafka.producer.poll(0.1)
    kafka.producer.flush()
    seconds = time.perf_counter() - started
    assert confirmed == MESSAGES
    return seconds


def consume() -> float:
    """Take everything; return the seconds from the first message on."""
    ended = 0.0
    reader = Reader()
    close = reader.stop

    def stop() -> None:
        nonlocal ended
        ended = time.perf_counter()
        close()

    reader.stop = stop
    reader.start(Enough())
    return ended - Bench.started


if __name__ == "__main__":
    took = {"produce": produce, "consume": consume}[sys.argv[1]]()
    print(
        json.dumps({"per_second": MESSAGES / took, "versions": {"RegioHelden django-kafka": version("django-kafka")}})
    )
