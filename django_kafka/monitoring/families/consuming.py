"""What workers did with messages."""

from __future__ import annotations

from collections.abc import Iterator

from ...conf.schema import CATEGORIES
from .family import OF_CONSUMED, OF_CONSUMER, Family, Sample, Scene, histograms, of_consumed, of_consumer

OUTCOMES = ("handled", "skipped", "dead_lettered", "parked", "imported", "forwarded")
"""What may become of a message. Each but the last is one way to be settled; what is forwarded comes once more."""


def _by_category(scene: Scene) -> Iterator[Sample]:
    for labels, one in scene.consumed():
        # All of them from the beginning: what appears with the value 1 has not grown for Prometheus.
        for category in CATEGORIES:
            yield (*labels, category), one.failures.get(category, 0)


def _outages(scene: Scene) -> Iterator[Sample]:
    for labels, one in scene.consumed():
        for category, count in sorted(dict(one.outages).items()):
            yield (*labels, category), count


def _settled(scene: Scene) -> Iterator[Sample]:
    for labels, one in scene.consumed():
        for outcome in OUTCOMES:
            yield (*labels, outcome), getattr(one, outcome)


def _durations(scene: Scene) -> Iterator[Sample]:
    for labels, one in scene.consumed():
        yield from histograms([((*labels, "handled"), one.durations), ((*labels, "failed"), one.failed_durations)])


def _replays(scene: Scene) -> Iterator[Sample]:
    for name, tally in scene.consumers.items():
        for outcome in ("succeeded", "failed", "cancelled"):
            yield (name, outcome), tally.replays.get(outcome, 0)


CONSUMING = (
    Family(
        name="lynx_kafka_consumer_messages_total", kind="counter", labels=OF_CONSUMED,
        means="Messages that were taken from Kafka; one that is read again is counted again.",
        read=of_consumed(lambda one: one.received),
    ),
    Family(
        name="lynx_kafka_consumer_bytes_total", kind="counter", labels=OF_CONSUMED,
        means="Bytes of the values of these messages, after decompression.", read=of_consumed(lambda one: one.bytes),
    ),
    Family(
        name="lynx_kafka_consumer_errors_total", kind="counter", labels=(*OF_CONSUMED, "category"),
        means="Attempts at a message that failed, whatever became of it then. Outages are not among them.",
        read=_by_category,
    ),
    Family(
        name="lynx_kafka_consumer_outages_total", kind="counter", labels=(*OF_CONSUMED, "category"),
        means="Attempts that met an outage, and use up none: they are made again. A category is there once it was met.",
        read=_outages,
    ),
    Family(
        name="lynx_kafka_consumer_settled_total", kind="counter", labels=(*OF_CONSUMED, "outcome"),
        means="What became of messages: handled; skipped; dead_lettered; parked behind a dead letter of their key; "
        "imported as a dead letter of another system; forwarded to a retry topic, from where they come once more.",
        read=_settled,
    ),
    Family(
        name="lynx_kafka_consumer_retries_total", kind="counter", labels=OF_CONSUMED,
        means="Failed attempts that are followed by another one.", read=of_consumed(lambda one: one.retries),
    ),
    Family(
        name="lynx_kafka_consumer_replays_total", kind="counter", labels=("consumer", "outcome"),
        means="Replays of dead letters that this process carried out: succeeded, failed, or cancelled.", read=_replays,
    ),
    Family(
        name="lynx_kafka_consumer_duration_seconds", kind="histogram", labels=(*OF_CONSUMED, "outcome"),
        means="Seconds that an attempt at a message took, its transaction included. Messages that run in one "
        "transaction or list, or take less than 50 µs each, are timed together, and each counts as their mean.",
        read=_durations,
    ),
    Family(
        name="lynx_kafka_consumer_age_seconds", kind="histogram", labels=OF_CONSUMED,
        means="Seconds from the timestamp of a message until it was settled. Of messages that are settled together "
        "those of four are taken.",
        read=lambda scene: histograms((labels, one.ages) for labels, one in scene.consumed()),
    ),
    Family(
        name="lynx_kafka_consumer_fetched_messages", kind="histogram", labels=OF_CONSUMER,
        means="Messages that came in one fetch from the client, fetches without any left out.",
        read=lambda scene: histograms(((name,), tally.fetched) for name, tally in scene.consumers.items()),
    ),
    Family(
        name="lynx_kafka_consumer_batch_messages", kind="histogram", labels=OF_CONSUMER,
        means="Messages that ran in one shared transaction, or were given to a handler in one list.",
        read=lambda scene: histograms(((name,), tally.together) for name, tally in scene.consumers.items()),
    ),
    Family(
        name="lynx_kafka_consumer_rebalances_total", kind="counter", labels=OF_CONSUMER,
        means="Times that partitions came to a worker or left it.", read=of_consumer(lambda one: one.rebalances),
    ),
    Family(
        name="lynx_kafka_consumer_rebalance_duration_seconds", kind="histogram", labels=OF_CONSUMER,
        means="Seconds from giving partitions back until the group gave some out again; where only those leave that "
        "go elsewhere, until they were given back.",
        read=lambda scene: histograms(((name,), tally.rebalancing) for name, tally in scene.consumers.items()),
    ),
    Family(
        name="lynx_kafka_consumer_circuit_opened_total", kind="counter", labels=OF_CONSUMER,
        means="Times that the circuit breaker opened because too many messages failed.",
        read=of_consumer(lambda one: one.circuits_opened),
    ),
    Family(
        name="lynx_kafka_consumer_waits_total", kind="counter", labels=OF_CONSUMER,
        means="Times that a lane waited: for an outage to end, or for a dead letter to be written.",
        read=of_consumer(lambda one: one.waits),
    ),
    Family(
        name="lynx_kafka_consumer_contentions_total", kind="counter", labels=OF_CONSUMER,
        means="Attempts that met a database conflict, and were made again at once.",
        read=of_consumer(lambda one: one.contentions),
    ),
    Family(
        name="lynx_kafka_consumer_overruns_total", kind="counter", labels=OF_CONSUMER,
        means="Handlers that were seen to go on after their time limit.", read=of_consumer(lambda one: one.overruns),
    ),
    Family(
        name="lynx_kafka_consumer_hook_errors_total", kind="counter", labels=OF_CONSUMER,
        means="Errors of on_commit hooks, after the work of their message was committed.",
        read=of_consumer(lambda one: one.hook_errors),
    ),
    Family(
        name="lynx_kafka_consumer_unknown_commits_total", kind="counter", labels=OF_CONSUMER,
        means="COMMITs that the database did not answer.", read=of_consumer(lambda one: one.unknown_commits),
    ),
    Family(
        name="lynx_kafka_consumer_offset_jumps_total", kind="counter", labels=OF_CONSUMER,
        means="Places where the next offset was not the expected one: compaction, transactions, retention.",
        read=of_consumer(lambda one: one.offset_jumps),
    ),
    Family(
        name="lynx_kafka_consumer_unpublished_total", kind="counter", labels=OF_CONSUMER,
        means="Dead letters that are too large for their topic, and are in the database only.",
        read=of_consumer(lambda one: one.unpublished),
    ),
)  # fmt: skip
