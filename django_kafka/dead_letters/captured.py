"""What a handler would have produced, gathered instead of being sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from django.db import transaction

from ..deliveries import Delivery, delivery_of
from ..exceptions import DeliveryDiscarded
from ..gathering import here
from ..producer import Route
from ..producing import open_transaction
from ..records import Wire
from ..reports import Reports
from ..tallies import ProducerTally


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A record that was not sent."""

    producer: str
    """The name of the producer that it was given to."""
    topic: str
    """The topic as Kafka knows it, prefix included."""
    key: bytes | None
    """As it would have been sent."""
    value: bytes | None
    """As it would have been sent; None is a tombstone."""
    headers: tuple[tuple[str, bytes | None], ...]
    """All of them in order."""
    partition: int | None
    """The partition that was asked for."""
    timestamp_ms: int | None
    """The timestamp that was asked for, in milliseconds since the epoch."""
    delivery: Delivery
    """What its handler got."""


class _Nowhere:
    """The producer of records that go nowhere: nobody counts them and nobody is told."""

    pid: int
    connection_timeout = 0.0

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.tally = ProducerTally()

    def unreachable(self) -> str | None:
        return None

    def refused_login(self) -> str | None:
        return None

    def hurry(self, waiting: int) -> None: ...
    def delivered(self, reports: Reports, place: int) -> None: ...
    def refused(self, reports: Reports, place: int, error: Any) -> None: ...


class _Acknowledgement:
    """What Kafka might have said."""

    def __init__(self, partition: int, offset: int) -> None:
        self._place = partition, offset

    def partition(self) -> int:
        return self._place[0]

    def offset(self) -> int:
        return self._place[1]


class _WhenCommitted:
    """The commit hook of a record. It never runs; a savepoint that is rolled back drops it."""

    def __init__(self, record: Captured) -> None:
        self.record: Final = record

    def __call__(self) -> None:
        raise AssertionError("a dry run was committed")


class Capture:
    """Takes the records of one handler."""

    def __init__(self) -> None:
        self._nowhere = _Nowhere()
        self._taken: list[tuple[Captured, bool]] = []
        """Each, and whether it would have left at once."""

    def take(self, route: Route, wire: Wire) -> Delivery:
        """Keep a record; its delivery is acknowledged when Kafka could have had it by now."""
        value, key, partition, headers, timestamp = wire
        delivery = delivery_of(Reports(route.topic, self._nowhere, 1), 0)
        record = Captured(
            producer=route.producer.name,
            topic=route.topic,
            key=key,
            value=value,
            headers=tuple(headers or ()),
            partition=None if partition < 0 else partition,
            timestamp_ms=timestamp or None,
            delivery=delivery,
        )
        connection = open_transaction() if route.producer.on_commit else None
        if connection is None:
            delivery.reports.put(0, _Acknowledgement(max(partition, 0), len(self._taken)))
        else:
            delivery.promise()
            transaction.on_commit(_WhenCommitted(record), using=connection.alias)
        self._taken.append((record, connection is None))
        return delivery

    def left(self, hooks: list[Any]) -> tuple[list[Captured], int]:
        """Return the records that would have been sent, and how many of the commit hooks are none of ours.

        `hooks` are those that the transaction has in the end.
        """
        kept = {id(one.record) for one in hooks if isinstance(one, _WhenCommitted)}
        records = [record for record, at_once in self._taken if at_once or id(record) in kept]
        return records, sum(not isinstance(one, _WhenCommitted) for one in hooks)

    def discard(self) -> None:
        """Fail the deliveries that wait for a commit."""
        for record, _at_once in self._taken:
            if not record.delivery.done():
                record.delivery.fail(DeliveryDiscarded(f"The record for {record.topic!r} was produced in a dry run."))


@contextmanager
def capturing() -> Iterator[Capture]:
    """Capture what this thread produces, and what it awaits, until the block ends."""
    capture = Capture()
    here.begin().capture = capture.take
    try:
        yield capture
    finally:
        here.end()
        capture.discard()
