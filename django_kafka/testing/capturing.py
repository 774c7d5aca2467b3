"""What was sent in a test, instead of sending it."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from django.db import transaction

from ..deliveries import Delivery
from ..exceptions import DeliveryDiscarded
from ..producer import Route
from ..producers import producers
from ..producing import open_transaction, outlet
from ..records import Headers, Record, Wire
from ..routing import routed
from ..serializers import Serializer, decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """A record that was sent while `produced` captured."""

    producer: str
    """The producer's name."""
    topic: str
    """The topic as Kafka would know it, prefix included."""
    key: Any
    """The key, as a consumer with the same serializer would see it; its bytes when it cannot be read."""
    value: Any
    """The value, likewise."""
    raw_key: bytes | None
    """The key's bytes."""
    raw_value: bytes | None
    """The value's bytes; None is a tombstone."""
    headers: tuple[tuple[str, bytes | None], ...]
    """All headers in order."""
    partition: int | None
    """The partition that was asked for."""
    timestamp_ms: int | None
    """The timestamp that was asked for, in milliseconds since the epoch."""


class ProducedRecords(Sequence[Produced]):
    """The records so far, in the order in which they were sent.

    What was produced in a transaction is here as long as that is not rolled back, so that this works inside a
    `TestCase`, whose transaction never commits.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[Produced, Delivery]] = []

    @overload
    def __getitem__(self, index: int) -> Produced: ...
    @overload
    def __getitem__(self, index: slice) -> list[Produced]: ...
    def __getitem__(self, index: int | slice) -> Produced | list[Produced]:
        return self._kept()[index]

    def __len__(self) -> int:
        return len(self._kept())

    def __repr__(self) -> str:
        return repr(self._kept())

    def _kept(self) -> list[Produced]:
        return [made for made, delivery in self._entries if delivery.state != "failed"]

    def to(self, topic: str) -> list[Produced]:
        """Return those sent to `topic`, named with its prefix."""
        return [made for made in self if made.topic == topic]

    def take(self, route: Route, wire: Wire, at_once: bool = False) -> Delivery:
        """Capture one record; its delivery is acknowledged as soon as Kafka could have had it."""
        connection = open_transaction() if route.producer.on_commit and not at_once else None
        delivery = route.promise()
        self._entries.append((_seen(route, wire), delivery))
        if connection is None:
            _acknowledge(delivery)
        else:
            delivery.promise()
            transaction.on_commit(_Hook(delivery), using=connection.alias)
        return delivery


class _Hook:
    """Acknowledges on commit; dropped without having run, it discards."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        weakref.finalize(self, _discard, delivery)

    def __call__(self) -> None:
        _acknowledge(self._delivery)


class _Report:
    """A delivery report of nobody's."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def latency(self) -> None:
        """Say that it went nowhere, so that it took no time."""

    def __len__(self) -> int:
        return 0


_offsets = itertools.count()


def _acknowledge(delivery: Delivery) -> None:
    delivery.report(None, _Report(next(_offsets)))


def _discard(delivery: Delivery) -> None:
    if not delivery.done():
        delivery.fail(
            DeliveryDiscarded(f"The record for {delivery.topic!r} was not sent: its transaction did not commit.")
        )


def _decoded(
    serializer: Serializer, data: bytes | None, topic: str, headers: Sequence[tuple[str, bytes | None]]
) -> Any:
    try:
        return None if data is None else decode(serializer, data, topic, headers)
    except Exception:  # noqa: BLE001  # bytes that were sent as they were may be anything
        return data


def _opened(route: Route, data: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> Any:
    if route.envelope is None or data is None:
        return _decoded(route.value, data, route.topic, headers)
    try:
        return route.envelope.open(data, headers)
    except Exception:  # noqa: BLE001  # as above
        return data


def _seen(route: Route, wire: Wire) -> Produced:
    value, key, partition, headers, timestamp = wire
    return Produced(
        producer=route.producer.name,
        topic=route.topic,
        key=_decoded(route.key, key, route.topic, headers or ()),
        value=_opened(route, value, headers or ()),
        raw_key=key,
        raw_value=value,
        headers=tuple(headers or ()),
        partition=None if partition < 0 else partition,
        timestamp_ms=timestamp or None,
    )


@contextlib.contextmanager
def produced() -> Iterator[ProducedRecords]:
    """Capture what is produced in this process until the block ends; nothing is sent to Kafka."""
    records = ProducedRecords()
    before, outlet.current = outlet.current, records.take
    try:
        yield records
    finally:
        outlet.current = before


def record(
    topic: str | None, key: Any, value: Any, *, headers: Headers | None = None, producer: str | None = None
) -> Produced:
    """Return a record as if it had been produced, to give it to `consume`."""
    made = Record(key=key, value=value, headers=headers)
    return _seen(*routed(producers[producer], topic, made, captured=True))
