"""What is true of workers at this moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .. import working
from ..working import WorkerNow
from .family import OF_CONSUMED, OF_CONSUMER, Family, Read, Sample, Scene

CIRCUITS = ("closed", "open", "probing")


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
    found = working.lags(scene.workers)
    for group in scene.groups:
        # Of one with members, a worker knows better: what it has settled is committed a while later.
        for one in group.partitions if group.deserted else ():
            if one.lag is not None:
                found.setdefault((group.consumer, one.topic, one.partition), one.lag)
    return (((consumer, topic, str(number)), value) for (consumer, topic, number), value in found.items())


def _gaps(scene: Scene) -> Iterator[Sample]:
    for worker in scene.workers:
        for one in worker.partitions:
            if one.gap is not None:
                yield (worker.consumer, one.topic, str(one.number)), one.gap


LAG = Family(
    name="lynx_kafka_consumer_lag", kind="gauge", labels=(*OF_CONSUMED, "partition"),
    means="Messages of a partition that are not settled: from the watermark to the end of its log. Of a group that "
    "nobody is in, what it has not read, as brokers say.",
    read=_lags, adds_up=False,
)  # fmt: skip
NOW = (
    LAG,
    Family(
        name="lynx_kafka_consumer_watermark_gap", kind="gauge", labels=(*OF_CONSUMED, "partition"),
        means="Offsets from the watermark to the last message fetched: what would be read again after a crash.",
        read=_gaps,
    ),
    Family(
        name="lynx_kafka_consumer_in_flight", kind="gauge", labels=OF_CONSUMER,
        means="Messages in memory that are not settled.", read=_of_worker(lambda one: one.in_flight),
    ),
    Family(
        name="lynx_kafka_consumer_in_flight_bytes", kind="gauge", labels=OF_CONSUMER,
        means="Bytes of these messages: keys, values and headers.", read=_of_worker(lambda one: one.in_flight_bytes),
    ),
    Family(
        name="lynx_kafka_consumer_partitions", kind="gauge", labels=OF_CONSUMER,
        means="Partitions that the worker has.", read=_of_worker(lambda one: len(one.partitions)),
    ),
    Family(
        name="lynx_kafka_consumer_partitions_paused", kind="gauge", labels=OF_CONSUMER,
        means="Those of them for which nothing is fetched at the moment.", read=_of_worker(lambda one: one.paused),
    ),
    Family(
        name="lynx_kafka_consumer_partitions_paused_by_operator", kind="gauge", labels=OF_CONSUMER,
        means="Those of them that somebody has paused, until somebody resumes them.",
        read=_of_worker(lambda one: one.suspended),
    ),
    Family(
        name="lynx_kafka_consumer_partitions_waiting", kind="gauge", labels=OF_CONSUMER,
        means="Those of them with a lane that waits, for an outage to end or for something else to pass.",
        read=_of_worker(lambda one: one.waiting),
    ),
    Family(
        name="lynx_kafka_consumer_circuit", kind="gauge", labels=("consumer", "state"),
        means="1 for the state in which the circuit breaker is, 0 for the others: closed, open, probing.",
        read=_circuits, adds_up=False,
    ),
    Family(
        name="lynx_kafka_consumer_poll_age_seconds", kind="gauge", labels=OF_CONSUMER,
        means="Seconds since the worker last polled Kafka: far below one, unless its poll loop is stuck.",
        read=_poll_ages, adds_up=False,
    ),
)  # fmt: skip
