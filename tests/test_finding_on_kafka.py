"""Topics that patterns fit, found by workers on a real broker, under both protocols of groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Producer
from pytest_django import Settings

from django_kafka import handlers
from django_kafka.consuming.worker import Worker
from django_kafka.offsets.standing import Books
from tests.consuming import NAME
from tests.servers import Kafka
from tests.servers.processes import wait_until
from tests.test_finding import Topics
from tests.test_kafka_topics import create
from tests.test_offsets import PROTOCOLS


class Fleet:
    """Workers of a consumer that reads whatever begins with the name of a topic and a dot."""

    def __init__(self, kafka: Kafka, settings: Settings, topic: str, **consumer: Any) -> None:
        self.kafka, self.topic = kafka, topic
        self.seen = Topics()
        pattern = f"^{topic.replace('.', chr(92) + '.')}\\..*"
        one = {"group_id": topic, "find_topics_interval": "100ms", "auto_commit_interval": "200ms", **consumer}
        one |= {"topics": [pattern], "retry": {"max_retries": 0}}
        settings.KAFKA = {"brokers": kafka.address.split(","), "consumers": {NAME: one}}
        handlers.subscribe(pattern, self.seen, consumer=NAME)

    def make(self, name: str, *values: int) -> str:
        """Make a topic and send these values to it, each to a partition of its own."""
        topic = f"{self.topic}.{name}"
        create(self.kafka, topic, max(1, len(values)))
        self.send(topic, *values)
        return topic

    def send(self, topic: str, *values: int) -> None:
        """Send values to the partitions of a topic, one to each."""
        producer = Producer({"bootstrap.servers": self.kafka.address, "linger.ms": 1})
        for number, value in enumerate(values):
            producer.produce(topic, str(value).encode(), partition=number)
        assert producer.flush(20) == 0

    def delete(self, topic: str) -> None:
        """Delete a topic."""
        admin = self.kafka.admin()  # held until the answer is there
        admin.delete_topics([topic], operation_timeout=30)[topic].result(30)

    @contextmanager
    def at_work(self, count: int = 1) -> Iterator[list[Worker]]:
        """Run workers, and stop them in the end."""
        workers = [Worker(NAME) for _turn in range(count)]
        for worker in workers:
            worker.start()
        try:
            yield workers
        finally:
            self.stop(workers)
        assert not [worker.error for worker in workers if worker.error]

    def stop(self, workers: list[Worker]) -> None:
        """Stop workers and wait for their end."""
        for worker in workers:
            worker.stop()
        for worker in workers:
            wait_until(lambda one=worker: one.join(0.1), message="the worker did not end")  # type: ignore[misc]
            worker.close()


@pytest.fixture(params=PROTOCOLS)
def fleet(
    request: pytest.FixtureRequest,
    kafka: Kafka,
    settings: Settings,
    topic: Callable[..., str],
    transactional_db: None,
) -> Iterator[Fleet]:
    found = Fleet(kafka, settings, topic(), **PROTOCOLS[request.param])
    yield found
    handlers.forget(found.seen)


def test_topics_that_come_while_workers_run_are_shared_out_and_read_from_their_beginnings(fleet: Fleet) -> None:
    first = fleet.make("eu", 1, 2)
    with fleet.at_work(2) as workers:
        fleet.seen.wait(2)
        second = fleet.make("us", 3, 4, 5)
        fleet.seen.wait(5)
        places = [(topic, number) for topic, count in ((first, 2), (second, 3)) for number in range(count)]
        wait_until(lambda: all(sum(one.owns(place) for one in workers) == 1 for place in places))
        fleet.send(first, 6, 7)
        fleet.seen.wait(7)
    assert sorted(fleet.seen.values) == [1, 2, 3, 4, 5, 6, 7]
    stand = Books(NAME).stand()
    assert {one.place: one.lag for one in stand.partitions} == dict.fromkeys(places, 0)


def test_a_topic_that_is_deleted_stops_no_worker_and_is_found_again(fleet: Fleet) -> None:
    kept, gone = fleet.make("eu", 1), fleet.make("us", 2)
    with fleet.at_work() as [worker]:
        fleet.seen.wait(2)
        fleet.delete(gone)
        wait_until(lambda: not worker.owns((gone, 0)))
        fleet.send(kept, 3)
        fleet.seen.wait(3)
        fleet.make("us", 4)
        fleet.seen.wait(4)
        # The last one goes, and the worker waits for another.
        for topic in (kept, gone):
            fleet.delete(topic)
        wait_until(lambda: not (worker.owns((gone, 0)) or worker.owns((kept, 0))))
        wait_until(lambda: worker.vitals().state == "running")
        fleet.make("uk", 5)
        fleet.seen.wait(5)
    assert sorted(fleet.seen.values) == [1, 2, 3, 4, 5]
