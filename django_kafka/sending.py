"""Handing a record to the client: at once, or as soon as there is room; or saying why it is refused."""

from __future__ import annotations

import time

from .alike import LARGEST
from .clients.producer import refusal
from .deliveries import Delivery, delivery_of
from .envelopes.claim_check import Checked
from .exceptions import CircuitOpen, QueueFull
from .producer import Route
from .producers import producers
from .records import Wire
from .reports import Report


def send(route: Route, wire: Wire, delivery: Delivery | None = None) -> Delivery:
    """Hand a record to the client at once; wait for room when its queue is full.

    A large payload is left in its storage first. Raises `StorageUnavailable` when that takes none.
    """
    deposit(wire)
    if delivery is None:
        if is_alike(wire):
            return send_alike(route, wire[0], wire[1])
        delivery = route.promise()
    try:
        _hand_whole(route, wire, delivery.report)
    except Exception as error:  # noqa: BLE001  # raised again unless it is the library's
        send_otherwise(route, wire, delivery, error)
    return delivery


def deposit(wire: Wire) -> None:
    """Leave a large payload in its storage; raise `StorageUnavailable` when that takes none."""
    value = wire[0]
    if type(value) is Checked:
        value.deposit()


def is_alike(wire: Wire) -> bool:
    """Tell whether a record is a value and a key and no more, and not large."""
    value, key, partition, headers, timestamp = wire
    if headers is not None or partition >= 0 or timestamp:
        return False
    return (0 if value is None else len(value)) + (0 if key is None else len(key)) <= LARGEST


def send_alike(route: Route, value: bytes | None, key: bytes | None) -> Delivery:
    """Hand over a record that is a value and a key and no more."""
    page = route.page
    while (place := next(page.places, None)) is None:
        page = route.turn()
        # Here, too, and not only in the producer's own thread: it keeps the queue from filling.
        route.client.keep_up()
    delivery = delivery_of(page, place)
    page.keys[place] = key
    page.values[place] = value
    try:
        route.client.produce(route.topic, value, key, -1, page.shared)
    except BaseException as error:  # noqa: BLE001  # as above
        send_otherwise(route, (value, key, -1, None, 0), delivery, error)
    return delivery


def send_otherwise(route: Route, wire: Wire, delivery: Delivery, error: BaseException) -> None:
    """Wait for room in a full queue; fail the delivery of a record that the client refuses; raise all else."""
    try:
        if isinstance(error, BufferError):
            hand_patiently(route, wire, delivery)
        else:
            refuse(route, delivery, error)
    except BaseException:
        delivery.reports.forget(delivery.place)
        raise


def _hand_whole(route: Route, wire: Wire, report: Report) -> None:
    value, key, partition, headers, when = wire
    route.producer.client.produce(route.topic, value, key, partition, report, timestamp=when, headers=headers or [])


def hand_patiently(route: Route, wire: Wire, delivery: Delivery) -> None:
    """Hand a record over as soon as the queue takes it; raise `QueueFull` after `connection.timeout`."""
    deadline = time.monotonic() + route.producer.connection_timeout
    while True:
        try:
            return _hand_whole(route, wire, delivery.report)
        except BufferError:
            make_room(route, deadline)
        except Exception as error:  # noqa: BLE001  # as above
            return refuse(route, delivery, error)


def make_room(route: Route, deadline: float) -> None:
    """Serve delivery reports for a moment, which is what makes room; raise `QueueFull` after the deadline."""
    producer = route.producer
    if time.monotonic() > deadline:
        sentence = (
            f"No room for a record for {route.topic!r} in the queue of producer {producer.name!r} within "
            f"{producer.connection_timeout:g} s: {len(producer.client)} records wait. {producer.unreachable() or ''}"
        )
        raise producer.counted(route.topic, QueueFull(sentence.rstrip()))
    producer.client.serve(0.1)


def refuse(route: Route, delivery: Delivery, error: BaseException) -> None:
    """Fail the delivery of a record that the library refuses; raise what is no refusal."""
    refused = refusal(route.topic, error, route.producer.client.refusals)
    if refused is None:
        raise route.producer.counted(route.topic, error) if isinstance(error, CircuitOpen) else error
    # What is known about the topic decides whether the client refuses now or later: callers hear of both alike.
    refused.__cause__ = error
    delivery.refuse(refused)
    if refused.code == "_FATAL":
        producers.replace(route.producer)
