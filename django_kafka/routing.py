"""A record's topic and partition by the routing that settings or its caller ask for; refused before it is queued."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from . import conf
from .exceptions import ConfigurationError, KafkaError, Unroutable
from .partitioning import Function, Target, Unknown
from .producer import Producer, Route
from .records import Record, Wire, prepare

Routing = str | Function
"""What `produce` takes as `routing`: "key", "round_robin", "sticky", or a function of a `Record` and a `Target`."""


def routed(
    producer: Producer,
    topic: str | None,
    record: Record,
    routing: Routing | None = None,
    *,
    wait: bool = True,
    captured: bool = False,
) -> tuple[Route, Wire]:
    """Return where a record goes, and the record as it goes over the wire.

    `captured`: it does not go to brokers, which therefore are not asked: partitions are left to "by key", and a
    function sees one. Without `wait` `partitioning.Unknown` is raised instead of asking them. Raises `Unroutable`, and
    what `prepare` and `Producer.route` raise.
    """
    if isinstance(record.headers, Iterator):
        record = replace(record, headers=list(record.headers))  # which is looked at more than once
    try:
        goal, place = _goal(producer, topic, record, routing, wait=wait, captured=captured)
    except Unknown:
        raise
    except KafkaError as error:
        producer.counted(topic or producer.settings.topic or "", error)
        raise
    route = producer.route(goal)
    wire = prepare(route, record.key, record.value, record.headers, record.partition, record.timestamp)
    if record.partition is not None:
        return route, wire
    value, key, _partition, headers, when = wire
    if isinstance(place, str):
        size = len(value or b"") + len(key or b"")
        found = None if captured else _turn(producer, place, route.topic, size, wait=wait)
        return route, (value, key, -1 if found is None else found, headers, when)
    return route, (value, key, place, headers, when)


def _goal(
    producer: Producer, topic: str | None, record: Record, routing: Routing | None, *, wait: bool, captured: bool
) -> tuple[str | None, str | int]:
    """Return the topic, and a partition or the word for how it is found."""
    router = producer.router
    name = topic if topic is not None else router.topic_of(record.value, _pairs(record))
    strategy = router.strategy(name or "", routing)
    if isinstance(strategy, str):
        return name, strategy
    known = conf.kafka().prefixed(name) if name is not None else ""
    target = Target(name or "", lambda: 1 if captured else router.partitions.of(known, wait=wait))
    answer = _asked(strategy, record, target)
    if isinstance(answer, str):
        return _named(answer, strategy), "key"
    if answer is None or record.partition is not None:
        return name, "key"
    return name, _checked(answer, target, strategy)


def _turn(producer: Producer, word: str, topic: str, size: int, *, wait: bool) -> int | None:
    try:
        return producer.router.turn(word, topic, size, wait=wait)
    except KafkaError as error:
        producer.counted(topic, error)
        raise


def _asked(function: Function, record: Record, target: Target) -> object:
    try:
        return function(record, target)
    except (KafkaError, Unknown):
        raise
    except Exception as error:
        kind = type(error).__name__
        raise Unroutable(f"The routing {_path(function)} failed with {kind}: {error}") from error


def _named(answer: str, function: Function) -> str:
    try:
        return conf.topic_name(answer)
    except ConfigurationError as error:
        raise Unroutable(f"The routing {_path(function)} returned the topic {answer!r}: {error}") from error


def _checked(answer: object, target: Target, function: Function) -> int:
    if isinstance(answer, bool) or not isinstance(answer, int):
        kind = type(answer).__name__
        raise Unroutable(f"The routing {_path(function)} returned {kind}; allowed: a partition, a topic, None.")
    if not 0 <= answer < target.partitions:
        raise Unroutable(
            f"The routing {_path(function)} returned partition {answer}; {target.name!r} has {target.partitions}, "
            "numbered from 0."
        )
    return answer


def _path(function: Function) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}"


def _pairs(record: Record) -> Iterable[tuple[str, bytes | str | None]]:
    headers = record.headers
    if headers is None:
        return ()
    try:
        return [(name, value) for name, value in (headers.items() if isinstance(headers, Mapping) else headers)]
    except (TypeError, ValueError):
        return ()  # `prepare` says what is wrong with them
