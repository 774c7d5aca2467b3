"""What producers did, and what they are at."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...conf.schema import CATEGORIES
from ...producer import Producer
from ...producers import producers
from .family import OF_PRODUCED, Family, Read, Sample, Scene, histograms, of_produced


def _errors(scene: Scene) -> Iterator[Sample]:
    for labels, one in scene.produced():
        for category in CATEGORIES:
            yield (*labels, category), one.errors.get(category, 0)


def _of_producer(value: Callable[[Producer], float]) -> Read:
    def read(_scene: Scene) -> Iterator[Sample]:
        return (((one.name,), value(one)) for one in producers if one.connected)

    return read


PRODUCING = (
    Family(
        name="lynx_kafka_producer_messages_total", kind="counter", labels=OF_PRODUCED,
        means="Records that Kafka has acknowledged.", read=of_produced(lambda one: one.acknowledged),
    ),
    Family(
        name="lynx_kafka_producer_bytes_total", kind="counter", labels=OF_PRODUCED,
        means="Bytes of the values of these records, before compression.", read=of_produced(lambda one: one.bytes),
    ),
    Family(
        name="lynx_kafka_producer_errors_total", kind="counter", labels=(*OF_PRODUCED, "category"),
        means="Records that were given up, because Kafka or the client refused them or their time was over; and those "
        "that were not taken, because they cannot be serialized, are too large, or find no room. A batch that "
        "is not taken whole counts once.",
        read=_errors,
    ),
    Family(
        name="lynx_kafka_producer_duration_seconds", kind="histogram", labels=OF_PRODUCED,
        means="Seconds from handing a record to the client until Kafka acknowledged it. Of records that follow each "
        "other closely the time of one in 64 is taken, and counted for all of them.",
        read=lambda scene: histograms((labels, one.durations) for labels, one in scene.produced()),
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
