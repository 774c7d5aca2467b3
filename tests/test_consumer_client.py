from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from django_kafka.clients.consumer import ConsumerClient, is_fatal
from django_kafka.clients.embedded import Cluster
from django_kafka.clients.events import Events
from django_kafka.clients.sizes import size_of
from django_kafka.exceptions import ConfigurationError
from tests.servers.processes import wait_until
from tests.test_handling import send_with_raw_header


class Noted(Events):
    """Keeps what the client tells; raises what it is told to raise."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def note(self, *what: Any) -> None:
        self.told.append(what)
        if self.error is not None:
            raise self.error

    def assigned(self, places: list[tuple[str, int]]) -> None:
        self.note("assigned", sorted(places))

    def revoked(self, places: list[tuple[str, int]], lost: bool) -> None:
        self.note("revoked", sorted(places), lost)

    def at_end(self, place: tuple[str, int]) -> None:
        self.note("at_end", place)

    def committed(self, offsets: Mapping[tuple[str, int], int], refused: str | None, sentence: str) -> None:
        self.note("committed", dict(offsets), refused)

    def trouble(self, code: str, sentence: str, topic: str | None) -> None:
        self.note("trouble", code, topic)


class Bench:
    """A client on a topic with two partitions of ten messages each."""

    def __init__(self, cluster: Cluster, topic: str) -> None:
        self.cluster = cluster
        self.topic = topic
        self.events = Noted()
        self.clients: list[ConsumerClient] = []
        cluster.create_topic(topic, 2)
        producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
        for number in range(20):
            producer.produce(topic, str(number // 2).encode(), partition=number % 2)
        assert producer.flush(10) == 0

    def client(self, **options: Any) -> ConsumerClient:
        properties = {
            "bootstrap.servers": self.cluster.bootstrap_servers,
            "group.id": self.topic,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 1500,
            **options,
        }
        client = ConsumerClient("ops", properties, self.events)
        self.clients.append(client)
        client.subscribe([self.topic])
        return client

    def fetch(self, client: ConsumerClient, count: int, seconds: float = 15) -> list[Any]:
        deadline, found = time.monotonic() + seconds, []
        while len(found) < count and time.monotonic() < deadline:
            found += client.fetch(count - len(found), 0.1)
        return found

    def close(self, client: ConsumerClient) -> None:
        self.clients.remove(client)
        client.close()


@pytest.fixture
def bench(embedded: Cluster, topic: Callable[..., str]) -> Iterator[Bench]:
    made = Bench(embedded, topic("t"))
    yield made
    for client in made.clients:
        client.close()


def test_messages_are_sorted_by_partition_each_in_its_order(bench: Bench) -> None:
    client = bench.client()
    groups = dict(client.by_partition(bench.fetch(client, 20)))
    assert sorted(groups) == [(bench.topic, 0), (bench.topic, 1)]
    for group in groups.values():
        assert [message.offset() for message in group] == list(range(10))


def test_what_is_here_is_returned_without_waiting_for_more(bench: Bench) -> None:
    client = bench.client()
    bench.fetch(client, 1)
    began = time.monotonic()
    assert bench.fetch(client, 19)
    assert client.fetch(500, 0.2) == []
    assert time.monotonic() - began < 5


def test_only_what_was_stored_is_committed(bench: Bench) -> None:
    client = bench.client()
    messages = dict(client.by_partition(bench.fetch(client, 20)))
    client.commit(wait=True)
    assert client.store({(bench.topic, 1): messages[bench.topic, 1][4]}) == []
    client.commit(wait=True)
    bench.close(client)
    again = bench.client()
    fetched = dict(again.by_partition(bench.fetch(again, 15)))
    assert [group[0].offset() for _place, group in sorted(fetched.items())] == [0, 5]


def test_the_answer_to_a_commit_is_about_what_was_committed(bench: Bench) -> None:
    client = bench.client()
    messages = dict(client.by_partition(bench.fetch(client, 20)))
    for number, index in ((0, 4), (1, 6)):
        place = bench.topic, number
        client.store({place: messages[place][index]})
        client.commit(wait=False)
        wait_until(lambda: client.fetch(1, 0.1) or not client.committing)
        assert bench.events.told[-1] == ("committed", {place: index + 1}, None)


def test_a_partition_that_is_not_ours_is_not_stored(bench: Bench) -> None:
    client = bench.client()
    messages = dict(client.by_partition(bench.fetch(client, 20)))
    bench.close(client)
    stranger = bench.client()
    place = (bench.topic, 0)
    assert stranger.store({place: messages[place][0]}) == [place]


def test_what_was_taken_is_fetched_again_from_where_it_is_sought(bench: Bench) -> None:
    client = bench.client()
    bench.fetch(client, 20)
    client.seek({(bench.topic, 0): 7})
    assert [message.offset() for message in bench.fetch(client, 3)] == [7, 8, 9]


def test_starting_over_begins_at_the_committed_offsets(bench: Bench) -> None:
    client = bench.client()
    messages = dict(client.by_partition(bench.fetch(client, 20)))
    client.store({(bench.topic, 0): messages[bench.topic, 0][7]})
    client.commit(wait=True)
    client.start_over([(bench.topic, 0)], {})
    assert [message.offset() for message in bench.fetch(client, 2)] == [8, 9]


def test_a_paused_partition_is_not_fetched_until_it_is_resumed(bench: Bench) -> None:
    client = bench.client()
    bench.fetch(client, 1)
    client.pause([(bench.topic, 0), (bench.topic, 1)])
    assert bench.fetch(client, 1, 0.5) == []
    client.resume([(bench.topic, 0), (bench.topic, 1)])
    assert len(bench.fetch(client, 19)) == 19


def test_the_end_of_a_partition_is_told_and_is_no_message(bench: Bench) -> None:
    client = bench.client(**{"enable.partition.eof": True})
    assert len(bench.fetch(client, 20)) == 20
    client.fetch(10, 0.5)
    wait_until(lambda: client.fetch(10, 0.1) or len([one for one in bench.events.told if one[0] == "at_end"]) == 2)


def test_what_callbacks_raise_goes_no_further_and_loses_no_message(bench: Bench) -> None:
    bench.events.error = RuntimeError("no")
    client = bench.client(**{"enable.partition.eof": False})
    assert len(bench.fetch(client, 20)) == 20
    bench.close(client)
    assert [one[0] for one in bench.events.told] == ["assigned", "revoked"]


def test_brokers_that_are_down_are_told_and_do_not_raise(bench: Bench) -> None:
    client = bench.client()
    bench.fetch(client, 20)
    bench.cluster.broker_down(1)
    wait_until(lambda: client.fetch(1, 0.1) or ("trouble", "_ALL_BROKERS_DOWN", None) in bench.events.told)
    bench.cluster.broker_up(1)


def test_properties_that_the_client_refuses_are_an_error_of_configuration(bench: Bench) -> None:
    with pytest.raises(ConfigurationError, match=r"Consumer 'ops' cannot be made: .*session.timeout"):
        bench.client(**{"session.timeout.ms": -1})


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (KafkaException(KafkaError(KafkaError._FATAL)), True),
        (KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)), False),
        (KafkaException(KafkaError(KafkaError.FENCED_INSTANCE_ID, fatal=True)), True),
        (RuntimeError("Consumer closed"), False),
    ],
)
def test_a_fatal_error_is_told_from_others(error: Exception, fatal: bool) -> None:
    assert is_fatal(error) is fatal


def test_topics_are_told_apart_when_there_are_several(bench: Bench) -> None:
    other = f"{bench.topic}-other"
    bench.cluster.create_topic(other, 1)
    producer = Producer({"bootstrap.servers": bench.cluster.bootstrap_servers})
    producer.produce(other, b"x", partition=0)
    producer.flush(10)
    client = bench.client()
    client.subscribe([bench.topic, other])
    groups = client.by_partition(bench.fetch(client, 21))
    found = {TopicPartition(*place) for place, _group in groups}
    assert {one.topic for one in found} == {bench.topic, other}


def test_the_size_of_messages_is_that_of_their_values_keys_and_headers(bench: Bench) -> None:
    other = f"{bench.topic}-other"
    bench.cluster.create_topic(other, 1)
    producer = Producer({"bootstrap.servers": bench.cluster.bootstrap_servers})
    producer.produce(other, b"123", key=b"45", headers=[("6", b"789"), ("0", None)])
    producer.produce(other, None, key=b"k" * 100)
    producer.produce(other, None)
    assert producer.flush(10) == 0
    client = bench.client()
    client.subscribe([other])
    messages = bench.fetch(client, 3)
    assert size_of(messages) == (3, 107)
    send_with_raw_header(bench.cluster, other, b"caf\xe9", b"au lait")
    messages += bench.fetch(client, 1)
    assert 110 + 1 + 1 + 7 <= sum(size_of(messages)) <= 110 + 1 + 4 + 7
    assert size_of([]) == (0, 0)


def test_small_keys_and_headers_of_many_messages_are_sampled_and_large_ones_all_measured(bench: Bench) -> None:
    small, large = f"{bench.topic}-small", f"{bench.topic}-large"
    producer = Producer({"bootstrap.servers": bench.cluster.bootstrap_servers})
    for topic in (small, large):
        bench.cluster.create_topic(topic, 1)
    for number in range(300):
        producer.produce(small, b"v" * 100, key=b"%03d" % number, headers=[("h", b"4567")])
        # So few of them that a sample may be far off.
        producer.produce(large, b"v", key=b"k" * (10_000 if number % 50 == 7 else 1))
    assert producer.flush(10) == 0
    for topic, expected in ((small, (30_000, 300 * 8)), (large, (300, 6 * 10_000 + 294))):
        client = bench.client()
        client.subscribe([topic])
        assert size_of(bench.fetch(client, 300)) == expected
