"""The topics that the project needs, as settings and handlers name them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import conf, handlers
from .dead_letters.publishing import goal_of, topic_for

Place = tuple[str, str]
"""The name of a cluster, and a topic as Kafka knows it."""


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


def needed() -> list[Needed]:
    """Return the topics of all consumers and producers that are enabled, each once, in the order of their names.

    Topics that only code names, in `produce` or in handlers, are not known.
    """
    uses: dict[Place, list[str]] = {}
    models: dict[Place, set[Place]] = {}
    for place, use, model in (*_of_consumers(), *_of_producers()):
        if use not in (known := uses.setdefault(place, [])):
            known.append(use)
        if model is not None:
            models.setdefault(place, set()).add(model)
    return [
        Needed(cluster=place[0], name=place[1], uses=tuple(uses[place]), models=frozenset(models.get(place, ())))
        for place in sorted(uses)
    ]


def _of_consumers() -> Iterator[tuple[Place, str, Place | None]]:
    settings = conf.kafka()
    for consumer in settings.consumers.values():
        if not consumer.enabled:
            continue
        for topic in handlers.topics(consumer.name):
            own, origin = consumer.topics.get(topic), (consumer.cluster, settings.prefixed(topic))
            yield origin, f"read by {consumer.name}", None
            if own is not None and own.imports:
                continue
            if (letters := topic_for(consumer, origin[1])) is not None:
                yield (goal_of(consumer), letters), f"dead letters of {consumer.name}", origin
        for retry in handlers.retry_topics(consumer.name).values():
            use = f"retry {retry.number} of {consumer.name}"
            yield (consumer.cluster, retry.name), use, (consumer.cluster, retry.origin)


def _of_producers() -> Iterator[tuple[Place, str, Place | None]]:
    settings = conf.kafka()
    for producer in settings.producers.values():
        if producer.enabled:
            own = [] if producer.topic is None else [producer.topic]
            for topic in (*own, *producer.topics):
                yield (producer.cluster, settings.prefixed(topic)), f"written by {producer.name}", None
