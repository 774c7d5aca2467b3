"""What `get_metrics()` returns, and how it is made of what each process has counted.

Percentiles are never averaged: what processes have in each bucket of a histogram is summed, and asked then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import reduce
from itertools import accumulate, zip_longest
from operator import add
from typing import Any

from .. import history, tallies
from ..history import MINUTES, NOTHING, Buckets, Span
from ..tallies import AGES, SECONDS, ConsumerTally, ProducerTally

WINDOWS = {"1m": 1, "5m": 5, "15m": MINUTES}
"""What each is called, and how many minutes it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """How long something took, in seconds; None where there was nothing.

    They are counted in buckets, whose bounds are those of the Prometheus histograms, and interpolated: each is in the
    same bucket as the true one, so it is off by less than that is wide. The first ends at 0.5 ms (of ages at 5 ms);
    from there to a minute the bounds of one are a factor of 2 to 3 apart, beyond that up to 6. What is above the last
    bound (5 minutes; of ages a day) is told as that bound.
    """

    count: int
    """Of how many."""
    p50: float | None
    """Half of them took no longer."""
    p95: float | None
    """95 of 100 took no longer."""
    p99: float | None
    """99 of 100 took no longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """Connections to brokers, as of the client's last statistics."""

    active: int = 0
    """Those that stand."""
    total: int = 0
    """Those that were made since the process began."""
    errors: int = 0
    """Those that broke since then, or did not come about."""

    def __add__(self, other: Connections) -> Connections:
        return Connections(
            active=self.active + other.active, total=self.total + other.total, errors=self.errors + other.errors
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a producer did in the last minutes, or in one minute of them."""

    seconds: float
    """How long the window is: a few seconds more or less than its name says, and less in a young process."""
    messages: int
    """Records that Kafka acknowledged. For a consumer: messages taken from Kafka."""
    messages_per_second: float
    """As many of them in each second of the window."""
    bytes: int
    """Bytes of their values."""
    bytes_per_second: float
    """As many of them in each second of the window."""
    errors: Mapping[str, int]
    """Records that were given up, by category. For a consumer: failed attempts. What there was none of is not in it."""
    duration: Percentiles
    """Until Kafka acknowledged a record. For a consumer: what an attempt took, whether it failed or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerWindow(Window):
    """The same of a consumer."""

    handled: int
    """Messages whose handler came back without an error."""
    handled_per_second: float
    """As many of them in each second of the window."""
    retries: int
    """Failed attempts that are followed by another one."""
    dead_lettered: int
    """Messages stored as dead letters."""
    outages: Mapping[str, int]
    """Attempts that met an outage and are made again, by category; they are not among `errors`."""
    age: Percentiles
    """From the timestamp of a message until it was settled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerMetrics:
    """How a producer of this process does."""

    windows: Mapping[str, Window]
    """"1m", "5m" and "15m", each up to now."""
    history: tuple[Window, ...]
    """The last fifteen minutes one by one, the oldest first; fewer in a young process."""
    connections: Connections
    """Its connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerMetrics:
    """How a consumer does, in all of its workers together."""

    windows: Mapping[str, ConsumerWindow]
    """"1m", "5m" and "15m", each up to now."""
    history: tuple[ConsumerWindow, ...]
    """The last fifteen minutes one by one, the oldest first; fewer while all workers are young."""
    connections: Connections
    """Their connections."""
    workers: int
    """How many worker processes that is: those whose heartbeats were heard of lately, and this process if it is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Throughput, latency, errors and connections of the last minutes."""

    at: datetime
    """When it was asked for."""
    producers: Mapping[str, ProducerMetrics]
    """Each that settings enable, and what it did in this process."""
    consumers: Mapping[str, ConsumerMetrics]
    """Each that settings enable, and what it did in all of its workers."""
    incomplete: str | None = None
    """Why figures of other processes are missing; None: they are not."""

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "at": self.at.isoformat()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What one process knows of a producer or consumer."""

    minutes: Sequence[Span] = ()
    """Its last fifteen minutes, the newest first."""
    connections: Connections = field(default_factory=Connections)
    """Its connections."""


def of_this_process(consumer: str) -> Reported:
    """Return what this process has counted for a consumer."""
    tally = tallies.consumers().get(consumer)
    return Reported(minutes=history.of_consumer(consumer), connections=_connections_of(tally))


def of_this_producer(name: str) -> Reported:
    """Return what this process has counted for a producer."""
    tally = tallies.producers().get(name)
    return Reported(minutes=history.of_producer(name), connections=_connections_of(tally))


def _connections_of(tally: ProducerTally | ConsumerTally | None) -> Connections:
    if tally is None:
        return Connections()
    return Connections(active=tally.connections_active, total=tally.connections_total, errors=tally.connection_errors)


def of_producer(reported: Reported) -> ProducerMetrics:
    """Return how a producer does."""
    return ProducerMetrics(
        windows={name: _window(_joined(reported.minutes[:count])) for name, count in WINDOWS.items()},
        history=tuple(_window(one) for one in reversed(reported.minutes)),
        connections=reported.connections,
    )


def of_consumer(reports: Sequence[Reported]) -> ConsumerMetrics:
    """Return how a consumer does, of which each process reports something."""
    # A process that is younger than others has handled nothing before it began.
    minutes = [_beside(spans) for spans in zip_longest(*(one.minutes for one in reports), fillvalue=Span())]
    return ConsumerMetrics(
        windows={name: _consumer_window(_joined(minutes[:count])) for name, count in WINDOWS.items()},
        history=tuple(_consumer_window(one) for one in reversed(minutes)),
        connections=reduce(add, (one.connections for one in reports), Connections()),
        workers=len(reports),
    )


def _joined(spans: Sequence[Span]) -> Span:
    """Return several spans of one process, one after the other, as one."""
    return Span(seconds=sum(one.seconds for one in spans), counts=sum((one.counts for one in spans), NOTHING))


def _beside(spans: Sequence[Span]) -> Span:
    """Return the same span of several processes as one."""
    return Span(seconds=max(one.seconds for one in spans), counts=sum((one.counts for one in spans), NOTHING))


def _window(span: Span) -> Window:
    return Window(**_common(span))


def _consumer_window(span: Span) -> ConsumerWindow:
    counts = span.counts
    return ConsumerWindow(
        **_common(span),
        handled=counts.handled,
        handled_per_second=_rate(counts.handled, span),
        retries=counts.retries,
        dead_lettered=counts.dead_lettered,
        outages=counts.outages,
        age=percentiles(AGES, counts.ages),
    )


def _common(span: Span) -> dict[str, Any]:
    counts = span.counts
    return {
        "seconds": span.seconds,
        "messages": counts.messages,
        "messages_per_second": _rate(counts.messages, span),
        "bytes": counts.bytes,
        "bytes_per_second": _rate(counts.bytes, span),
        "errors": counts.errors,
        "duration": percentiles(SECONDS, counts.durations),
    }


def _rate(count: int, span: Span) -> float:
    return count / span.seconds if span.seconds else 0.0


def percentiles(bounds: Sequence[float], buckets: Buckets) -> Percentiles:
    """Return the percentiles of what is in the buckets between these bounds."""
    p50, p95, p99 = (percentile(bounds, buckets, percent) for percent in (50, 95, 99))
    return Percentiles(count=sum(buckets), p50=p50, p95=p95, p99=p99)


def percentile(bounds: Sequence[float], buckets: Buckets, percent: int) -> float | None:
    """Return what so many of 100 values do not exceed, as if those in a bucket lay in equal steps; None of nothing."""
    if not any(buckets):
        return None
    # In whole numbers: 0.95 * 20 may be more than 19.
    rank = -(-percent * sum(buckets) // 100)
    counts = list(accumulate(buckets))
    place = bisect_left(counts, rank)
    if place == len(bounds):
        return bounds[-1]
    lower = bounds[place - 1] if place else 0.0
    above = rank - (counts[place] - buckets[place])
    return lower + (bounds[place] - lower) * above / buckets[place]
