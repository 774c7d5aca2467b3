"""Many records to one topic at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, repeat
from operator import itemgetter, length_hint
from typing import Any

from .deliveries import Deliveries, Delivery, Reports
from .exceptions import CircuitOpen, QueueFull
from .gathering import gathered_by_context, here
from .producers import PAGE, Route
from .producing import hand_over, hand_patiently, open_transaction, outlet, refuse, route_to
from .records import Record, Wire, fields_of, prepare

_Columns = tuple["Sequence[bytes | None]", "Sequence[bytes | None]"]
"""The values and the keys of a batch."""
_KEY, _VALUE = itemgetter("key"), itemgetter("value")


def produce_batch(
    topic: str | None, records: Iterable[Record | Mapping[str, Any]], *, producer: str | None = None
) -> Sequence[Delivery]:
    """Send many records to one topic and return their deliveries in the same order.

    All are checked and serialized before the first is queued. Mappings take the fields of `Record`. Raises what
    `produce` raises; `QueueFull` and `CircuitOpen` say how many were taken before.
    """
    route = route_to(producer, topic)
    records = list(records)
    watched = outlet.current is not None or (here.now.gathered or gathered_by_context.get()) is not None
    later = watched or (route.producer.on_commit and open_transaction() is not None)
    if not later and (columns := _columns_of_bytes(route, records)) is not None:
        return _send_columns(route, *columns)
    wires = [prepare(route, *fields_of(record)) for record in records]
    if later:
        return _hand_over_each(route, wires)
    if any(wire[2] >= 0 or wire[3] is not None or wire[4] for wire in wires):
        return _send_each(route, wires)
    return _send_columns(route, [wire[0] for wire in wires], [wire[1] for wire in wires])


def _hand_over_each(route: Route, wires: Sequence[Wire]) -> list[Delivery]:
    deliveries: list[Delivery] = []
    try:
        for wire in wires:
            deliveries.append(hand_over(route, wire))
    except (QueueFull, CircuitOpen) as error:
        raise _partly(error, len(deliveries), len(wires)) from error
    return deliveries


def _send_each(route: Route, wires: Sequence[Wire]) -> Deliveries:
    """Send records of which some have a partition, headers or a timestamp."""
    reports = Reports(route.topic, route.producer, len(wires))
    for number, (wire, report) in enumerate(zip(wires, reports.takers(), strict=True), 1):
        try:
            hand_patiently(route, wire, report)
        except (QueueFull, CircuitOpen) as error:
            raise _partly(error, number - 1, len(wires)) from error
        if not number % PAGE:
            route.producer.client.serve(0)
    return Deliveries(reports)


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
    return (values, keys) if longest <= route.producer.max_bytes else None


def _send_columns(route: Route, values: Sequence[bytes | None], keys: Sequence[bytes | None]) -> Deliveries:
    """Send records that are a value and a key, in the interpreter's own loop."""
    reports = Reports(route.topic, route.producer, len(values))
    client = route.producer.client
    coming, their_keys, takers = iter(values), iter(keys), reports.takers()
    while length_hint(coming):
        # Asked for once a page, because a client that is closed meanwhile takes nothing any more.
        handing = map(client.produce, repeat(route.topic), coming, their_keys, repeat(-1), takers)
        try:
            deque(islice(handing, PAGE), maxlen=0)
        except Exception as error:  # noqa: BLE001  # raised again unless it is about the record
            number = len(values) - length_hint(coming) - 1
            report = reports.delivery(number).report
            try:
                if isinstance(error, BufferError):
                    hand_patiently(route, (values[number], keys[number], -1, None, 0), report)
                else:
                    refuse(route, report, error)
            except (QueueFull, CircuitOpen) as reason:
                raise _partly(reason, number, len(values)) from reason
        client.serve(0)
    return Deliveries(reports)


def _partly(error: QueueFull | CircuitOpen, taken: int, of: int) -> QueueFull | CircuitOpen:
    return type(error)(f"{error} {taken} of the {of} records of the batch were taken before.")
