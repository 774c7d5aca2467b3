"""Connections to a real broker: few, counted, found where some addresses are dead; and codecs, as its log has them."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings

from django_kafka import conf, services, tallies
from django_kafka.clients.consumer import ConsumerClient
from django_kafka.clients.embedded import Cluster
from django_kafka.clients.events import Events
from django_kafka.clients.properties import for_consumer
from django_kafka.exceptions import BrokersUnreachable
from django_kafka.producers import producers
from tests.sending import NOBODY, read, took_less_than, use, values
from tests.servers import Kafka
from tests.servers.processes import wait_until

SOON = {"statistics.interval.ms": 100}


@pytest.fixture
def name(kafka: Kafka, topic: Callable[..., str]) -> str:
    """A topic of one partition."""
    from confluent_kafka.admin import NewTopic

    made, admin = topic(), kafka.admin()
    admin.create_topics([NewTopic(made, 1, -1)])[made].result(10)
    return made


def connections(port: int) -> set[str]:
    """Return the connections to a port of loopback that this process holds, as the system names them."""
    mine = set()
    for one in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed just now
            mine.add(os.readlink(one))
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    standing = {f"socket:[{line[9]}]" for line in lines if line[2].endswith(f":{port:04X}") and line[3] == "01"}
    return standing & mine


def send_from_a_thousand_threads(topic: str) -> None:
    """Send a record from each, all at once, and wait until all are acknowledged."""
    begin = threading.Barrier(1000)
    deliveries: list[Any] = []

    def send(number: int) -> None:
        begin.wait(30)
        deliveries.append(services.produce(topic, str(number), number))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(deliveries) == 1000
    for delivery in deliveries:
        delivery.result(20)


def test_a_thousand_threads_have_one_connection_to_each_of_three_brokers(
    settings: Settings, topic: Callable[..., str]
) -> None:
    # It gives each partition to some broker; of so many each has one.
    with Cluster(brokers=3, partitions=60) as cluster:
        name = topic()
        cluster.create_topic(name)
        use(settings, cluster.bootstrap_servers, {"default": {"options": SOON}})
        ports = [int(address.rpartition(":")[2]) for address in cluster.bootstrap_servers.split(",")]
        before = {port: connections(port) for port in ports}
        send_from_a_thousand_threads(name)
        tally = tallies.of_producer("default")
        wait_until(lambda: tally.connections_active == 3)
        assert [len(connections(port) - before[port]) for port in ports] == [1, 1, 1]
        assert tally.connections_total == 3
        producers.close_all()


def test_a_thousand_threads_share_one_client_and_its_one_connection_to_a_broker(
    kafka: Kafka, settings: Settings, name: str
) -> None:
    use(settings, kafka.address, {"default": {"options": SOON}})
    before = connections(kafka.port)
    send_from_a_thousand_threads(name)
    tally = tallies.of_producer("default")
    wait_until(lambda: tally.connections_active)

    assert len(connections(kafka.port) - before) == 1
    assert (tally.connections_active, tally.connections_total, tally.connection_errors) == (1, 1, 0)
    producers.close_all()
    assert (tally.connections_active, tally.connections_total) == (0, 1)


def test_connections_that_fail_are_counted(settings: Settings) -> None:
    use(settings, NOBODY)
    with pytest.raises(BrokersUnreachable):
        services.produce("flights", "k", 1).result()
    assert tallies.of_producer("default").connection_errors >= 1
    assert tallies.of_producer("default").connections_active == 0


def test_the_connections_of_a_consumer_are_counted(kafka: Kafka, settings: Settings, name: str) -> None:
    consumer = {"group_id": name, "topics": [name], "options": SOON}
    settings.KAFKA = {"brokers": kafka.address.split(","), "consumers": {"ops": consumer}}
    before = connections(kafka.port)
    client = ConsumerClient("ops", for_consumer(conf.consumer("ops"), conf.cluster(), name), Events())
    tally = tallies.of_consumer("ops")
    try:
        client.subscribe([name])
        # One to the broker, and one to it as the coordinator of the group.
        wait_until(lambda: client.fetch(1, 0.05) or tally.connections_active == 2)
        assert tally.connections_total >= 2
        # The one that it began with is not counted by then, and maybe not closed yet.
        wait_until(lambda: len(connections(kafka.port) - before) == tally.connections_active)
    finally:
        client.close()
    assert tally.connections_active == 0


@pytest.mark.parametrize("dead", ["127.0.0.1:1", "no-such-host.invalid:9092", "[::1]:1"])
def test_one_living_address_among_dead_ones_is_enough(kafka: Kafka, settings: Settings, name: str, dead: str) -> None:
    settings.KAFKA = {"brokers": [dead, kafka.address, dead], "connection": {"timeout": "5s"}}
    with took_less_than(10):
        assert services.produce(name, "k", 1).result().offset == 0


def test_options_of_a_connection_reach_every_client_of_the_cluster(kafka: Kafka, settings: Settings, name: str) -> None:
    address = f"localhost:{kafka.port}"
    more = {"timeout": "1s", "options": {"broker.address.family": "v4", **SOON}}
    settings.KAFKA = {"brokers": [address], "connection": more}
    assert services.produce(name, "k", 1).result(10).offset == 0
    settings.KAFKA = {"brokers": [address], "connection": {**more, "options": {"broker.address.family": "v6"}}}
    with took_less_than(10), pytest.raises(BrokersUnreachable):
        services.produce(name, "k", 2).result()


def test_a_connection_without_work_is_closed_and_made_again(kafka: Kafka, settings: Settings, name: str) -> None:
    use(
        settings,
        kafka.address,
        {"default": {}},
        connection={"timeout": "10s", "options": {"connections.max.idle.ms": 1000}},
    )
    before = connections(kafka.port)
    services.produce(name, "k", 1).result(10)
    made = connections(kafka.port) - before
    assert made
    wait_until(lambda: not connections(kafka.port) & made)
    assert services.produce(name, "k", 2).result(10).offset == 1


CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
"""As the attributes of a batch in a broker's log name them."""


