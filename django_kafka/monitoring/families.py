"""The metrics: their names, labels and meanings, and where each value is read. What the docs say of them is from here.

Every label value is a name of settings, a topic, or one of a few words: never anything of a message.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import django

from .. import __version__, tallies
from ..clients import librdkafka
from ..conf.schema import CATEGORIES
from ..producers import producers
from ..tallies import ConsumedTopic, ConsumerTally, Histogram, ProducedTopic, ProducerTally
from . import working
from .working import WorkerNow

Labels = tuple[str, ...]
Sample = tuple[Labels, "float | Histogram"]
Read = Callable[["Scene"], Iterable[Sample]]

PREFIX = "lynx_kafka_"
OUTCOMES = ("handled", "skipped", "dead_lettered", "parked", "imported", "forwarded")
"""What may become of a message. Each but the last is one way to be settled; what is forwarded comes once more."""
CIRCUITS = ("closed", "open", "probing")


class Scene:
    """What one scrape looks at, so that all of it is of one moment, and is asked for once."""

    def __init__(self) -> None:
        self.producers: dict[str, ProducerTally] = tallies.producers()
        self.consumers: dict[str, ConsumerTally] = tallies.consumers()

    @cached_property
    def workers(self) -> list[WorkerNow]:
        """The workers of this process."""
        return working.now()

    def produced(self) -> Iterator[tuple[Labels, ProducedTopic]]:
        """Yield each topic of each producer, and its labels."""
        for name, tally in self.producers.items():
            for topic, one in list(tally.topics.items()):
                yield (name, topic), one

    def consumed(self) -> Iterator[tuple[Labels, ConsumedTopic]]:
        """Yield each topic of each consumer, and its labels."""
        for name, tally in self.consumers.items():
            for topic, one in list(tally.topics.items()):
                yield (name, topic), one


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric."""

    name: str
    """As Prometheus knows it."""
    kind: Literal["counter", "gauge", "histogram"]
    """What it is."""
    means: str
    """What it means, in a sentence."""
    labels: Labels
    """The names of its labels."""
    read: Read = field(repr=False)
    """What returns its values."""
    adds_up: bool = True
    """Whether the values of several processes make a sum; else the highest of them counts."""


def _of_produced(value: Callable[[ProducedTopic], float]) -> Read:
    return lambda scene: ((labels, value(one)) for labels, one in scene.produced())


def _of_consumed(value: Callable[[ConsumedTopic], float]) -> Read:
    return lambda scene: ((labels, value(one)) for labels, one in scene.consumed())


def _of_consumer(value: Callable[[ConsumerTally], float | Histogram]) -> Read:
    return lambda scene: (((name,), value(tally)) for name, tally in scene.consumers.items())


def _by_category(scene: Scene) -> Iterator[Sample]:
    for labels, one in scene.consumed():
        # All of them from the beginning: what appears with the value 1 has not grown for Prometheus.
        for category in CATEGORIES:
            yield (*labels, category), one.failures.get(category, 0)


def _produce_errors(scene: Scene) -> Iterator[Sample]:
    for labels, one in scene.produced():
        for category in CATEGORIES:
            yield (*labels, category), one.errors.get(category, 0)


def _outages(scene: Scene) -> Iterator[Sample]:
    for labels, one in scene.consumed():
        for category, count in sorted(dict(one.outages).items()):
            yield (*labels, category), count


def _settled(scene: Scene) -> Iterator[Sample]:
    for labels, one in scene.consumed():
        for outcome in OUTCOMES:
            yield (*labels, outcome), getattr(one, outcome)


def _histograms(found: Iterable[tuple[Labels, Histogram]]) -> Iterator[Sample]:
    # Without values it has nothing to show but dozens of zeros.
    return ((labels, histogram) for labels, histogram in found if any(histogram.counts))


def _durations(scene: Scene) -> Iterator[Sample]:
    for labels, one in scene.consumed():
        yield from _histograms([((*labels, "handled"), one.durations), ((*labels, "failed"), one.failed_durations)])


