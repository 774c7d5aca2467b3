"""Handlers run on records, inline, by the same code that a worker runs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from .. import conf, handlers, subscriptions, tallies
from ..consuming.lane import Lane
from ..consuming.lanes import Lanes
from ..consuming.parking import thread_of
from ..dead_letters.replaying import letters
from ..exceptions import ConfigurationError, KafkaError
from ..messages import RawMessage
from ..models import DeadLetter
from .capturing import Produced

_offsets = itertools.count()
_TRIES = 3


@dataclass(slots=True, kw_only=True)
class Consumed:
    """What became of the records given to `consume`."""

    handled: int = 0
    """How many were handled."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    """Those that became dead letters, as rows."""


class _Impatient(Lanes):
    """Lanes that nobody waits for: another attempt is made at once."""

    def give_back(self, lane: Lane, *, wait: float | None = None) -> None:
        """End the work on a lane; it can be taken again at once."""
        super().give_back(lane, wait=None if wait is None else 0.0)


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A record, as it arrives at a consumer."""

    record: Produced
    place: int
    at: int

    def topic(self) -> str:
        return self.record.topic

    def partition(self) -> int:
        return self.record.partition or 0

    def offset(self) -> int:
        return self.place

    def timestamp(self) -> tuple[int, int]:
        return 1, self.at

    def key(self) -> bytes | None:
        return self.record.raw_key

    def value(self) -> bytes | None:
        return self.record.raw_value

    def headers(self) -> list[tuple[str, bytes | None]]:
        return list(self.record.headers)


def consume(records: Iterable[Produced], *, consumer: str | None = None) -> Consumed:
    """Run the handlers of `consumer` (None: of every consumer that has one) on records; return what became of them.

    A failing handler is tried again as its `retry` settings say, but without waiting, and makes a dead letter in the
    end. Records of topics that nobody consumes are an error, and so is an outage, because nothing would end it here.
    """
    outcome = Consumed()
    for record in list(records):
        names = [consumer] if consumer is not None else _consumers_of(record.topic)
        if not names:
            raise ConfigurationError(f"No consumer in KAFKA has a handler for {record.topic!r}.")
        for name in names:
            _run(conf.consumer(name), record, outcome)
    return outcome


def _consumers_of(topic: str) -> list[str]:
    settings = conf.kafka()
    return [
        name
        for name, one in settings.consumers.items()
        if one.enabled and {known.topic for known in handlers.registrations(name)} & {*subscriptions.ways(name, topic)}
    ]


def _run(settings: conf.Consumer, record: Produced, outcome: Consumed) -> None:
    arrived = _Arrived(record, next(_offsets), record.timestamp_ms or time.time_ns() // 1_000_000)
    group = conf.kafka().prefixed(settings.group_id or settings.name)
    before = tallies.of_consumer(settings.name)
    handled, dead_lettered = before.handled, before.dead_lettered
    _work(settings, group, arrived)
    outcome.handled += before.handled - handled
    if before.dead_lettered > dead_lettered:
        found = letters().filter(group_id=group, topic=arrived.topic()).order_by("-last_failed_at", "-pk").first()
        if found is not None:
            outcome.dead_letters.append(found)


def _work(settings: conf.Consumer, group: str, arrived: RawMessage) -> None:
    place = arrived.topic() or "", arrived.partition() or 0
    lanes = _Impatient()
    lane = lanes.open(place)
    lanes.take(lane, [arrived], 0)
    failures: list[BaseException] = []
    thread = thread_of(settings)("inline", settings, group, lanes, tallies.of_consumer(settings.name), failures.append)
    # Nobody consumes retry topics here: it is tried again at once.
    thread.settler.forwarder = None
    while lane.slices:
        if (mine := lanes.next(1.0)) is None:
            continue
        thread.run_inline(mine)
        if failures:
            raise failures[0]
        if lane.waits > _TRIES:
            raise KafkaError(f"The handler of {place[0]!r} waits and would go on waiting: {lane.reason}.")
