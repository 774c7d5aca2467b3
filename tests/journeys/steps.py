"""What journeys do again and again: wait for a state of the books, and read what is in a topic."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from tests.journeys.project import Project, Sent
from tests.servers.processes import Program, wait_until

ASSIGNED = " assigned="
QUICK = {"session_timeout": "6s", "heartbeat_interval": "1s"}
"""For a consumer whose workers are killed: the shortest session that the broker allows."""


def numbered(count: int, *, keys: int = 10, **more: Any) -> list[dict[str, Any]]:
    """Records with consecutive numbers and so many different keys."""
    return [{"key": f"key-{number % keys}", "value": {"n": number, **more}} for number in range(count)]


def wait_committed(project: Project, topic: str, seconds: float = 30, group: str | None = None) -> None:
    """Wait until the group has committed everything that was sent to a topic."""
    wait_until(lambda: project.all_committed(topic, group), seconds, f"{topic} was not committed", every=0.2)


def wait_effects(project: Project, topic: str, count: int, seconds: float = 30) -> None:
    """Wait until so many effects are there."""
    wait_until(lambda: project.count_effects(topic) >= count, seconds, f"{count} effects are not there")


def wait_letters(project: Project, topic: str, count: int, seconds: float = 30) -> None:
    """Wait until so many dead letters are there."""
    wait_until(lambda: project.count_letters(topic) >= count, seconds, f"{count} dead letters are not there")


def wait_said(program: Program, words: str, seconds: float = 30, times: int = 1) -> None:
    """Wait until a process has said something."""

    def said() -> bool:
        assert program.poll() is None or program.output().count(words) >= times, (
            f"It ended with code {program.returncode} and never said {words!r}:\n{program.output()[-4000:]}"
        )
        return program.output().count(words) >= times

    wait_until(said, seconds, f"It never said {words!r}:\n{program.output()[-4000:]}")


def assigned(program: Program, topic: str, partition: int = 0) -> bool:
    """Whether a worker has a partition now, by what it said last about it."""
    has = False
    for line in program.output().splitlines():
        if f"{topic}[{partition}]" in line:
            if ASSIGNED in line:
                has = True
            elif " revoked=" in line or " lost=" in line:
                has = False
    return has


def read(project: Project, topic: str) -> list[Message]:
    """Return every record of a topic, in the order of its offsets, partition by partition."""
    numbers = project.cluster.admin().list_topics(topic, timeout=30).topics[topic].partitions
    consumer = Consumer(
        {"bootstrap.servers": project.cluster.address, "group.id": "nobody", "enable.auto.commit": False}
    )
    try:
        ends = {}
        for number in numbers:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
            ends[number] = high - low
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in numbers])
        found: list[Message] = []
        deadline = time.monotonic() + 30
        while len(found) < sum(ends.values()):
            assert time.monotonic() < deadline, f"{len(found)} of {ends} records read."
            found += [message for message in consumer.consume(500, 0.2) if message.error() is None]
    finally:
        consumer.close()
    return sorted(found, key=lambda message: (message.partition(), message.offset()))


def note(project: Project, messages: Iterable[Message]) -> None:
    """Write records that a process of the project sent into the ledger."""
    project.ledger += [
        Sent(
            topic=str(message.topic()),
            partition=int(message.partition() or 0),
            offset=int(message.offset() or 0),
            key=message.key(),
            value=message.value(),
        )
        for message in messages
    ]


def execute(project: Project, statement: str) -> None:
    """Run one statement in the project's database."""
    with psycopg.connect(project.dsn, autocommit=True) as connection:
        connection.execute(statement)


def query(project: Project, statement: str) -> list[Any]:
    """Return the rows of one statement in the project's database."""
    with psycopg.connect(project.dsn, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def in_order(project: Project, topic: str, ordering: str = "partition") -> None:
    """Fail unless the first effects of every partition, or of every key of it, came in the order of its offsets."""
    seen: dict[tuple[int, str | None], list[int]] = {}
    for effect in project.effects(topic):
        offsets = seen.setdefault((effect.partition, effect.key if ordering == "key" else None), [])
        if effect.offset not in offsets:
            offsets.append(effect.offset)
    for (partition, key), offsets in seen.items():
        assert offsets == sorted(offsets), f"Partition {partition}, key {key}, was handled out of order: {offsets}"
