"""`kafka_consume` as a command: how many messages, until when, and what it says to wrong input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import numbered


@pytest.mark.parametrize("concurrency", [1, 3])
def test_max_messages_is_exact(project: Project, topic: Callable[..., str], concurrency: int) -> None:
    name = project.create_topic(topic(), partitions=3)
    project.consumer("journey", name, concurrency=concurrency, max_in_flight=7)
    project.produce(numbered(100), name)

    project.run("kafka_consume", "--max-messages", 23)
    assert len(project.effects(name)) == 23
    assert sum(project.committed(name).values()) == 23
    project.run("kafka_consume", "--max-messages", 10)
    assert len(project.effects(name)) == 33
    project.run("kafka_consume", "--max-messages", 1000, "--until-empty")

    project.assert_ledger(name, settled=True, once=True)


def test_the_last_of_max_messages_may_run_longer_than_the_poll_interval(
    project: Project, topic: Callable[..., str]
) -> None:
    name = project.create_topic(topic())
    project.consumer(
        "journey", name, "tests.app.handlers.slow",
        options={"session.timeout.ms": 6000, "max.poll.interval.ms": 6000},
    )  # fmt: skip
    project.produce(numbered(3, seconds=8), name)
    worker = project.manage("kafka_consume", "--max-messages", 1)

    assert worker.finish() == 0
    assert project.committed(name) == {0: 1}
    assert len(project.effects(name)) == 1
    project.assert_ledger(name, once=True)


def test_until_empty_reads_many_partitions_to_their_ends(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=12)
    project.consumer("journey", name, concurrency=2)
    project.produce(numbered(3000, keys=100), name)

    project.run("kafka_consume", "--until-empty")
    project.assert_ledger(name, settled=True, once=True)
    project.run("kafka_consume", "--until-empty")
    assert len(project.effects(name)) == 3000
    project.produce(numbered(10, keys=1), name)
    project.run("kafka_consume", "--until-empty")

    project.assert_ledger(name, settled=True, once=True)


def test_until_empty_ends_on_an_empty_topic(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name)
    project.run("kafka_consume", "--until-empty")

    project.produce(numbered(5), name)
    project.run("kafka_consume", "--until-empty")
    project.assert_ledger(name, settled=True, once=True)


def test_more_workers_than_partitions_leave_nothing_until_empty(project: Project, topic: Callable[..., str]) -> None:
    name = project.create_topic(topic(), partitions=2)
    project.consumer("journey", name, "tests.app.handlers.slow")
    project.produce(numbered(400, seconds=0.005), name)
    workers = [project.manage("kafka_consume", "--until-empty") for _ in range(4)]

    assert [worker.finish(60) for worker in workers] == [0] * 4

    project.assert_ledger(name, settled=True)


REFUSED: list[tuple[dict[str, Any], list[str], str]] = [
    ({}, ["nobody"], "no 'nobody'; it has: journey"),
    ({"enabled": False}, [], "no enabled consumer"),
    ({"deduplicate": "id"}, [], "deduplicate"),
    ({"handler": None, "topics": ["a"]}, [], "has no handler"),
    ({"options": {"no.such.property": 1}}, [], "no.such.property"),
    ({"options": {"group.protocol": "consumer", "session.timeout.ms": 6000}}, [], "session.timeout.ms"),
]
"""What is changed in the settings, the arguments, and words of the sentence; the rest is in test_kafka_consume.py."""


@pytest.mark.parametrize(("settings", "arguments", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_wrong_input_gets_a_sentence(
    project: Project, settings: dict[str, Any], arguments: list[str], words: str
) -> None:
    project.consumer("journey", "a")
    project.kafka["consumers"]["journey"] |= settings

    worker = project.manage("kafka_consume", *arguments)

    assert worker.finish() != 0
    assert words in worker.output()
    assert "Traceback" not in worker.output()
