"""Whether consumers open what producers of the same settings put their values into."""

from __future__ import annotations

from collections.abc import Iterator

from . import conf, subscriptions

_HINT = "Say the same of the topic for both: otherwise each of these messages becomes a dead letter."


def problems() -> Iterator[tuple[str, str, str]]:
    """Yield (check id, sentence, hint) for topics that a producer and a consumer of settings have in different ways.

    Only where the producer names the topic: what code sends besides nobody knows here.
    """
    whole = conf.kafka()
    for producer in whole.producers.values():
        for topic in _named(producer) if producer.enabled else ():
            for consumer in whole.consumers.values():
                if not consumer.enabled or consumer.cluster != producer.cluster:
                    continue
                name = whole.prefixed(topic)
                reads = subscriptions.settings_of(consumer, name)
                if not subscriptions.ways(consumer.name, name) or (reads is not None and reads.imports):
                    continue
                place = f"{topic!r}, which producer {producer.name!r} sends and consumer {consumer.name!r} reads,"
                for difference in _differences(producer, producer.topics.get(topic), consumer, reads):
                    yield "django_kafka.W009", f"The topic {place} {difference}.", _HINT


def _named(producer: conf.Producer) -> list[str]:
    own = [] if producer.topic is None or producer.has_topic_template else [producer.topic]
    return list(dict.fromkeys([*own, *producer.topics]))


def _differences(
    producer: conf.Producer,
    written: conf.ProducerTopic | None,
    consumer: conf.Consumer,
    read: conf.ConsumerTopic | None,
) -> Iterator[str]:
    mine = written or conf.ProducerTopic()
    theirs = read or conf.ConsumerTopic(name="")
    sends = producer.encryption if mine.encryption is None else mine.encryption
    opens = consumer.encryption if theirs.encryption is None else theirs.encryption
    plain = consumer.accept_plain if theirs.accept_plain is None else theirs.accept_plain
    if (sends.payload, set(sends.fields)) != (opens.payload, set(opens.fields)) and (sends or not plain):
        yield f"is encrypted in one way and read in another: {_told(sends)} by the one, {_told(opens)} by the other"
    leaves = producer.claim_check if mine.claim_check is None else mine.claim_check
    fetches = consumer.claim_check if theirs.claim_check is None else theirs.claim_check
    if leaves and leaves.storage != fetches.storage:
        where = f"looks for them in {fetches.storage!r}" if fetches else 'has no "claim_check"'
        yield f"has large payloads in the storage {leaves.storage!r}, and the consumer {where}"
    events = mine.cloud_events.over(producer.cloud_events)
    reads_events = consumer.cloud_events if theirs.cloud_events is None else theirs.cloud_events
    if events.mode == "structured" and not reads_events:
        yield 'has structured CloudEvents, and the consumer reads them as they are, for want of "cloud_events": True'


def _told(chosen: conf.Encryption) -> str:
    if chosen.payload:
        return "the payload"
    return ", ".join(repr(".".join(path).replace(".[]", "[]")) for path in chosen.fields) or "nothing"