def batches(kafka: Kafka, topic: str) -> list[tuple[int, int]]:
    """Return codec and size of each batch that the broker's log has of a topic of one partition."""
    raw = (kafka.home() / "node-1" / "data" / f"{topic}-0" / f"{0:020}.log").read_bytes()
    found, place = [], 0
    while place + 23 <= len(raw):
        (size,) = struct.unpack_from(">i", raw, place + 8)
        (attributes,) = struct.unpack_from(">h", raw, place + 21)
        found.append((attributes & 7, size))
        place += 12 + size
    return found


@pytest.mark.parametrize(
    ("codec", "level"),
    [("none", None), ("gzip", 1), ("gzip", 9), ("snappy", None), ("lz4", 9), ("zstd", 3), ("zstd", None)],
)
def test_a_record_lies_in_the_brokers_log_as_its_codec_says(
    kafka: Kafka, settings: Settings, name: str, codec: str, level: int | None
) -> None:
    use(settings, kafka.address, {"default": {"compression": codec, "compression_level": level}})
    value = {"words": ["a flight from New York to Boston"] * 200}
    services.produce(name, "k", value).result(10)

    ((found, size),) = batches(kafka, name)
    assert found == CODECS[codec]
    assert (size > 6000) == (codec == "none")
    assert values(read(kafka.address, name, 1)) == [value]


def test_a_higher_level_makes_it_smaller(kafka: Kafka, settings: Settings, topic: Callable[..., str]) -> None:
    from confluent_kafka.admin import NewTopic

    sizes, admin = [], kafka.admin()
    words = [f"{number * 7919 % 10007} flights of {number * 31 % 977}" for number in range(3000)]
    for level in (1, 9):
        name = topic()
        admin.create_topics([NewTopic(name, 1, -1)])[name].result(10)
        use(settings, kafka.address, {"default": {"compression": "gzip", "compression_level": level}})
        services.produce(name, "k", words).result(10)
        sizes.append(batches(kafka, name)[0][1])
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("codec", "level", "said"),
    [("gzip", 10, "gzip has levels up to 9"), ("snappy", 1, "snappy has no levels"), ("none", 1, "none has no levels")],
)
def test_a_level_that_a_codec_does_not_have_is_refused(settings: Settings, codec: str, level: int, said: str) -> None:
    settings.KAFKA = {"producers": {"default": {"compression": codec, "compression_level": level}}}
    assert [said in problem.message for problem in conf.problems()] == [True]
