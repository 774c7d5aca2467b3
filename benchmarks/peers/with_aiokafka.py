"""aiokafka: `send` with its futures gathered, and `getmany`. Runs in its own environment; imports nothing of ours."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from importlib.metadata import version

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

BROKERS, TOPIC, GROUP = os.environ["BENCH_BROKERS"], os.environ["BENCH_TOPIC"], os.environ["BENCH_GROUP"]
MESSAGES, KEYS, SIZE = (int(os.environ[f"BENCH_{name}"]) for name in ("MESSAGES", "KEYS", "SIZE"))


def ignore(message: object) -> None:
    """Handle a message by doing nothing."""


async def produce() -> float:
    """Send everything; return the seconds until the last is confirmed."""
    producer = AIOKafkaProducer(
        bootstrap_servers=BROKERS, acks="all", enable_idempotence=True, linger_ms=5, max_batch_size=1_000_000
    )
    await producer.start()
    keys, value = [b"key-%d" % (number % KEYS) for number in range(MESSAGES)], b"v" * SIZE
    started = time.perf_counter()
    waiting: list[asyncio.Future[object]] = []
    for key in keys:
        waiting.append(await producer.send(TOPIC, value, key))
        if len(waiting) == 10_000:
            await asyncio.gather(*waiting)
            waiting.clear()
    await asyncio.gather(*waiting)
    seconds = time.perf_counter() - started
    await producer.stop()
    return seconds


async def consume() -> float:
    """Take everything; return the seconds from the first messages on."""
    consumer = AIOKafkaConsumer(TOPIC, bootstrap_servers=BROKERS, group_id=GROUP, auto_offset_reset="earliest")
    await consumer.start()
    taken, started = 0, 0.0
    while taken < MESSAGES:
        for messages in (await consumer.getmany(timeout_ms=100)).values():
            started = started or time.perf_counter()
            for message in messages:
                ignore(message)
            taken += len(messages)
    seconds = time.perf_counter() - started
    await consumer.stop()
    return seconds


if __name__ == "__main__":
    took = asyncio.run({"produce": produce, "consume": consume}[sys.argv[1]]())
    print(json.dumps({"per_second": MESSAGES / took, "versions": {"aiokafka": version("aiokafka")}}))
