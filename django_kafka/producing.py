"""The one way out: a record is checked, serialized, and handed to its producer now or on commit."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import receiver

from . import conf, serializers
from .clients.producer import refusal, reporter
from .exceptions import ConfigurationError, DeliveryDiscarded, EncodeError, QueueFull, RecordTooLarge
from .messages import Delivery, Headers, Record
from .producers import Gathered, Producer, Route, Sent, collector, producers
from .signals import produce_requested

Wire = tuple[str, "bytes | None", "bytes | None", int, "list[tuple[str, bytes | None]] | None", int]
"""A record as the client takes it: topic, value, key, partition (-1: by routing), headers, timestamp (0: now)."""

_RECORD_OVERHEAD, _HEADER_OVERHEAD = 100, 10
"""Bytes that Kafka adds to a record and to each of its headers, at the most (librdkafka counts them too)."""


def produce(
    topic: str | None,
    key: Any,
    value: Any,
    *,
    headers: Headers | None = None,
    partition: int | None = None,
    timestamp: datetime | int | None = None,
    producer: str | None = None,
) -> Delivery:
    """Send one record and return its delivery.

    `topic` is named without prefix; None takes the producer's own. With `"send": "on_commit"` the record leaves when
    the transaction that is open in this thread commits, and at once when none is open. Raises `EncodeError`,
    `RecordTooLarge` or `ConfigurationError` before anything is queued, and `QueueFull` when there was no room.
    """
    chosen = producers[producer or _default()]
    wire = prepare(chosen, topic, key, value, headers, partition, timestamp)
    if outlet := _outlet.current:
        return outlet(chosen, wire)
    return hand_over(chosen, wire)


def hand_over(producer: Producer, wire: Wire) -> Delivery:
    """Send a prepared record when its transaction commits, or at once when there is none."""
    gathered = collector.current()
    if producer.settings.send == "on_commit" and (connection := _open_transaction()):
        delivery = Delivery(wire[0], producer, uncommitted=True)
        promise = _OnCommit(producer, wire, delivery, gathered)
        transaction.on_commit(promise, using=connection.alias)
        if gathered is not None:
            gathered.promised.append(weakref.ref(promise))
        return delivery
    delivery = send(producer, wire, Delivery(wire[0], producer))
    if gathered is not None:
        gathered.sent.append(Sent(delivery, partial(_send_again, producer.name, wire)))
    return delivery


def _send_again(producer: str, wire: Wire) -> Delivery:
    return send(producers[producer], wire, Delivery(wire[0], producers[producer]))


def send(producer: Producer, wire: Wire, delivery: Delivery) -> Delivery:
    """Hand a record to the client at once; wait for room when its queue is full."""
    topic, value, key, partition, headers, timestamp = wire
    report = reporter(producer.acknowledged, producer.gave_up, delivery)
    while True:
        try:
            if headers is None and not timestamp:
                producer.client.produce(topic, value, key, partition, report)
            else:
                producer.client.produce(topic, value, key, partition, report, timestamp=timestamp, headers=headers or ())
            break
        except BufferError:
            _wait_for_room(producer, topic)
        except Exception as error:
            refused = refusal(topic, error)
            if refused is None:
                raise
            raise refused from error
    producer.serve_now_and_then()
    return delivery


def _wait_for_room(producer: Producer, topic: str) -> None:
    deadline = time.monotonic() + producer.connection_timeout
    full = len(producer.client)
    while len(producer.client) >= full:
        producer.client.serve(0.1)
        if time.monotonic() > deadline:
            raise QueueFull(
                f"No room for a record for {topic!r} in the queue of producer {producer.name!r} within "
                f"{producer.connection_timeout:g} s: {full} records wait. {producer.unreachable() or ''}".rstrip()
            )


def produce_batch(topic: str | None, records: Iterable[Record | Mapping[str, Any]], *, producer: str | None = None) -> list[Delivery]:
    """Send many records to one topic and return their deliveries in the same order.

    All are checked and serialized before the first is queued. Mappings take the fields of `Record`.
    """
    chosen = producers[producer or _default()]
    wires = [prepare(chosen, topic, *_fields(record)) for record in records]
    if outlet := _outlet.current:
        return [outlet(chosen, wire) for wire in wires]
    later = collector.current() is not None or (chosen.settings.send == "on_commit" and _open_transaction())
    if later or any(wire[4] is not None for wire in wires):
        return [hand_over(chosen, wire) for wire in wires]
    return _send_batch(chosen, wires)


def _send_batch(producer: Producer, wires: Sequence[Wire]) -> list[Delivery]:
    """Hand records without headers to the client in one call each thousand: it takes none in a batch."""
    deliveries = []
    for start in range(0, len(wires), 1000):
        piece = wires[start : start + 1000]
        batch = []
        for topic, value, key, partition, _headers, timestamp in piece:
            delivery = Delivery(topic, producer)
            deliveries.append(delivery)
            record: dict[str, Any] = {
                "value": value,
                "key": key,
                "callback": reporter(producer.acknowledged, producer.gave_up, delivery),
            }
            if partition >= 0:
                record["partition"] = partition
            if timestamp:
                record["timestamp"] = timestamp
            batch.append(record)
        producer.client.produce_batch(piece[0][0], batch)
        for index, record in enumerate(batch):
            if "_error" in record:
                send(producer, piece[index], deliveries[start + index])
        producer.client.serve(0)
    return deliveries


def _fields(record: Record | Mapping[str, Any]) -> tuple[Any, ...]:
    if not isinstance(record, Record):
        try:
            record = Record(**record)
        except TypeError as error:
            raise ConfigurationError(f"A record of a batch has key and value, and maybe headers, partition, timestamp: {error}") from error
    return record.key, record.value, record.headers, record.partition, record.timestamp


async def aproduce(topic: str | None, key: Any, value: Any, **options: Any) -> Delivery:
    """Send one record from a coroutine at once and return its delivery, which can be awaited.

    Takes what `produce` takes. The event loop goes on while a full queue makes room.
    """
    chosen = producers[options.pop("producer", None) or _default()]
    arguments = {"headers": None, "partition": None, "timestamp": None, **options}
    wire = prepare(chosen, topic, key, value, **arguments)
    if outlet := _outlet.current:
        return outlet(chosen, wire)
    return await asyncio.to_thread(hand_over, chosen, wire) if _crowded(chosen) else hand_over(chosen, wire)


def _crowded(producer: Producer) -> bool:
    return len(producer.client) >= producer.queue_limit - 1


def prepare(
    producer: Producer,
    topic: str | None,
    key: Any,
    value: Any,
    headers: Headers | None = None,
    partition: int | None = None,
    timestamp: datetime | int | None = None,
) -> Wire:
    """Return a record as it goes over the wire, or raise what is wrong with it."""
    route = producer.route(topic or _own_topic(producer))
    if key is not None and type(key) is not bytes:
        key = serializers.encode(route.key, key, route.topic, "key")
    if value is not None and type(value) is not bytes:
        value = serializers.encode(route.value, value, route.topic, "value")
    pairs = None if headers is None else _headers(headers, route.topic)
    size = (0 if value is None else len(value)) + (0 if key is None else len(key))
    if pairs:
        size += sum(len(name) + len(content or b"") + _HEADER_OVERHEAD for name, content in pairs)
    if size > producer.max_bytes - _RECORD_OVERHEAD:
        raise RecordTooLarge(
            f"The record for {route.topic!r} has {size} bytes; producer {producer.name!r} sends up to "
            f"{producer.max_bytes - _RECORD_OVERHEAD} (its option \"message.max.bytes\" less what Kafka adds)."
        )
    if partition is not None and (isinstance(partition, bool) or not isinstance(partition, int) or partition < 0):
        raise ConfigurationError(f"The partition for {route.topic!r} is {partition!r}; it must be 0 or more, or None.")
    return (
        route.topic,
        value,
        key,
        -1 if partition is None else partition,
        pairs,
        0 if timestamp is None else _milliseconds(timestamp, route.topic),
    )


def _own_topic(producer: Producer) -> str:
    if producer.settings.topic is None:
        raise ConfigurationError(f"No topic given, and producer {producer.name!r} has none of its own.")
    return producer.settings.topic


def _headers(headers: Headers, topic: str) -> list[tuple[str, bytes | None]]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    encoded: list[tuple[str, bytes | None]] = []
    for name, value in pairs:
        if not isinstance(name, str) or "\0" in name:
            raise EncodeError(f"A header for {topic!r} is called {name!r}; a name is text without NUL.")
        if isinstance(value, str):
            value = value.encode()
        if value is not None and not isinstance(value, bytes):
            raise EncodeError(f"The header {name!r} for {topic!r} is {type(value).__name__}; it must be bytes, text or None.")
        encoded.append((name, value))
    return encoded


def _milliseconds(timestamp: datetime | int, topic: str) -> int:
    if isinstance(timestamp, datetime):
        return round(timestamp.timestamp() * 1000)
    if isinstance(timestamp, int) and timestamp > 0:
        return timestamp
    raise ConfigurationError(f"The timestamp for {topic!r} is {timestamp!r}; it must be a datetime or milliseconds since 1970.")


def _default() -> str:
    name = conf.kafka().default_producer
    if name is None:
        raise ConfigurationError('KAFKA["producers"] has no enabled producer; with none given there is one called default.')
    return name


class _Here(threading.local):
    """The database connections of a thread: Django keeps one object per thread and alias, and asking for it is slow."""

    def __init__(self) -> None:
        self.connections: Sequence[BaseDatabaseWrapper] = sorted(connections.all(), key=lambda one: one.alias != "default")


_here = _Here()


def _open_transaction() -> BaseDatabaseWrapper | None:
    """Return the connection with a transaction open in this thread; "default" before others."""
    for connection in _here.connections:
        if connection.in_atomic_block:
            return connection
    return None


class _OnCommit:
    """The commit hook that sends a record. Dropped without having run, it discards the delivery."""

    __slots__ = ("__weakref__", "_delivery", "_gathered", "_producer", "_wire")

    def __init__(self, producer: Producer, wire: Wire, delivery: Delivery, gathered: Gathered | None) -> None:
        self._producer = producer
        self._wire = wire
        self._delivery = delivery
        self._gathered = gathered

    def __call__(self) -> None:
        if self._delivery.state != "uncommitted":
            return
        # What a hook raises would hide the hooks after it, and look like a failed transaction: the delivery says it.
        self._delivery.queued()
        try:
            send(producers[self._producer.name], self._wire, self._delivery)
        except Exception as error:  # noqa: BLE001
            self._producer.gave_up(self._delivery, error)
        if self._gathered is not None:
            self._gathered.sent.append(Sent(self._delivery, partial(_send_again, self._producer.name, self._wire)))

    def __del__(self) -> None:
        if self._delivery.state == "uncommitted":
            self._producer.tally.discarded += 1
            self._delivery.fail(
                DeliveryDiscarded(f"The record for {self._wire[0]!r} was not sent: its transaction did not commit.")
            )


class _Outlet:
    """Where records go instead of Kafka, while `testing.produced` captures them."""

    current: Callable[[Producer, Wire], Delivery] | None = None


_outlet = _Outlet()


@receiver(produce_requested, dispatch_uid="django_kafka.producing")
def _produce_on_request(sender: Any, *, topic: str | None, key: Any, value: Any, signal: Any = None, **options: Any) -> Delivery:
    return produce(topic, key, value, **options)
