"""The one way out: a record is handed to its producer now or on commit."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import receiver

from . import correlation, tracing
from .deliveries import Delivery
from .exceptions import DeliveryDiscarded, KafkaError
from .gathering import Gathered, Sent, gathered_by_context, here
from .partitioning import Unknown
from .producer import Producer, Route
from .producers import living, producers
from .records import Headers, Record, Wire, prepare, with_headers
from .routing import Routing, routed
from .sending import make_room, send, send_alike, send_otherwise
from .signals import produce_requested

_local = here.local


def produce(
    topic: str | None,
    key: Any,
    value: Any,
    *,
    headers: Headers | None = None,
    partition: int | None = None,
    timestamp: datetime | int | None = None,
    producer: str | None = None,
    routing: Routing | None = None,
) -> Delivery:
    """Send one record and return its delivery.

    `topic` is named without prefix; None takes the producer's own. `routing` is "key", "round_robin", "sticky" or a
    function, instead of what settings say; a `partition` that is given wins over it. With `"send": "on_commit"` the
    record leaves when the transaction that is open in this thread commits, and at once when none is open. Raises
    `EncodeError`, `RecordTooLarge`, `Unroutable` or `ConfigurationError` before anything is queued, `QueueFull` when
    there was no room, and `CircuitOpen` while brokers have been out of reach for long.
    """
    if routing is not None:
        return _route_and_send(producers[producer], topic, key, value, headers, partition, timestamp, routing)
    try:
        chosen = producers.made[producer]
        route = chosen.routes[topic]
    except KeyError:
        chosen = producers[producer]
        if chosen.router.needed:
            return _route_and_send(chosen, topic, key, value, headers, partition, timestamp)
        route = chosen.route(topic)
        if route.envelope is not None:
            return hand_over(route, prepare(route, key, value, headers, partition, timestamp))
    # What most records are, key and value in bytes and no more, is sent from here: what is below, but without its calls
    # and tuples, which took half as long as the client itself.
    if type(value) is bytes and type(key) is bytes and headers is None and partition is None and timestamp is None:
        try:
            now = _local.now
        except AttributeError:
            now = here.now
        gathers = (now.gathered or gathered_by_context.get()) if Gathered.any else None
        if gathers is None and outlet.current is None and len(value) + len(key) <= chosen.largest_alike:
            for connection in now.connections if chosen.on_commit else ():
                if connection.in_atomic_block:
                    break
            else:
                page = route.page
                if (place := next(page.places, None)) is None:
                    return send_alike(route, value, key)
                delivery = Delivery()
                # No call comes between entering the record and sending it, and so nothing that a signal handler raises.
                delivery.reports = page
                delivery.place = place
                page.keys[place] = key
                page.values[place] = value
                try:
                    route.client.produce(route.topic, value, key, -1, page.shared)
                except BaseException as error:  # noqa: BLE001  # raised again unless it is the library's
                    send_otherwise(route, (value, key, -1, None, 0), delivery, error)
                return delivery
    return hand_over(route, prepare(route, key, value, headers, partition, timestamp))


def _route_and_send(
    producer: Producer,
    topic: str | None,
    key: Any,
    value: Any,
    headers: Headers | None,
    partition: int | None,
    timestamp: datetime | int | None,
    routing: Routing | None = None,
) -> Delivery:
    record = Record(key=key, value=value, headers=headers, partition=partition, timestamp=timestamp)
    return hand_over(*routed(producer, topic, record, routing, captured=outlet.current is not None))


def route_to(producer: str | None, topic: str | None) -> Route:
    """Return where the records of a producer for a topic go, both as callers name them."""
    return producers[producer].route(topic)


def hand_over(route: Route, wire: Wire, *, in_span: bool = False) -> Delivery:
    """Send a prepared record when its transaction commits, or at once when there is none."""
    if outlet.current is not None:
        return outlet.current(route, _carrying_on(route, wire))
    try:
        now = _local.now
    except AttributeError:
        now = here.now
    gathered = now.gathered or gathered_by_context.get()
    if gathered is not None and gathered.capture is not None:
        return gathered.capture(route, _carrying_on(route, wire))
    if route.producer.traced and not in_span:
        return _traced(route, wire, lambda whole: hand_over(route, whole, in_span=True))
    if gathered is not None:
        wire = _carrying_on(route, wire)
    if route.producer.on_commit:
        # As open_transaction() does, but without its second look at the thread.
        for connection in now.connections:
            if connection.in_atomic_block:
                return _send_on_commit(route, wire, connection, gathered)
    delivery = send(route, wire)
    if gathered is not None:
        gathered.sent.append(Sent(delivery, partial(_send_again, route, wire)))
    return delivery


def send_now(route: Route, wire: Wire) -> Delivery:
    """Send a prepared record at once and as it is, whatever transaction is open and whichever handler runs.

    It gets no header, also where it is traced: a replay, and what comes back from a retry topic, is known by those.
    """
    if outlet.current is not None:
        return outlet.current(route, wire, True)
    return _traced(route, wire, lambda _whole: send(route, wire)) if route.producer.traced else send(route, wire)


def _carrying_on(route: Route, wire: Wire) -> Wire:
    """Return a record with the correlation id of the message whose handler produces it."""
    more = correlation.to_carry(wire[3])
    return with_headers(route, wire, more) if more else wire


def _traced(route: Route, wire: Wire, do: Callable[[Wire], Delivery]) -> Delivery:
    """Send a record in a span, which ends with its delivery."""
    value, key, _partition, headers, _timestamp = wire
    sending = tracing.Sending(route.producer.settings, route.topic, value, key, headers or ())
    try:
        delivery = do(with_headers(route, wire, sending.headers))
    except BaseException as error:
        sending.failed(error)
        raise
    sending.follow(delivery)
    return delivery


def _send_on_commit(route: Route, wire: Wire, connection: BaseDatabaseWrapper, gathered: Gathered | None) -> Delivery:
    if route.producer.reachability.open:
        # Not on commit, when it could only be lost: here the caller's transaction can still be rolled back.
        raise route.producer.counted(route.topic, route.producer.refusal())
    delivery = route.promise()
    delivery.promise()
    promise = _OnCommit(route, wire, delivery, gathered)
    transaction.on_commit(promise, using=connection.alias)
    if gathered is not None:
        gathered.promised.append(weakref.ref(promise))
    return delivery


def _send_again(route: Route, wire: Wire) -> Delivery:
    return send_now(living(route), wire)


async def aproduce(topic: str | None, key: Any, value: Any, **options: Any) -> Delivery:
    """Send one record from a coroutine at once and return its delivery, which can be awaited.

    Takes what `produce` takes. The event loop goes on while a full queue makes room.
    """
    producer, routing = producers[options.pop("producer", None)], options.pop("routing", None)
    if routing is not None or producer.router.needed:
        route, wire = await _routed(producer, topic, Record(key=key, value=value, **options), routing)
    else:
        route = producer.route(topic)
        wire = prepare(route, key, value, **{"headers": None, "partition": None, "timestamp": None, **options})
    deadline = time.monotonic() + route.producer.connection_timeout
    while len(route.producer.client) >= route.producer.queue_limit - 1:
        # Only the waiting happens elsewhere: the record belongs to this thread, its transaction and its handler.
        await asyncio.to_thread(make_room, route, deadline)
    return hand_over(route, wire)


async def _routed(producer: Producer, topic: str | None, record: Record, routing: Routing | None) -> tuple[Route, Wire]:
    while True:
        try:
            return routed(producer, topic, record, routing, wait=False, captured=outlet.current is not None)
        except Unknown as unknown:
            try:
                await asyncio.to_thread(producer.router.partitions.learn, unknown.topic)
            except KafkaError as error:
                producer.counted(unknown.topic, error)
                raise


def open_transaction() -> BaseDatabaseWrapper | None:
    """Return the connection with a transaction open in this thread; "default" before others."""
    for connection in here.now.connections:
        if connection.in_atomic_block:
            return connection
    return None


class _OnCommit:
    """The commit hook that sends a record. Dropped without having run, it discards the delivery."""

    __slots__ = ("__weakref__", "_delivery", "_gathered", "_route", "_wire")

    def __init__(self, route: Route, wire: Wire, delivery: Delivery, gathered: Gathered | None) -> None:
        self._route = route
        self._wire = wire
        self._delivery = delivery
        self._gathered = gathered

    def __call__(self) -> None:
        delivery = self._delivery
        if delivery.state != "uncommitted":
            return
        # What a hook raises would hide the hooks after it, and look like a failed transaction: the delivery says it.
        delivery.queued()
        try:
            send(living(self._route), self._wire, delivery)
        except Exception as error:  # noqa: BLE001
            self._route.producer.gave_up(delivery, error)
        if self._gathered is not None:
            self._gathered.sent.append(Sent(delivery, partial(_send_again, self._route, self._wire)))

    def __del__(self) -> None:
        if self._delivery.state == "uncommitted":
            self._route.producer.tally.discarded += 1
            topic = self._route.topic
            self._delivery.fail(
                DeliveryDiscarded(f"The record for {topic!r} was not sent: its transaction did not commit.")
            )


class Outlet:
    """Where records go instead of Kafka, while `testing.produced` captures them."""

    current: Callable[..., Delivery] | None = None
    """Takes a route, a record, and whether it leaves before the transaction that is open; returns its delivery."""


outlet = Outlet()


@receiver(produce_requested, dispatch_uid="django_kafka.producing")
def _produce_on_request(
    sender: Any, *, topic: str | None, key: Any, value: Any, signal: Any = None, **options: Any
) -> Delivery:
    return produce(topic, key, value, **options)
