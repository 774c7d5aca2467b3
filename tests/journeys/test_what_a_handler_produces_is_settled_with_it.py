"""A message is settled when every record that its handler produced is acknowledged, and not before."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import QUICK, numbered, read, wait_committed
from tests.servers import Kafka
from tests.servers.processes import wait_until

FORWARD = "tests.app.scenes.forward"


def numbers(project: Project, topic: str) -> list[int]:
    """The numbers in a topic."""
    return sorted(json.loads(message.value() or b"{}")["n"] for message in read(project, topic))


@pytest.mark.parametrize("transaction", ["message", "none"])
def test_each_handled_message_has_its_record(project: Project, topic: Callable[..., str], transaction: str) -> None:
    name, other = project.create_topic(topic(), partitions=2), project.create_topic(topic("onward"))
    project.consumer("journey", name, FORWARD, transaction=transaction, concurrency=2)
    project.kafka["producers"] = {"default": {}}
    project.produce(numbered(200, to=other), name)
    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    worker.send_signal(signal.SIGTERM)

    assert worker.finish() == 0
    assert numbers(project, other) == list(range(200))
    project.assert_ledger(name, settled=True, once=True)


def test_a_handler_that_fails_after_it_produced_has_produced_nothing(
    project: Project, topic: Callable[..., str]
) -> None:
    name, other = project.create_topic(topic()), project.create_topic(topic("onward"))
    project.consumer("journey", name, FORWARD)
    project.kafka["producers"] = {"default": {}}
    records = numbered(20, to=other)
    records[7]["value"]["raise"] = "ValueError"
    project.produce(records, name)
    project.run("kafka_consume", "--until-empty")

    assert numbers(project, other) == [number for number in range(20) if number != 7]
    assert [letter["offset"] for letter in project.letters()] == [7]
    project.assert_ledger(name, settled=True, once=True)


@pytest.fixture(scope="module")
def second() -> Iterator[Kafka]:
    """A cluster that records go to, so that offsets can be committed while it is down."""
    with Kafka(heap="384m") as cluster:
        yield cluster


@pytest.mark.parametrize("end", ["nothing", "stop", "kill"])
def test_an_offset_waits_until_the_broker_has_the_records(
    project: Project, topic: Callable[..., str], second: Kafka, end: str
) -> None:
    second.start()
    name, other = project.create_topic(topic(), partitions=2), topic("onward")
    onward = Project(cluster=second, server=project.server, database=project.database, directory=project.directory)
    onward.create_topic(other)
    project.consumer("journey", name, FORWARD, concurrency=2, **QUICK)
    project.kafka["clusters"] = {"second": {"brokers": [second.address], "connection": {"timeout": "3s"}}}
    project.kafka["producers"] = {"default": {"cluster": "second"}}
    project.produce(numbered(10, to=other), name)
    worker = project.manage("kafka_consume")
    wait_committed(project, name)
    before = project.committed(name)

    second.kill()
    project.produce(numbered(110, to=other)[100:], name)
    wait_until(lambda: any(effect.payload["n"] >= 100 for effect in project.effects(name)))
    handled = time.monotonic()
    if end == "stop":
        worker.send_signal(signal.SIGTERM)
        assert worker.finish() == 0
        assert "undelivered=" in worker.output(), "What was not delivered is reported."
    else:
        # Time enough for several commits.
        wait_until(lambda: time.monotonic() - handled > 1)
    if end == "kill":
        worker.kill()
        worker.wait(10)
    assert project.committed(name) == before, "What is not acknowledged is not committed."
    second.start()
    if end != "nothing":
        worker = project.manage("kafka_consume")
    wait_committed(project, name)
    worker.send_signal(signal.SIGTERM)

    assert worker.finish() == 0
    assert set(numbers(onward, other)) == {*range(10), *range(100, 110)}
    project.assert_ledger(name, settled=True, once=end == "nothing")
