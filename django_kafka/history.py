"""What was counted in the last quarter of an hour: the tallies of this process as they were every few seconds.

Nothing runs for it. Whoever comes round often anyhow calls `look`: the main thread of a worker, the threads that serve
delivery reports. It keeps at most 182 moments; one takes up to two kilobytes for each producer and consumer for which
something was counted since the one before, and next to nothing for the others.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from . import tallies
from .tallies import AGES, SECONDS, ConsumerTally, Histogram, ProducerTally

STEP = 5.0
"""Seconds between two moments that are kept."""
MINUTE = 60.0
MINUTES = 15
"""How far it goes back."""

Buckets = tuple[int, ...]
"""How many values there were up to each bound of a histogram and above the one before; in the end those above all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What one producer or consumer has counted. What does not apply to a producer is 0."""

    messages: int = 0
    """Records that Kafka has, or messages taken from it."""
    bytes: int = 0
    """Bytes of their values."""
    handled: int = 0
    """Messages whose handler came back without an error."""
    durations: Buckets = (0,) * (len(SECONDS) + 1)
    """Until a record was acknowledged; how long an attempt at a message took, whether it failed or not."""
    ages: Buckets = (0,) * (len(AGES) + 1)
    """From the time of a message until it was settled."""
    retries: int = 0
    """Failed attempts that are followed by another one."""
    dead_lettered: int = 0
    """Messages stored as dead letters."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Records given up, or failed attempts, by category."""
    outages: Mapping[str, int] = field(default_factory=dict)
    """Attempts that met an outage, by category."""

    def __add__(self, other: Counts) -> Counts:
        return _merged(self, other, 1)

    def __sub__(self, other: Counts) -> Counts:
        return _merged(self, other, -1)


def _merged(one: Counts, other: Counts, sign: int) -> Counts:
    def buckets(ours: Buckets, theirs: Buckets) -> Buckets:
        return tuple(a + sign * b for a, b in zip(ours, theirs, strict=True))

    def named(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
        counts = {name: ours.get(name, 0) + sign * theirs.get(name, 0) for name in {**ours, **theirs}}
        return {name: count for name, count in counts.items() if count}

    return Counts(
        messages=one.messages + sign * other.messages,
        bytes=one.bytes + sign * other.bytes,
        handled=one.handled + sign * other.handled,
        durations=buckets(one.durations, other.durations),
        ages=buckets(one.ages, other.ages),
        retries=one.retries + sign * other.retries,
        dead_lettered=one.dead_lettered + sign * other.dead_lettered,
        errors=named(one.errors, other.errors),
        outages=named(one.outages, other.outages),
    )


NOTHING = Counts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What was counted during some time."""

    seconds: float = 0.0
    """How long that was."""
    counts: Counts = NOTHING
    """What was counted in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What all had counted at one moment."""

    at: float
    """By the monotonic clock."""
    producers: Mapping[str, Counts]
    """By name."""
    consumers: Mapping[str, Counts]
    """By name."""


class History:
    """Moments of the last quarter of an hour, at most one for each `STEP` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._moments: deque[Moment] = deque()
        self._due = self._began
        self._lock = threading.RLock()

    def look(self) -> None:
        """Keep what is counted by now, if that is due. Cheap, for any thread that comes round often."""
        if self._clock() >= self._due:
            self.take()

    def take(self) -> Moment:
        """Keep what is counted by now, in place of what was kept in the same `STEP` seconds, and return it."""
        with self._lock:
            now, moments = self._clock(), self._moments
            last = moments[-1] if moments else Moment(at=now, producers={}, consumers={})
            moment = Moment(
                at=now,
                producers={
                    name: _kept(last.producers, name, _produced(one)) for name, one in tallies.producers().items()
                },
                consumers={
                    name: _kept(last.consumers, name, _consumed(one)) for name, one in tallies.consumers().items()
                },
            )
            if moments and last.at // STEP == now // STEP:
                moments.pop()
            moments.append(moment)
            while len(moments) > 1 and moments[1].at <= now - MINUTES * MINUTE:
                moments.popleft()
            self._due = (now // STEP + 1) * STEP
            return moment

    def of_producer(self, name: str) -> list[Span]:
        """Return what a producer did in each of the last fifteen minutes, the newest first; fewer in a young process.

        Each goes from one moment that is kept to another, and so lasts a few seconds more or less than a minute.
        """
        return self._minutes(lambda moment: moment.producers.get(name, NOTHING))

    def of_consumer(self, name: str) -> list[Span]:
        """Return the same of a consumer."""
        return self._minutes(lambda moment: moment.consumers.get(name, NOTHING))

    def _minutes(self, counted: Callable[[Moment], Counts]) -> list[Span]:
        newest = self.take()
        with self._lock:
            moments = list(self._moments)
        end, counts = newest.at, counted(newest)
        spans: list[Span] = []
        for number in range(1, MINUTES + 1):
            due = newest.at - number * MINUTE
            while moments and moments[-1].at > due:
                moments.pop()
            if moments:
                began, before = moments[-1].at, counted(moments[-1])
            else:
                # Whoever counts for the first time is kept: before that it was nothing.
                began, before = min(end, max(due, self._began)), NOTHING
            spans.append(Span(seconds=end - began, counts=counts - before))
            end, counts = began, before
        while len(spans) > 1 and not spans[-1].seconds:
            spans.pop()
        return spans

    def forget(self) -> None:
        """Begin anew, as in a child process: what its parent has counted, that one tells itself."""
        self.__init__(self._clock)  # type: ignore[misc]  # the lock may be held by a thread that does not exist here


def _kept(before: Mapping[str, Counts], name: str, now: Counts) -> Counts:
    """Return the same object as before when nothing was counted since, so that it takes no memory again."""
    last = before.get(name)
    return last if last == now else now


def _produced(tally: ProducerTally) -> Counts:
    return Counts(
        messages=tally.acknowledged,
        bytes=tally.bytes,
        durations=_together(NOTHING.durations, (one.durations for one in list(tally.topics.values()))),
        errors=dict(tally.errors),
    )


def _consumed(tally: ConsumerTally) -> Counts:
    topics = list(tally.topics.values())
    durations = [each for one in topics for each in (one.durations, one.failed_durations)]
    return Counts(
        messages=tally.received,
        bytes=tally.bytes,
        # The former grows when many are done; the latter, where they take long, with each.
        handled=sum(max(one.handled, one.durations.count) for one in topics),
        durations=_together(NOTHING.durations, durations),
        ages=_together(NOTHING.ages, (one.ages for one in topics)),
        retries=tally.retries,
        dead_lettered=tally.dead_lettered,
        errors=dict(tally.failures),
        outages=dict(tally.outages),
    )


def _together(none: Buckets, histograms: Iterable[Histogram]) -> Buckets:
    return tuple(map(sum, zip(none, *(one.counts for one in histograms), strict=True)))


_history = History()
look, take = _history.look, _history.take
of_producer, of_consumer = _history.of_producer, _history.of_consumer
forget = _history.forget

tallies.when_begun.append(take)
os.register_at_fork(after_in_child=forget)