def _of_worker(value: Callable[[WorkerNow], float]) -> Read:
    def read(scene: Scene) -> Iterator[Sample]:
        found: dict[str, float] = {}
        for worker in scene.workers:
            found[worker.consumer] = found.get(worker.consumer, 0) + value(worker)
        return (((name,), number) for name, number in found.items())

    return read


def _circuits(scene: Scene) -> Iterator[Sample]:
    for name, state in {worker.consumer: worker.circuit for worker in scene.workers}.items():
        for one in CIRCUITS:
            yield (name, one), float(one == state)


def _poll_ages(scene: Scene) -> Iterator[Sample]:
    oldest: dict[str, float] = {}
    for worker in scene.workers:
        oldest[worker.consumer] = max(worker.poll_age, oldest.get(worker.consumer, 0.0))
    return (((name,), age) for name, age in oldest.items())


def _lags(scene: Scene) -> Iterator[Sample]:
    return (
        ((consumer, topic, str(number)), value)
        for (consumer, topic, number), value in working.lags(scene.workers).items()
    )


def _gaps(scene: Scene) -> Iterator[Sample]:
    for worker in scene.workers:
        for one in worker.partitions:
            if one.gap is not None:
                yield (worker.consumer, one.topic, str(one.number)), one.gap


def _replays(scene: Scene) -> Iterator[Sample]:
    for name, tally in scene.consumers.items():
        for outcome in ("succeeded", "failed", "cancelled"):
            yield (name, outcome), tally.replays.get(outcome, 0)


def _of_producer(value: Callable[[Any], float]) -> Read:
    def read(_scene: Scene) -> Iterator[Sample]:
        return (((one.name,), value(one)) for one in producers if one.connected)

    return read


def _connections(value: Callable[[ProducerTally | ConsumerTally], float]) -> Read:
    def read(scene: Scene) -> Iterator[Sample]:
        for name, one in scene.producers.items():
            yield ("producer", name), value(one)
        for name, other in scene.consumers.items():
            yield ("consumer", name), value(other)

    return read


def _versions(_scene: Scene) -> Iterator[Sample]:
    yield (__version__, librdkafka.version(), platform.python_version(), django.get_version()), 1


_T, _C, _P = ("producer", "topic"), ("consumer", "topic"), ("consumer",)

PRODUCING = (
    Family(
        name="lynx_kafka_producer_messages_total", kind="counter", labels=_T,
        means="Records that Kafka has acknowledged.", read=_of_produced(lambda one: one.acknowledged),
    ),
    Family(
        name="lynx_kafka_producer_bytes_total", kind="counter", labels=_T,
        means="Bytes of the values of these records, before compression.", read=_of_produced(lambda one: one.bytes),
    ),
    Family(
        name="lynx_kafka_producer_errors_total", kind="counter", labels=(*_T, "category"),
        means="Records that were given up: Kafka or the client refused them, or their time was over.",
        read=_produce_errors,
    ),
    Family(
        name="lynx_kafka_producer_duration_seconds", kind="histogram", labels=_T,
        means="Seconds from handing a record to the client until Kafka acknowledged it. Of records that follow each "
        "other closely the time of one in 64 is taken, and counted for all of them.",
        read=lambda scene: _histograms((labels, one.durations) for labels, one in scene.produced()),
    ),
    Family(
        name="lynx_kafka_producer_discarded_total", kind="counter", labels=("producer",),
        means="Records that were never sent, because the transaction around them did not commit.",
        read=lambda scene: (((name,), tally.discarded) for name, tally in scene.producers.items()),
    ),
    Family(
        name="lynx_kafka_producer_in_flight", kind="gauge", labels=("producer",),
        means="Records that were handed to the client and have no answer yet, and for a moment whatever else the "
        "client has to tell: its statistics, an error.",
        read=_of_producer(lambda one: len(one.client)),
    ),
    Family(
        name="lynx_kafka_producer_circuit_open", kind="gauge", labels=("producer",),
        means="1 while the producer takes no records because its brokers are out of reach, else 0.",
        adds_up=False,
        read=_of_producer(lambda one: float(one.reachability.open)),
    ),
)  # fmt: skip

