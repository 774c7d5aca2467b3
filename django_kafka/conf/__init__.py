"""settings.KAFKA as values: read when asked, remembered, and forgotten when the setting changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from django.conf import settings
from django.core.signals import setting_changed

from django_kafka.exceptions import ConfigurationError, UnknownName

from . import availability, parsing
from .blocks import Problem
from .claims import ClaimCheck
from .clusters import Cluster, Connection
from .consumers import through_topics
from .encryption import Encryption, EncryptionKey
from .events import CloudEvents
from .parsing import Reading
from .patterns import Pattern, is_pattern
from .producers import Producer, ProducerCircuit, ProducerTopic
from .registries import Reference, Schema, SchemaOptions, SchemaRegistry
from .schema import (
    CircuitBreaker,
    Consumer,
    ConsumerTopic,
    DeadLetters,
    Dispatch,
    Health,
    Heartbeats,
    Kafka,
    Logging,
    Place,
    Retry,
    Tracing,
)
from .secrets import Options, Secret
from .security import Kerberos, OAuth, Sasl, Security, Tls
from .topics import Topic
from .typed import KafkaSettings
from .values import Wrong, parse_duration, subscription, topic

__all__ = [
    "CircuitBreaker",
    "ClaimCheck",
    "CloudEvents",
    "Cluster",
    "Connection",
    "Consumer",
    "ConsumerTopic",
    "DeadLetters",
    "Dispatch",
    "Encryption",
    "EncryptionKey",
    "Health",
    "Heartbeats",
    "Kafka",
    "KafkaSettings",
    "Kerberos",
    "Logging",
    "OAuth",
    "Options",
    "Pattern",
    "Place",
    "Problem",
    "Producer",
    "ProducerCircuit",
    "ProducerTopic",
    "Reading",
    "Reference",
    "Retry",
    "Sasl",
    "Schema",
    "SchemaOptions",
    "SchemaRegistry",
    "Secret",
    "Security",
    "Tls",
    "Topic",
    "Tracing",
    "cluster",
    "consumer",
    "is_pattern",
    "kafka",
    "parse_duration",
    "problems",
    "producer",
    "reading",
    "subscription_name",
    "through_topics",
    "topic_name",
    "unavailable",
]


_Client = TypeVar("_Client")


class _Memory:
    """What is remembered until the setting changes: the reading, and its Kafka once it was found free of errors."""

    __slots__ = ("kafka", "reading")

    def __init__(self) -> None:
        self.reading: Reading | None = None
        self.kafka: Kafka | None = None


_memory = _Memory()


def _forget(*, setting: str, **_event: Any) -> None:
    # A new object, not an emptied one: a thread that is reading the old setting then stores it where nobody looks.
    global _memory
    if setting == "KAFKA":
        _memory = _Memory()


setting_changed.connect(_forget, dispatch_uid="django_kafka.conf")


def reading() -> Reading:
    """Return what settings.KAFKA means as far as it can be read, and everything that is wrong in it; never raises."""
    memory = _memory
    if memory.reading is None:
        memory.reading = parsing.read(getattr(settings, "KAFKA", None))
    return memory.reading


def kafka() -> Kafka:
    """Return what settings.KAFKA means, or raise a ConfigurationError that has each problem on a line."""
    memory = _memory
    if memory.kafka is None:
        found = reading()
        errors = [str(problem) for problem in found.problems if not problem.warning]
        if errors:
            raise ConfigurationError("\n".join(errors))
        memory.kafka = found.kafka
    return memory.kafka


def problems() -> list[Problem]:
    """Return everything that is wrong in settings.KAFKA; never raises."""
    return list(reading().problems)


def producer(name: str | None = None) -> Producer:
    """Return the producer of this name, or the default one."""
    whole = kafka()
    return _find(whole.producers, "producers", whole.default_producer if name is None else name)


def consumer(name: str | None = None) -> Consumer:
    """Return the consumer of this name, or the default one."""
    whole = kafka()
    return _find(whole.consumers, "consumers", whole.default_consumer if name is None else name)


def cluster(name: str = "default") -> Cluster:
    """Return the cluster of this name."""
    return _find(kafka().clusters, "clusters", name)


def topic_name(name: object) -> str:
    """Return a topic's name, without prefix, or raise a ConfigurationError when Kafka has no such names."""
    # Of the reading, not of kafka(): handlers are registered while Django starts, before checks can tell what is wrong.
    try:
        return topic(reading().kafka.topic_prefix)(name)  # type: ignore[no-any-return]
    except Wrong as wrong:
        raise ConfigurationError(
            f"{name!r} is no name for a topic; allowed: {wrong.allowed}. {wrong.hint}".rstrip()
        ) from None


def subscription_name(name: object) -> str:
    """Return what a handler is registered for, a topic or a pattern, or raise a ConfigurationError."""
    if not isinstance(name, str) or not is_pattern(name):
        return topic_name(name)
    try:
        return subscription(reading().kafka.topic_prefix)(name)  # type: ignore[no-any-return]
    except Wrong as wrong:
        raise ConfigurationError(f"{name!r} is not allowed; allowed: {wrong.allowed}. {wrong.hint}") from None


def unavailable(client: Consumer | Producer) -> list[str]:
    """Return a sentence for each setting whose behaviour this version lacks, and this consumer or producer needs."""
    return availability.lacking(client, kafka())


def _find(found: Mapping[str, _Client], kind: str, name: str | None) -> _Client:
    try:
        return found[name]  # type: ignore[index]  # None is never a key
    except KeyError:
        pass
    if name is None:
        has = "is empty; declare one." if not found else f"has none that is enabled; it has: {', '.join(found)}."
        raise UnknownName(f'KAFKA["{kind}"] {has}')
    has = f"it has: {', '.join(found)}." if found else "it is empty."
    raise UnknownName(f'KAFKA["{kind}"] has no {name!r}; {has}')
