"""`guarantee: "effect_once"` in SQLite: workers are killed, and come and go, at moments drawn by chance."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from django_kafka.clients.embedded import Cluster
from tests.desk import Desk
from tests.servers.processes import wait_until

PARTITIONS, MESSAGES, KEYS = 3, 1200, 12
SECONDS, BAD = 0.005, 60
"""How long a handler takes in mid-transaction, and every how many messages it fails for good."""


@pytest.fixture
def desk_with(embedded: Cluster, tmp_path: Path, topic: Callable[..., str]) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(**options: Any) -> Desk:
        name = topic()
        embedded.create_topic(name, PARTITIONS)
        soon = {"session_timeout": "1500ms", "heartbeat_interval": "300ms"}
        desk = Desk.on_sqlite(
            tmp_path, brokers=embedded.bootstrap_servers, topic=name,
            options={"guarantee": "effect_once", **soon, **options},
            # What was killed is known to be dead before anything of it begins again.
            kafka={"heartbeats": {"interval": "500ms"}, "connection": {"timeout": "1s"}},
        )  # fmt: skip
        desks.append(desk)
        return desk

    yield make
    for desk in desks:
        desk.close()


def send(desk: Desk) -> set[tuple[int, int]]:
    """Send all messages, of which some are bad; return where those are."""
    producer = Producer({"bootstrap.servers": desk.brokers, "log_level": 0})
    bad = set()
    for number in range(MESSAGES):
        offset, partition = divmod(number, PARTITIONS)
        value = {"seconds": SECONDS, "bad": number % BAD == BAD // 2}
        producer.produce(desk.topic, json.dumps(value), key=f"key-{offset % KEYS}", partition=partition)
        if value["bad"]:
            bad.add((partition, offset))
    assert producer.flush(20) == 0
    return bad


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, {"transaction": "message"}),
        (2, {"transaction": "batch", "ordering": "key", "concurrency": 2}),
    ],
)
def test_kills_and_rebalances_leave_each_effect_once(
    desk_with: Callable[..., Desk], seed: int, options: dict[str, Any]
) -> None:
    def effects() -> list[tuple[Any, ...]]:
        return desk.rows('SELECT partition, "offset" FROM tests_effect')

    desk, chance = desk_with(**options), random.Random(seed)
    bad, epochs = send(desk), "SELECT coalesce(sum(epoch), 0) FROM lynx_kafka_claim"
    workers = [desk.start("kafka_consume")]
    ends = ["kill", "kill", "terminate"]
    chance.shuffle(ends)
    for end in ends:
        before = desk.rows(epochs)
        workers.append(desk.start("kafka_consume"))
        # Partitions have come to it, and so much more is done; then a moment that has nothing to do with either.
        goal = min(len(effects()) + chance.randint(20, 120), MESSAGES - len(bad))
        desk.wait_until(
            lambda before=before, goal=goal: (  # type: ignore[misc]
                desk.rows(epochs) > before and len(effects()) >= goal
            ),
            workers[-1],
        )
        time.sleep(chance.random() * 0.3)
        leaves = workers.pop(chance.randrange(2))
        getattr(leaves, end)()
        leaves.wait(30)
        assert max(Counter(effects()).values()) == 1
    claimed = 'SELECT "offset" FROM lynx_kafka_claim'
    wait_until(lambda: desk.rows(claimed) == [(MESSAGES // PARTITIONS,)] * PARTITIONS, 60)
    for worker in workers:
        worker.terminate()
        assert worker.wait(30) == 0, worker.output()

    every = {(number % PARTITIONS, number // PARTITIONS) for number in range(MESSAGES)}
    assert sorted(effects()) == sorted(every - bad), "each effect is there, and once"
    letters = desk.rows('SELECT partition, "offset", attempts FROM lynx_kafka_deadletter')
    assert sorted(letters) == sorted((*place, 1) for place in bad)
