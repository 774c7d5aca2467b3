"""FastStream on confluent-kafka: `publish` with its futures gathered, and a subscriber. Runs in its own environment."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from importlib.metadata import version
from typing import Any

from faststream.confluent import KafkaBroker

BROKERS, TOPIC, GROUP = os.environ["BENCH_BROKERS"], os.environ["BENCH_TOPIC"], os.environ["BENCH_GROUP"]
MESSAGES, KEYS, SIZE = (int(os.environ[f"BENCH_{name}"]) for name in ("MESSAGES", "KEYS", "SIZE"))


def broker() -> KafkaBroker:
    """Return a broker with the properties of the others, as far as it lets one choose."""
    return KafkaBroker(
        BROKERS,
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        partitioner="murmur2_random",
        config={"fetch.queue.backoff.ms": 5} if sys.argv[1] == "consume" else {"batch.size": 1_000_000},
        log_level=logging.WARNING,
    )


async def produce() -> float:
    """Send everything; return the seconds until the last is confirmed."""
    keys, value = [b"key-%d" % (number % KEYS) for number in range(MESSAGES)], b"v" * SIZE
    async with broker() as connected:
        started = time.perf_counter()
        waiting: list[Any] = []
        for key in keys:
            waiting.append(await connected.publish(value, TOPIC, key=key, no_confirm=True))
            if len(waiting) == 10_000:
                await asyncio.gather(*waiting)
                waiting.clear()
        await asyncio.gather(*waiting)
        return time.perf_counter() - started


async def consume() -> float:
    """Take everything; return the seconds from the first message on."""
    connected = broker()
    taken, began, over = 0, 0.0, asyncio.Event()

    @connected.subscriber(TOPIC, group_id=GROUP, auto_offset_reset="earliest")  # type: ignore[untyped-decorator]
    async def ignore(body: bytes) -> None:
        nonlocal taken, began
        began = began or time.perf_counter()
        taken += 1
        if taken == MESSAGES:
            over.set()

    async with connected:
        await connected.start()
        await over.wait()
        return time.perf_counter() - began


if __name__ == "__main__":
    took = asyncio.run({"produce": produce, "consume": consume}[sys.argv[1]]())
    print(json.dumps({"per_second": MESSAGES / took, "versions": {"FastStream": version("faststream")}}))