CONSUMING = (
    Family(
        name="lynx_kafka_consumer_messages_total", kind="counter", labels=_C,
        means="Messages that were taken from Kafka; one that is read again is counted again.",
        read=_of_consumed(lambda one: one.received),
    ),
    Family(
        name="lynx_kafka_consumer_bytes_total", kind="counter", labels=_C,
        means="Bytes of the values of these messages, after decompression.", read=_of_consumed(lambda one: one.bytes),
    ),
    Family(
        name="lynx_kafka_consumer_errors_total", kind="counter", labels=(*_C, "category"),
        means="Attempts at a message that failed, whatever became of it then. Outages are not among them.",
        read=_by_category,
    ),
    Family(
        name="lynx_kafka_consumer_outages_total", kind="counter", labels=(*_C, "category"),
        means="Attempts that met an outage, and use up none: they are made again. A category is there once it was met.",
        read=_outages,
    ),
    Family(
        name="lynx_kafka_consumer_settled_total", kind="counter", labels=(*_C, "outcome"),
        means="What became of messages: handled; skipped; dead_lettered; parked behind a dead letter of their key; "
        "imported as a dead letter of another system; forwarded to a retry topic, from where they come once more.",
        read=_settled,
    ),
    Family(
        name="lynx_kafka_consumer_retries_total", kind="counter", labels=_C,
        means="Failed attempts that are followed by another one.", read=_of_consumed(lambda one: one.retries),
    ),
    Family(
        name="lynx_kafka_consumer_replays_total", kind="counter", labels=("consumer", "outcome"),
        means="Replays of dead letters that this process carried out: succeeded, failed, or cancelled.", read=_replays,
    ),
    Family(
        name="lynx_kafka_consumer_duration_seconds", kind="histogram", labels=(*_C, "outcome"),
        means="Seconds that an attempt at a message took, its transaction included. Messages that run in one "
        "transaction or list, or take less than 50 µs each, are timed together, and each counts as their mean.",
        read=_durations,
    ),
    Family(
        name="lynx_kafka_consumer_age_seconds", kind="histogram", labels=_C,
        means="Seconds from the timestamp of a message until it was settled. Of messages that are settled together "
        "those of four are taken.",
        read=lambda scene: _histograms((labels, one.ages) for labels, one in scene.consumed()),
    ),
    Family(
        name="lynx_kafka_consumer_fetched_messages", kind="histogram", labels=_P,
        means="Messages that came in one fetch from the client, fetches without any left out.",
        read=lambda scene: _histograms(((name,), tally.fetched) for name, tally in scene.consumers.items()),
    ),
    Family(
        name="lynx_kafka_consumer_batch_messages", kind="histogram", labels=_P,
        means="Messages that ran in one shared transaction, or were given to a handler in one list.",
        read=lambda scene: _histograms(((name,), tally.together) for name, tally in scene.consumers.items()),
    ),
    Family(
        name="lynx_kafka_consumer_rebalances_total", kind="counter", labels=_P,
        means="Times that partitions came to a worker or left it.", read=_of_consumer(lambda one: one.rebalances),
    ),
    Family(
        name="lynx_kafka_consumer_rebalance_duration_seconds", kind="histogram", labels=_P,
        means="Seconds from giving partitions back until the group gave some out again; where only those leave that "
        "go elsewhere, until they were given back.",
        read=lambda scene: _histograms(((name,), tally.rebalancing) for name, tally in scene.consumers.items()),
    ),
    Family(
        name="lynx_kafka_consumer_circuit_opened_total", kind="counter", labels=_P,
        means="Times that the circuit breaker opened because too many messages failed.",
        read=_of_consumer(lambda one: one.circuits_opened),
    ),
    Family(
        name="lynx_kafka_consumer_waits_total", kind="counter", labels=_P,
        means="Times that a lane waited: for an outage to end, or for a dead letter to be written.",
        read=_of_consumer(lambda one: one.waits),
    ),
    Family(
        name="lynx_kafka_consumer_contentions_total", kind="counter", labels=_P,
        means="Attempts that met a database conflict, and were made again at once.",
        read=_of_consumer(lambda one: one.contentions),
    ),
    Family(
        name="lynx_kafka_consumer_overruns_total", kind="counter", labels=_P,
        means="Handlers that were seen to go on after their time limit.", read=_of_consumer(lambda one: one.overruns),
    ),
    Family(
        name="lynx_kafka_consumer_hook_errors_total", kind="counter", labels=_P,
        means="Errors of on_commit hooks, after the work of their message was committed.",
        read=_of_consumer(lambda one: one.hook_errors),
    ),
    Family(
        name="lynx_kafka_consumer_unknown_commits_total", kind="counter", labels=_P,
        means="COMMITs that the database did not answer.", read=_of_consumer(lambda one: one.unknown_commits),
    ),
    Family(
        name="lynx_kafka_consumer_offset_jumps_total", kind="counter", labels=_P,
        means="Places where the next offset was not the expected one: compaction, transactions, retention.",
        read=_of_consumer(lambda one: one.offset_jumps),
    ),
    Family(
        name="lynx_kafka_consumer_unpublished_total", kind="counter", labels=_P,
        means="Dead letters that are too large for their topic, and are in the database only.",
        read=_of_consumer(lambda one: one.unpublished),
    ),
)  # fmt: skip

