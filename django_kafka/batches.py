"""Many records to one topic at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from operator import itemgetter, length_hint
from typing import Any

from .alike import AlikeReports
from .deliveries import Deliveries, Delivery, delivery_of
from .exceptions import CircuitOpen, QueueFull
from .gathering import gathered_by_context, here
from .producer import Producer, Route
from .producers import producers
from .producing import hand_over, open_transaction, outlet, route_to
from .records import FIELDS, Record, Wire, fields_of, prepare
from .reports import PAGE, Reports
from .routing import Routing, routed
from .sending import hand_patiently, is_alike, send_otherwise

_Columns = tuple["list[bytes | None]", "list[bytes | None]"]
"""The values and the keys of a batch."""
_KEY, _VALUE = itemgetter("key"), itemgetter("value")


def produce_batch(
    topic: str | None,
    records: Iterable[Record | Mapping[str, Any]],
    *,
    producer: str | None = None,
    routing: Routing | None = None,
) -> Sequence[Delivery]:
    """Send many records to one topic and return their deliveries in the same order.

    `routing` as for `produce`; each may go to another topic when that, or the producer's template, tells it. All are
    checked and serialized before the first is queued. Mappings take the fields of `Record`. Raises what `produce`
    raises; `QueueFull` and `CircuitOpen` say how many were taken before.
    """
    if routing is not None or producers[producer].router.needed:
        return _send_routed(producers[producer], topic, records, routing)
    route = route_to(producer, topic)
    records = list(records)
    watched = outlet.current is not None or (here.now.gathered or gathered_by_context.get()) is not None
    later = watched or route.producer.traced or (route.producer.on_commit and open_transaction() is not None)
    if not later and route.envelope is None and (columns := _columns_of_bytes(route, records)) is not None:
        return _send_columns(route, *columns)
    wires = [prepare(route, *fields_of(record)) for record in records]
    if later:
        return _hand_over_each([(route, wire) for wire in wires])
    if not all(map(is_alike, wires)):
        return _send_each(route, wires)
    return _send_columns(route, [wire[0] for wire in wires], [wire[1] for wire in wires])


def _send_routed(
    producer: Producer, topic: str | None, records: Iterable[Record | Mapping[str, Any]], routing: Routing | None
) -> list[Delivery]:
    """Send records each of which has to be asked where it goes."""
    captured = outlet.current is not None
    whole = [Record(**dict(zip(FIELDS, fields_of(one), strict=False))) for one in records]
    return _hand_over_each([routed(producer, topic, one, routing, captured=captured) for one in whole])


def _hand_over_each(records: Sequence[tuple[Route, Wire]]) -> list[Delivery]:
    deliveries: list[Delivery] = []
    try:
        for route, wire in records:
            deliveries.append(hand_over(route, wire))
    except (QueueFull, CircuitOpen) as error:
        raise _partly(error, len(deliveries), len(records)) from error
    return deliveries


def _send_each(route: Route, wires: Sequence[Wire]) -> Deliveries:
    """Send records of which some have a partition, headers or a timestamp, or are large."""
    pages = []
    for start in range(0, len(wires), PAGE):
        some = wires[start : start + PAGE]
        page = Reports(route.topic, route.producer, len(some))
        pages.append(page)
        for place, wire in enumerate(some):
            try:
                hand_patiently(route, wire, delivery_of(page, place))
            except (QueueFull, CircuitOpen) as error:
                raise _partly(error, start + place, len(wires)) from error
        route.producer.client.keep_up()
    return Deliveries(pages, len(wires))


def _columns_of_bytes(route: Route, records: list[Any]) -> _Columns | None:
    """Return the columns of what is largest in practice: mappings of bytes. None for anything else.

    Column by column in the interpreter's own loops: a look at each record costs a third of sending it.
    """
    try:
        if set(map(len, records)) != {2}:
            return None
        keys, values = list(map(_KEY, records)), list(map(_VALUE, records))
    except (KeyError, TypeError):
        return None
    if set(map(type, keys)) != {bytes} or set(map(type, values)) != {bytes}:
        return None
    longest = max(map(len, keys)) + max(map(len, values))
    return (values, keys) if longest <= route.producer.largest_alike else None


def _send_columns(route: Route, values: list[bytes | None], keys: list[bytes | None]) -> Deliveries:
    """Send records that are a value and a key and no more."""
    pages = []
    for start in range(0, len(values), PAGE):
        some = values[start : start + PAGE], keys[start : start + PAGE]
        page = AlikeReports(route.topic, route.producer, some[1], some[0])
        pages.append(page)
        _send_page(route, page, *some, before=start, of=len(values))
        route.producer.client.keep_up()
    return Deliveries(pages, len(values))


def _send_page(
    route: Route, page: AlikeReports, values: list[bytes | None], keys: list[bytes | None], *, before: int, of: int
) -> None:
    """Send the records of one page in the interpreter's own loop; so many `of` all came before it."""
    coming = iter(values)
    # The client is asked once, because one that is closed meanwhile takes nothing any more.
    handing = map(route.producer.client.produce, repeat(route.topic), coming, keys, repeat(-1), repeat(page.shared))
    while length_hint(coming):
        try:
            deque(handing, maxlen=0)
        except Exception as error:  # noqa: BLE001  # raised again unless it is about the record
            place = len(values) - length_hint(coming) - 1
            delivery = delivery_of(page, place)
            try:
                send_otherwise(route, (values[place], keys[place], -1, None, 0), delivery, error)
            except (QueueFull, CircuitOpen) as reason:
                raise _partly(reason, before + place, of) from reason


def _partly(error: QueueFull | CircuitOpen, taken: int, of: int) -> QueueFull | CircuitOpen:
    return type(error)(f"{error} {taken} of the {of} records of the batch were taken before.")
