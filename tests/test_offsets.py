"""Moving groups on a real broker: who is in the way, and what is handled again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from pytest_django import Settings

from django_kafka import handlers
from django_kafka.clients.groups import GroupInUse
from django_kafka.consuming.worker import Worker
from django_kafka.exceptions import ConfigurationError
from django_kafka.offsets import resetting
from django_kafka.offsets.standing import Books
from tests.consuming import NAME, Seen
from tests.servers import Kafka
from tests.servers.processes import wait_until
from tests.test_kafka_offsets import offsets, refused, told
from tests.test_kafka_topics import create

PROTOCOLS: dict[str, dict[str, Any]] = {
    "classic": {"session_timeout": "6s", "heartbeat_interval": "500ms"},
    "consumer": {"options": {"group.protocol": "consumer"}},
}


class Airport:
    """A consumer on a topic with three partitions of a real cluster, and what was sent to it."""

    def __init__(self, kafka: Kafka, settings: Settings, topic: str, **consumer: Any) -> None:
        self.kafka, self.topic = kafka, topic
        self.sent: dict[tuple[int, int], datetime] = {}
        self.seen = Seen()
        create(kafka, topic, 3)
        one = {"group_id": topic, "topics": {topic: {}}, **consumer}
        settings.KAFKA = {"client_id": "gate-7", "brokers": kafka.address.split(","), "consumers": {NAME: one}}
        handlers.subscribe(topic, self.seen, consumer=NAME)

    def send(self, count: int) -> None:
        """Send messages one second apart, the last one just now, and note what the broker acknowledged."""
        producer = Producer({"bootstrap.servers": self.kafka.address, "linger.ms": 1})
        now = round(time.time() * 1000)
        for number in range(count):
            at = now - (count - 1 - number) * 1000
            producer.produce(self.topic, b"{}", partition=number % 3, timestamp=at, on_delivery=self._note)
        assert producer.flush(20) == 0

    def _note(self, error: Any, message: Any) -> None:
        assert error is None
        place = message.partition(), message.offset()
        self.sent[place] = datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC)

    def handled(self) -> list[tuple[int, int]]:
        """Run a worker until nothing is left, and return what it handled."""
        before = len(self.seen.places)
        worker = Worker(NAME, until_empty=True)
        worker.start()
        wait_until(lambda: worker.join(0.1), message="the worker did not end")
        worker.close()
        return sorted(self.seen.places[before:])


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def airport(
    kafka: Kafka, settings: Settings, topic: Callable[..., str], transactional_db: None, protocol: str
) -> Iterator[Airport]:
    place = Airport(kafka, settings, topic("flights"), **PROTOCOLS[protocol])
    place.send(30)
    yield place
    handlers.forget(place.seen)


def test_after_a_reset_to_a_time_exactly_the_messages_from_there_are_handled_again(airport: Airport) -> None:
    assert airport.handled() == sorted(airport.sent)
    at = sorted(airport.sent.values())[20]

    offsets(NAME, f"--to-time={at.isoformat()}", "--execute", "--no-input")

    assert airport.handled() == sorted(place for place, sent in airport.sent.items() if sent >= at)
    assert len([place for place, sent in airport.sent.items() if sent >= at]) == 10


def test_while_a_worker_is_in_the_group_nothing_moves(airport: Airport, protocol: str) -> None:
    worker = Worker(NAME)
    worker.start()
    try:
        airport.seen.wait(30)
        wait_until(lambda: "gate-7 at 127.0.0.1" in offsets(), message="its partitions are not shown")

        one = told()
        assert (one["state"], one["protocol"]) == ("stable", protocol)
        (member,) = one["members"]
        assert (member["client_id"], member["host"], member["partitions"]) == ("gate-7", "127.0.0.1", 3)
        assert {row["member"] for row in one["partitions"]} == {member["id"]}
        assert refused(NAME, "--to-earliest", "--execute") == (
            f"Group '{airport.topic}' is in use; stop these first, and try again when they are gone: "
            "member gate-7 at 127.0.0.1."
        )
        # Kafka refuses by itself what comes to it while the group has members: none can slip in after the look.
        books = Books(NAME)
        with pytest.raises(GroupInUse, match="has members"):
            resetting.carry_out(books, resetting.plan(books, books.stand(), resetting.Earliest()), user="me")
    finally:
        worker.stop()
        wait_until(lambda: worker.join(0.1), message="the worker did not end")
        worker.close()
    assert {row["committed"] for row in told()["partitions"]} == {10}


@pytest.mark.parametrize("protocol", ["classic"], indirect=True)
def test_every_target_is_where_the_group_stands_afterwards(airport: Airport) -> None:
    def at(*arguments: str) -> list[int]:
        return [row["now"] for row in told(NAME, "--execute", "--no-input", *arguments)["moves"]]

    assert told()["state"] == "none"
    assert at("--to-latest") == [10, 10, 10]
    assert at("--shift=-3", "--partition=0", "--partition=2") == [7, 7]
    assert at("--to-offset=0", "--partition=0") == [0]
    since = sorted(airport.sent.values())[16]
    assert at(f"--to-time={since.isoformat()}") == [6, 5, 5]
    assert at("--to-earliest") == [0, 0, 0]
    assert told()["state"] == "empty"


@pytest.mark.parametrize("protocol", ["classic"], indirect=True)
def test_what_brokers_have_deleted_cannot_be_gone_back_to(airport: Airport) -> None:
    offsets(NAME, "--to-offset=2", "--execute", "--no-input")
    delete_before(airport, 4)

    said = offsets()
    assert f"{airport.topic}[0]: offset 2 is not in its log any more" in said
    assert [row["lag"] for row in told()["partitions"]] == [6, 8, 8]
    assert refused(NAME, "--to-offset=3").startswith(f"{airport.topic}[0] has offsets from 4 to 10 (its end), not 3.")
    assert f"{airport.topic}[0] begins at 4: it goes there, not to 1." in offsets(NAME, "--shift=-1")
    assert f"{airport.topic}[0] begins with a message of that time or later" in offsets(NAME, "--to-time=1h")


@pytest.mark.parametrize("protocol", ["classic"], indirect=True)
def test_a_group_that_somebody_else_moves_meanwhile_is_said(airport: Airport) -> None:
    class Meddled(Books):
        def commit(self, offsets: Any) -> None:
            super().commit(offsets)
            super().commit({(airport.topic, 1): 3})

    books = Meddled(NAME)
    with pytest.raises(ConfigurationError, match=r"\[1\] nothing -> 10, but it is at 3\."):
        resetting.carry_out(books, resetting.plan(books, books.stand(), resetting.Latest()), user="me")


def delete_before(airport: Airport, offset: int) -> None:
    """Delete the messages of the first partition up to an offset."""
    wanted = [TopicPartition(airport.topic, 0, offset)]
    admin = airport.kafka.admin()  # held until the answer is there
    (answer,) = admin.delete_records(wanted, operation_timeout=20).values()
    answer.result(20)