NOW = (
    Family(
        name="lynx_kafka_consumer_lag", kind="gauge", labels=(*_C, "partition"),
        means="Messages of a partition that are not settled: from the watermark to the end of its log.", read=_lags,
        adds_up=False,
    ),
    Family(
        name="lynx_kafka_consumer_watermark_gap", kind="gauge", labels=(*_C, "partition"),
        means="Offsets from the watermark to the last message fetched: what would be read again after a crash.",
        read=_gaps,
    ),
    Family(
        name="lynx_kafka_consumer_in_flight", kind="gauge", labels=_P,
        means="Messages in memory that are not settled.", read=_of_worker(lambda one: one.in_flight),
    ),
    Family(
        name="lynx_kafka_consumer_in_flight_bytes", kind="gauge", labels=_P,
        means="Bytes of these messages: keys, values and headers.", read=_of_worker(lambda one: one.in_flight_bytes),
    ),
    Family(
        name="lynx_kafka_consumer_partitions", kind="gauge", labels=_P,
        means="Partitions that the worker has.", read=_of_worker(lambda one: len(one.partitions)),
    ),
    Family(
        name="lynx_kafka_consumer_partitions_paused", kind="gauge", labels=_P,
        means="Those of them for which nothing is fetched at the moment.", read=_of_worker(lambda one: one.paused),
    ),
    Family(
        name="lynx_kafka_consumer_partitions_waiting", kind="gauge", labels=_P,
        means="Those of them with a lane that waits, for an outage to end or for something else to pass.",
        read=_of_worker(lambda one: one.waiting),
    ),
    Family(
        name="lynx_kafka_consumer_circuit", kind="gauge", labels=("consumer", "state"),
        means="1 for the state in which the circuit breaker is, 0 for the others: closed, open, probing.",
        read=_circuits, adds_up=False,
    ),
    Family(
        name="lynx_kafka_consumer_poll_age_seconds", kind="gauge", labels=_P,
        means="Seconds since the worker last polled Kafka: far below one, unless its poll loop is stuck.",
        read=_poll_ages, adds_up=False,
    ),
)  # fmt: skip

OTHERS = (
    Family(
        name="lynx_kafka_connections_active", kind="gauge", labels=("role", "name"),
        means="Connections to brokers that stand, as of the client's last statistics (every 10 s).",
        read=_connections(lambda one: one.connections_active),
    ),
    Family(
        name="lynx_kafka_connections_total", kind="counter", labels=("role", "name"),
        means="Connections to brokers that were made.", read=_connections(lambda one: one.connections_total),
    ),
    Family(
        name="lynx_kafka_connection_errors_total", kind="counter", labels=("role", "name"),
        means="Connections that broke or did not come about.", read=_connections(lambda one: one.connection_errors),
    ),
    Family(
        name="lynx_kafka_info", kind="gauge", labels=("version", "librdkafka", "python", "django"),
        means="Always 1; its labels tell the versions that run.", read=_versions,
        adds_up=False,
    ),
)  # fmt: skip

FAMILIES = PRODUCING + CONSUMING + NOW + OTHERS
