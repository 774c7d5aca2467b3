"""Latency from end to end at 1,000 messages a second, and the time from exec to the first message."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer

from .consuming import BEST_CONSUMER
from .settings import BROKERS, DIRECTORY, MESSAGES, TOPIC

A_SECOND = 1000
"""Messages that are sent a second."""
WARMING = 0.1
"""The share of the first messages that do not count: connections and caches are made with them."""
DELAYS: list[int] = []
"""Nanoseconds from sending to handling."""
PATIENCE = 120.0


def take(message: Any) -> None:
    """Note how old a message is."""
    DELAYS.append(time.time_ns() - int(message.raw_value))


def raw_latency() -> Generator[None, None, dict[str, Any]]:
    """`poll`, message by message, which is as quick as it gets: `consume(500, 0.005)` waits for more to come."""
    consumer = Consumer({**BEST_CONSUMER, "group.id": uuid.uuid4().hex})
    consumer.subscribe([TOPIC])
    _until(lambda: consumer.consume(1, 0.1) or consumer.assignment(), "partitions are assigned")
    with _sending() as sender:
        yield
        while len(DELAYS) < MESSAGES:
            if (message := consumer.poll(0.1)) is not None:
                DELAYS.append(time.time_ns() - int(message.value()))
            assert sender.poll() in (None, 0), "The sender failed."
        yield
    return percentiles(DELAYS)


def our_latency() -> Generator[None, None, dict[str, Any]]:
    """A worker as it comes."""
    from django_kafka.consuming.worker import Worker

    worker = Worker("bench")
    worker.start()
    _until(lambda: len(worker.lanes), "partitions are assigned")
    with _sending() as sender:
        yield
        _until(lambda: len(DELAYS) >= MESSAGES or sender.poll(), "every message is handled")
        yield
    worker.stop()
    worker.join()
    assert len(DELAYS) >= MESSAGES, "The sender failed."
    return percentiles(DELAYS)


def percentiles(delays: list[int]) -> dict[str, float]:
    """Return the middle and the 99th percentile in milliseconds, without the first ones."""
    cuts = statistics.quantiles(delays[int(len(delays) * WARMING) :], n=100)
    return {"p50_ms": cuts[49] / 1e6, "p99_ms": cuts[98] / 1e6}


def _sending() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "benchmarks.latency", "send"])


def send() -> None:
    """Send messages that hold the time, evenly."""
    producer = Producer({"bootstrap.servers": BROKERS, "linger.ms": 0, "acks": "all"})
    producer.list_topics(TOPIC)
    began = time.perf_counter()
    for number in range(MESSAGES):
        if (early := began + number / A_SECOND - time.perf_counter()) > 0:
            time.sleep(early)
        producer.produce(TOPIC, b"%d" % time.time_ns(), b"key-%d" % (number % 1000))
        producer.poll(0)
    producer.flush()


def tell_and_end(message: object) -> None:
    """Note when the first message came, and end the worker."""
    note = Path(DIRECTORY, "first")
    if not note.exists():
        note.write_text(str(time.time_ns()))
        os.kill(os.getpid(), signal.SIGTERM)


def first() -> None:
    """Be a raw consumer until its first message."""
    consumer = Consumer({**BEST_CONSUMER, "group.id": uuid.uuid4().hex})
    consumer.subscribe([TOPIC])
    while (message := consumer.poll(0.1)) is None:
        pass
    Path(DIRECTORY, "first").write_text(str(time.time_ns()))
    assert message.error() is None


def raw_start() -> Generator[None, None, dict[str, Any]]:
    """A process with a raw consumer, from exec to its first message."""
    return (yield from _start("benchmarks.latency", "first"))


def our_start() -> Generator[None, None, dict[str, Any]]:
    """`kafka_consume`, from exec to the first handled message."""
    return (yield from _start("django", "kafka_consume", "bench"))


def _start(*arguments: str) -> Generator[None, None, dict[str, Any]]:
    note = Path(DIRECTORY, "first")
    yield
    began = time.time_ns()
    with subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL) as program:
        _until(lambda: note.exists() or program.poll() is not None, "the first message is handled")
        yield
        assert program.wait(PATIENCE) == 0, f"{arguments[0]} ended with code {program.returncode}."
    return {"seconds": (int(note.read_text()) - began) / 1e9}


def _until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{PATIENCE:g} s passed before {what}.")
        time.sleep(0.002)


if __name__ == "__main__":
    {"send": send, "first": first}[sys.argv[1]]()
