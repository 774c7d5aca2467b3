"""What the collector says, and what the docs say of it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

from django_kafka.monitoring import metrics
from django_kafka.monitoring.families import FAMILIES
from django_kafka.tallies import OTHER, SECONDS, Histogram, ProducerTally
from tests.consuming import NAME, Seen, Workplace
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


def test_quick_and_slow_messages_are_all_timed_and_their_lag_is_known(workplace: Workplace) -> None:
    seen = Seen(lambda message: time.sleep(0.002) if message.value >= 300 else None)
    workplace.consume(seen, transaction="none")
    workplace.send(range(400))
    with workplace.worker() as worker:
        worker.now()
        seen.wait(400)
        wait_until(lambda: [(one.lag, one.gap) for one in worker.now().partitions] == [(0, 0)], 10)
        topic = worker.tally.of_topic(workplace.topic)
        assert (topic.durations.count, topic.ages.count, topic.handled) == (400, 400, 400)
        assert topic.durations.sum >= 0.2
        text = metrics.exposition().body.decode()
    read = {family.name: family for family in text_string_to_metric_families(text)}
    (lag,) = read["lynx_kafka_consumer_lag"].samples
    assert (lag.labels, lag.value) == ({"consumer": NAME, "topic": workplace.topic, "partition": "0"}, 0)
