"""What the collector says, and what the docs say of it."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import prometheus_client
import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from prometheus_client.parser import text_string_to_metric_families
from pytest_django import Settings

from django_kafka import services, tallies
from django_kafka.clients.embedded import Cluster
from django_kafka.exceptions import CircuitOpen, ConfigurationError, EncodeError, QueueFull, RecordTooLarge
from django_kafka.monitoring import metrics
from django_kafka.monitoring.families import FAMILIES
from django_kafka.producers import producers
from django_kafka.tallies import OTHER, SECONDS, Histogram, ProducerTally
from tests.consuming import NAME, Seen, Workplace
from tests.sending import NOBODY, use
from tests.servers.processes import wait_until

DOCS = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(lynx_kafka_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", re.MULTILINE)


def test_the_docs_list_each_metric_as_the_collector_has_it() -> None:
    documented = [
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)), means)
        for name, kind, labels, means in ROW.findall(DOCS.read_text("utf-8"))
    ]

    assert documented == [(one.name, one.kind, one.labels, one.means) for one in FAMILIES]


def test_they_are_among_all_metrics_of_the_process() -> None:
    names = {metric.name for metric in prometheus_client.REGISTRY.collect()}

    assert {one.name.removesuffix("_total") for one in FAMILIES} <= names


def test_each_counter_shows_what_it_is_named_for() -> None:
    numbers = itertools.count(1)
    consumer, producer = tallies.of_consumer(NAME), tallies.of_producer("default")
    wanted: dict[str, float] = {}

    def set_all(counts: object, prefix: str, **named: str) -> None:
        """Give each plain number another value; `named`: whose metrics are called otherwise, "" for none."""
        for field in fields(counts):  # type: ignore[arg-type]
            if isinstance(getattr(counts, field.name), int) and (name := named.get(field.name, field.name)):
                setattr(counts, field.name, next(numbers))
                wanted[name if "connection" in name else f"{prefix}_{name}_total"] = getattr(counts, field.name)

    def histogram(counts: Histogram, name: str) -> None:
        counts.add(next(numbers))
        wanted[f"{name}_sum"] = counts.sum

    connections = {
        "connections_active": "connections_active", "connections_total": "connections_total",
        "connection_errors": "connection_errors_total",
    }  # fmt: skip
    outcomes = dict.fromkeys(("handled", "skipped", "dead_lettered", "parked", "imported", "forwarded"), "")
    set_all(consumer, "consumer", circuits_opened="circuit_opened", **connections)
    set_all(consumer.of_topic("t"), "consumer", received="messages", **outcomes)
    histogram(consumer.fetched, "consumer_fetched_messages")
    histogram(consumer.together, "consumer_batch_messages")
    histogram(consumer.rebalancing, "consumer_rebalance_duration_seconds")
    histogram(consumer.of_topic("t").ages, "consumer_age_seconds")
    found = shown_by("consumer", NAME)
    assert {name: found[name] for name in wanted} == wanted

    wanted.clear()
    set_all(producer, "producer", **connections)
    set_all(producer.of_topic("t"), "producer", acknowledged="messages", due="", timed="")
    histogram(producer.of_topic("t").durations, "producer_duration_seconds")
    found = shown_by("producer", "default")
    assert {name: found[name] for name in wanted} == wanted


def shown_by(role: str, name: str) -> dict[str, float]:
    """Return the values of all series of a producer or consumer, by their names without prefix."""
    text = prometheus_client.generate_latest(prometheus_client.REGISTRY).decode()
    return {
        sample.name.removeprefix("lynx_kafka_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if name in (sample.labels.get(role), sample.labels.get("name")) and "le" not in sample.labels
    }


def test_a_value_on_a_bound_counts_below_it() -> None:
    histogram = Histogram(SECONDS)
    histogram.add(0.001, 3)
    histogram.add(1000.0)

    assert (histogram.counts[1], histogram.counts[-1], histogram.count) == (3, 1, 4)
    assert histogram.sum == 1000.003


def test_topics_whose_names_come_from_anywhere_are_counted_together_in_the_end() -> None:
    tally = ProducerTally()
    for number in range(1000):
        tally.of_topic(f"tenant-{number}").acknowledged += 1

    assert len(tally.topics) == 201
    assert tally.topics[OTHER].acknowledged == 800
    assert tally.acknowledged == 1000


@pytest.mark.django_db(transaction=True)
def test_each_record_that_is_not_taken_is_counted_once_by_the_category_of_its_error(
    embedded: Cluster, settings: Settings
) -> None:
    def counted() -> dict[str, int]:
        return dict(tallies.of_producer("default").of_topic("full").errors)

    use(settings, embedded.bootstrap_servers, {"default": {"options": {"message.max.bytes": 2000}}})
    refused: list[Callable[[], object]] = [
        lambda: services.produce("full", None, object()),
        lambda: services.produce("full", b"k", b"v" * 3000),
        lambda: services.produce("full", None, 1, headers={"name": 1}),  # type: ignore[dict-item]
        lambda: services.produce_batch("full", [{"key": None, "value": 1}, {"key": None, "value": object()}]),
        lambda: async_to_sync(services.aproduce)("full", None, object()),
    ]
    for number, call in enumerate(refused, start=1):
        with pytest.raises((EncodeError, RecordTooLarge)):
            call()
        assert counted() == {"serialization": number}
    with pytest.raises(ConfigurationError):
        services.produce("full", None, 1, partition=-2)
    assert counted() == {"serialization": 5, "configuration": 1}

    tallies.of_producer("default").topics.clear()
    use(settings, NOBODY, {"default": {"options": {"queue.buffering.max.messages": 1}}})
    one = producers["default"]
    one.connection_timeout = 0.05
    services.produce("full", b"k", b"v")
    refused = [
        lambda: services.produce("full", b"k", b"v"),
        lambda: services.produce("full", None, 1, headers={"a": "b"}),
        lambda: services.produce_batch("full", [{"key": b"k", "value": b"v"}] * 3),
        lambda: services.produce_batch("full", [{"key": b"k", "value": b"v", "partition": 0}] * 3),
        lambda: async_to_sync(services.aproduce)("full", None, 1),
    ]
    for number, call in enumerate(refused, start=1):
        with pytest.raises(QueueFull):
            call()
        assert counted() == {"network": number}
    with transaction.atomic():
        delivery = services.produce("full", b"k", b"v")
    assert isinstance(delivery.error, QueueFull)
    assert counted() == {"network": 6}

    one.reachability.open = True
    one.client.refuse(one.refusal)
    with pytest.raises(CircuitOpen):
        services.produce("full", b"k", b"v")
    with pytest.raises(CircuitOpen), transaction.atomic():
        services.produce("full", b"k", b"v")
    assert counted() == {"network": 8}
    one.reachability.open = False
    with transaction.atomic():
        delivery = services.produce("full", b"k", b"v")
    assert isinstance(delivery.error, CircuitOpen)
    assert counted() == {"network": 9}
    producers.close("default", 0)


def test_quick_and_slow_messages_are_all_timed_and_their_lag_is_known(workplace: Workplace) -> None:
    seen = Seen(lambda message: time.sleep(0.002) if message.value >= 300 else None)
    workplace.consume(seen, transaction="none")
    workplace.send(range(400))
    with workplace.worker() as worker:
        worker.now()
        seen.wait(400)
        wait_until(lambda: [(one.lag, one.gap) for one in worker.now().partitions] == [(0, 0)])
        topic = worker.tally.of_topic(workplace.topic)
        assert (topic.durations.count, topic.ages.count, topic.handled) == (400, 400, 400)
        assert topic.durations.sum >= 0.2
        text = metrics.exposition().body.decode()
    read = {family.name: family for family in text_string_to_metric_families(text)}
    (lag,) = read["lynx_kafka_consumer_lag"].samples
    assert (lag.labels, lag.value) == ({"consumer": NAME, "topic": workplace.topic, "partition": "0"}, 0)
