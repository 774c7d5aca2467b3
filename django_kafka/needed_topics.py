"""The topics that the project needs, as settings and handlers name them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from . import conf, handlers
from .dead_letters.publishing import goal_of, letters_producer, retry_producer, topic_for

Place = tuple[str, str]
"""The name of a cluster, and a topic as Kafka knows it."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a producer or consumer does with a topic."""

    kind: str
    """"consumer" or "producer"."""
    client: str
    """Its name."""
    operation: str
    """READ or WRITE, as Kafka's permissions are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """A topic that is needed."""

    cluster: str
    """The name of its cluster."""
    name: str
    """As Kafka knows it, prefix included."""
    uses: tuple[str, ...]
    """What for, in words."""
    models: frozenset[Place] = frozenset()
    """The topics that it should have as many partitions as, because it has messages of these."""
    accesses: tuple[Access, ...] = field(default=(), compare=False)
    """Who does what there."""


def needed() -> list[Needed]:
    """Return the topics of all consumers and producers that are enabled, and those that settings declare.

    Each once, in the order of their names. Topics that only code names, in `produce`, are not known.
    """
    uses: dict[Place, list[str]] = {}
    models: dict[Place, set[Place]] = {}
    accesses: dict[Place, list[Access]] = {}
    for place, use, access, model in (*_of_consumers(), *_of_producers()):
        if use not in (known := uses.setdefault(place, [])):
            known.append(use)
        accesses.setdefault(place, []).extend(access)
        if model is not None:
            models.setdefault(place, set()).add(model)
    for cluster in conf.kafka().clusters.values():
        for topic in cluster.topics.values():
            if not topic.delete:
                uses.setdefault((cluster.name, conf.kafka().prefixed(topic.name)), ["declared"])
    return [
        Needed(
            cluster=place[0],
            name=place[1],
            uses=tuple(uses[place]),
            models=frozenset(models.get(place, ())),
            accesses=tuple(dict.fromkeys(accesses.get(place, ()))),
        )
        for place in sorted(uses)
    ]


_Use = tuple[Place, str, list[Access], "Place | None"]


def _of_consumers() -> Iterator[_Use]:
    settings = conf.kafka()
    for consumer in settings.consumers.values():
        if not consumer.enabled:
            continue
        for topic in handlers.topics(consumer.name):
            own, origin = consumer.topics.get(topic), (consumer.cluster, settings.prefixed(topic))
            yield origin, f"read by {consumer.name}", [Access("consumer", consumer.name, "READ")], None
            if own is not None and own.imports:
                continue
            if (letters := topic_for(consumer, origin[1])) is not None:
                sent = _sent_by(letters_producer(consumer))
                yield (goal_of(consumer), letters), f"dead letters of {consumer.name}", sent, origin
        for retry in handlers.retry_topics(consumer.name).values():
            use = f"retry {retry.number} of {consumer.name}"
            both = [Access("consumer", consumer.name, "READ"), *_sent_by(retry_producer(consumer.cluster))]
            yield (consumer.cluster, retry.name), use, both, (consumer.cluster, retry.origin)


def _of_producers() -> Iterator[_Use]:
    settings = conf.kafka()
    for producer in settings.producers.values():
        if producer.enabled:
            own = [] if producer.topic is None or producer.has_topic_template else [producer.topic]
            for topic in (*own, *producer.topics):
                yield (
                    (producer.cluster, settings.prefixed(topic)),
                    f"written by {producer.name}",
                    _sent_by(producer),
                    None,
                )


def _sent_by(producer: conf.Producer | None) -> list[Access]:
    return [] if producer is None else [Access("producer", producer.name, "WRITE")]
