"""The one way out: a record is handed to its producer now or on commit."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import receiver

from .clients.producer import refusal
from .deliveries import Delivery
from .exceptions import DeliveryDiscarded, QueueFull
from .gathering import Gathered, Sent, gathered_by_context, here
from .producers import SERVE_EVERY, Producer, producers
from .records import Headers, Record, Wire, fields_of, prepare
from .signals import produce_requested


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
    chosen = producers[producer]
    return hand_over(chosen, prepare(chosen, topic, key, value, headers, partition, timestamp))


def hand_over(producer: Producer, wire: Wire) -> Delivery:
    """Send a prepared record when its transaction commits, or at once when there is none."""
    if outlet.current is not None:
        return outlet.current(producer, wire)
    now = here.now
    if producer.on_commit:
        # As open_transaction() does, but without its second look at the thread: this runs for every record.
        for connection in now.connections:
            if connection.in_atomic_block:
                return _send_on_commit(producer, wire, connection, now.gathered)
    delivery = send(producer, wire, Delivery(wire[0], producer))
    if now.gathered is not None:
        now.gathered.sent.append(Sent(delivery, partial(_send_again, producer.name, wire)))
    return delivery


def send_now(producer: Producer, wire: Wire) -> Delivery:
    """Send a prepared record at once, whatever transaction is open and whichever handler runs."""
    if outlet.current is not None:
        return outlet.current(producer, wire)
    return send(producer, wire, Delivery(wire[0], producer))


def _send_on_commit(
    producer: Producer, wire: Wire, connection: BaseDatabaseWrapper, gathered: Gathered | None
) -> Delivery:
    delivery = Delivery(wire[0], producer, uncommitted=True)
    promise = _OnCommit(producer, wire, delivery, gathered)
    transaction.on_commit(promise, using=connection.alias)
    if gathered is not None:
        gathered.promised.append(weakref.ref(promise))
    return delivery


def _send_again(producer: str, wire: Wire) -> Delivery:
    return send(producers[producer], wire, Delivery(wire[0], producers[producer]))


def send(producer: Producer, wire: Wire, delivery: Delivery) -> Delivery:
    """Hand a record to the client at once; wait for room when its queue is full."""
    topic, value, key, partition, headers, timestamp = wire
    client = producer.client
    deadline = None
    while True:
        try:
            if headers is None and not timestamp:
                client.produce(topic, value, key, partition, delivery)
            else:
                client.produce(topic, value, key, partition, delivery, timestamp=timestamp, headers=headers or [])
            break
        except BufferError:
            deadline = deadline or time.monotonic() + producer.connection_timeout
            _make_room(producer, topic, deadline)
        except Exception as error:
            refused = refusal(topic, error)
            if refused is None:
                raise
            # What is known about the topic decides whether the client refuses now or later: callers hear of both alike.
            refused.__cause__ = error
            producer.gave_up(delivery, refused)
            if refused.code == "_FATAL":
                producers.replace(producer)
            return delivery
    producer.sent += 1
    if not producer.sent % SERVE_EVERY:
        # Here, too, and not only in the producer's own thread: it keeps the queue from filling.
        client.serve(0)
    return delivery


def _make_room(producer: Producer, topic: str, deadline: float) -> None:
    """Serve delivery reports for a moment, which is what makes room; raise `QueueFull` after the deadline."""
    if time.monotonic() > deadline:
        sentence = (
            f"No room for a record for {topic!r} in the queue of producer {producer.name!r} within "
            f"{producer.connection_timeout:g} s: {len(producer.client)} records wait. {producer.unreachable() or ''}"
        )
        raise QueueFull(sentence.rstrip())
    producer.client.serve(0.1)


def produce_batch(
    topic: str | None, records: Iterable[Record | Mapping[str, Any]], *, producer: str | None = None
) -> list[Delivery]:
    """Send many records to one topic and return their deliveries in the same order.

    All are checked and serialized before the first is queued. Mappings take the fields of `Record`. Raises what
    `produce` raises; `QueueFull` says how many were taken before.
    """
    chosen = producers[producer]
    wires = [prepare(chosen, topic, *fields_of(record)) for record in records]
    later = outlet.current or here.now.gathered is not None or (chosen.on_commit and open_transaction())
    # In a batch the client ignores partitions, and takes neither headers nor timestamps.
    plain = not later and all(wire[3] < 0 and wire[4] is None and not wire[5] for wire in wires)
    deliveries: list[Delivery] = []
    try:
        for start in range(0, len(wires), SERVE_EVERY):
            piece = wires[start : start + SERVE_EVERY]
            # With too little room the client would take later records after it refused earlier ones.
            if plain and len(chosen.client) + len(piece) < chosen.queue_limit:
                deliveries += _send_batch(chosen, piece)
            else:
                for wire in piece:
                    deliveries.append(hand_over(chosen, wire))
    except QueueFull as error:
        taken = f"{len(deliveries)} of the {len(wires)} records of the batch were taken before."
        raise QueueFull(f"{error} {taken}") from error
    return deliveries


def _send_batch(producer: Producer, wires: Sequence[Wire]) -> list[Delivery]:
    """Hand records without partition, headers and timestamp to the client in one call."""
    topic = wires[0][0]
    deliveries = [Delivery(topic, producer) for _ in wires]
    batch: list[dict[str, Any]] = [
        {"value": wire[1], "key": wire[2], "callback": delivery}
        for wire, delivery in zip(wires, deliveries, strict=True)
    ]
    if producer.client.produce_batch(topic, batch) < len(batch):
        for wire, delivery, record in zip(wires, deliveries, batch, strict=True):
            if "_error" in record:
                send(producer, wire, delivery)
    producer.client.serve(0)
    return deliveries


async def aproduce(topic: str | None, key: Any, value: Any, **options: Any) -> Delivery:
    """Send one record from a coroutine at once and return its delivery, which can be awaited.

    Takes what `produce` takes. The event loop goes on while a full queue makes room.
    """
    chosen = producers[options.pop("producer", None)]
    arguments = {"headers": None, "partition": None, "timestamp": None, **options}
    wire = prepare(chosen, topic, key, value, **arguments)
    deadline = time.monotonic() + chosen.connection_timeout
    while _crowded(chosen):
        # Only the waiting happens elsewhere: the record belongs to this thread, its transaction and its handler.
        await asyncio.to_thread(_make_room, chosen, wire[0], deadline)
    delivery = hand_over(chosen, wire)
    gathered = gathered_by_context.get()
    if gathered is not None and gathered is not here.now.gathered:
        # `async_to_sync` runs the coroutines of a handler in a thread of their own, but in its context.
        gathered.sent.append(Sent(delivery, partial(_send_again, chosen.name, wire)))
    return delivery


def _crowded(producer: Producer) -> bool:
    return len(producer.client) >= producer.queue_limit - 1


def open_transaction() -> BaseDatabaseWrapper | None:
    """Return the connection with a transaction open in this thread; "default" before others."""
    for connection in here.now.connections:
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


class Outlet:
    """Where records go instead of Kafka, while `testing.produced` captures them."""

    current: Callable[[Producer, Wire], Delivery] | None = None


outlet = Outlet()


@receiver(produce_requested, dispatch_uid="django_kafka.producing")
def _produce_on_request(
    sender: Any, *, topic: str | None, key: Any, value: Any, signal: Any = None, **options: Any
) -> Delivery:
    return produce(topic, key, value, **options)
