"""Plain counters of this process, one set for each producer and consumer, and in it one for each topic.

They are incremented by one thread each, or under the interpreter's lock, and read by anyone at any time; nothing here
locks or formats, because millions of messages pass by. What several threads count is read and written without a call in
between, in which one could take the interpreter from another.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
"""Bounds for what takes a while."""
AGES = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0,
)  # fmt: skip
"""Bounds for how old something is, in seconds."""
SIZES = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0)
"""Bounds for how many there are."""
OTHER = "(other)"
"""What the topics are counted under that are too many. It is no name that a topic can have."""
_MOST_TOPICS = 200
"""Topics of a producer that are told apart: their names may come from anywhere."""
_MOST_CONSUMED = 1_000
"""The same of a consumer: topics of many names may come to fit its patterns."""
_STRIDE = 64
"""Of so many records that are acknowledged in a row the time is taken of one."""


class Histogram:
    """How many values there were up to each of some bounds, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """How many were above the bound before and not above this one; in the end those above all."""
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value so many times."""
        place = bisect_left(self.bounds, value)
        self.counts[place] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)


def _seconds() -> Histogram:
    return Histogram(SECONDS)


def _ages() -> Histogram:
    return Histogram(AGES)


def _sizes() -> Histogram:
    return Histogram(SIZES)


def _counts() -> defaultdict[str, int]:
    # Not a Counter: what that does for a key that is new could be interrupted by another thread.
    return defaultdict(int)


@dataclass(slots=True, eq=False)
class ProducedTopic:
    """What one producer sent to one topic."""

    acknowledged: int = 0
    """Records that Kafka has."""
    bytes: int = 0
    """Bytes of the values of those."""
    errors: defaultdict[str, int] = field(default_factory=_counts)
    """Records given up, by category."""
    durations: Histogram = field(default_factory=_seconds)
    """Seconds until they were acknowledged, each of a sample counted for all since the one before."""
    due: int = 0
    """When so many are acknowledged, the time of one is to be taken."""
    timed: int = 0
    """How many were acknowledged when that was done last."""

    def time(self, seconds: float | None) -> None:
        """Take the time of a record that was just acknowledged for all since the last one."""
        count = self.acknowledged - self.timed
        self.timed += count
        self.due = self.timed + _STRIDE
        if seconds is not None and count > 0:
            self.durations.add(seconds, count)


@dataclass(slots=True)
class ProducerTally:
    """What one producer did since the process began."""

    topics: dict[str, ProducedTopic] = field(default_factory=dict)
    """What it did for each topic, as Kafka knows it."""
    discarded: int = 0
    """Records whose transaction did not commit."""
    failed: Counter[str] = field(default_factory=Counter)
    """Records given up, by the name of the error."""
    connections_active: int = 0
    """Connections to brokers that stand, as of the last statistics of the client."""
    connections_total: int = 0
    """Connections that were made."""
    connection_errors: int = 0
    """Connections that broke, or did not come about."""

    def of_topic(self, topic: str) -> ProducedTopic:
        """Return what is counted for a topic; of very many topics only the first have their own."""
        found = self.topics.get(topic)
        if found is None:
            known = topic if len(self.topics) < _MOST_TOPICS else OTHER
            found = self.topics.setdefault(known, ProducedTopic())
        return found

    def take_times(self) -> None:
        """Take the time of the next record of each topic, however few there are."""
        for one in list(self.topics.values()):
            one.due = 0

    @property
    def acknowledged(self) -> int:
        """Records that Kafka has."""
        return sum(one.acknowledged for one in list(self.topics.values()))

    @property
    def bytes(self) -> int:
        """Bytes of the values of those."""
        return sum(one.bytes for one in list(self.topics.values()))

    @property
    def errors(self) -> Counter[str]:
        """Records given up, by category."""
        return _total(one.errors for one in list(self.topics.values()))


@dataclass(slots=True, eq=False)
class ConsumedTopic:
    """What one consumer did with the messages of one topic, which may be one of its retry topics."""

    received: int = 0
    """Messages taken from Kafka."""
    bytes: int = 0
    """Bytes of their values."""
    handled: int = 0
    """Messages whose handler came back without an error."""
    dead_lettered: int = 0
    """Messages stored as dead letters."""
    parked: int = 0
    """Messages stored behind a dead letter of their key, to be handled after it."""
    imported: int = 0
    """Messages of dead-letter topics of other systems, stored as they came."""
    skipped: int = 0
    """Messages that their handler, or the project's own decision, left as they were."""
    forwarded: int = 0
    """Messages sent to a retry topic."""
    retries: int = 0
    """Failed attempts that were followed, or are to be followed, by another."""
    failures: defaultdict[str, int] = field(default_factory=_counts)
    """Failed attempts, by category."""
    outages: defaultdict[str, int] = field(default_factory=_counts)
    """Attempts that met an outage, by category; they use up none."""
    durations: Histogram = field(default_factory=_seconds)
    """Seconds that a handler took for a message, its transaction included."""
    failed_durations: Histogram = field(default_factory=_seconds)
    """The same of attempts that failed."""
    ages: Histogram = field(default_factory=_ages)
    """Seconds from the time of a message until it was settled."""


@dataclass(slots=True)
class ConsumerTally:
    """What one consumer did since the process began."""

    topics: dict[str, ConsumedTopic] = field(default_factory=dict)
    """What it did for each topic, as Kafka knows it."""
    last_error: str = ""
    """The type of the error that a message met last, and which message; not what it said."""
    unpublished: int = 0
    """Dead letters that are too large for their topic."""
    overruns: int = 0
    """Times a handler was seen to go on after its time limit."""
    waits: int = 0
    """Times a lane waited for an outage to end, or for a dead letter to be written."""
    contentions: int = 0
    """Attempts that met a database conflict and were made again."""
    hook_errors: int = 0
    """Errors of `on_commit` hooks: their message's work was committed before."""
    connections_active: int = 0
    """Connections to brokers that stand, as of the last statistics of the client."""
    connections_total: int = 0
    """Connections that were made."""
    connection_errors: int = 0
    """Connections that broke, or did not come about."""
    unknown_commits: int = 0
    """COMMITs that were sent but never answered."""
    offset_jumps: int = 0
    """Places where the next offset was not the expected one: compaction, transactions, retention."""
    rebalances: int = 0
    """Times partitions came or went."""
    rebalancing: Histogram = field(default_factory=_seconds)
    """Seconds that a rebalance took."""
    circuits_opened: int = 0
    """Times its circuit opened."""
    replays: defaultdict[str, int] = field(default_factory=_counts)
    """Replays that came to an end here, by how they did."""
    fetched: Histogram = field(default_factory=_sizes)
    """Messages that came in one fetch."""
    together: Histogram = field(default_factory=_sizes)
    """Messages that were run in one transaction, or given to a handler in one list."""

    def of_topic(self, topic: str) -> ConsumedTopic:
        """Return what is counted for a topic; of very many, as patterns may fit, only the first have their own."""
        found = self.topics.get(topic)
        if found is None:
            known = topic if len(self.topics) < _MOST_CONSUMED else OTHER
            found = self.topics.setdefault(known, ConsumedTopic())
        return found

    def _all(self) -> list[ConsumedTopic]:
        return list(self.topics.values())

    @property
    def received(self) -> int:
        """Messages taken from Kafka."""
        return sum(one.received for one in self._all())

    @property
    def bytes(self) -> int:
        """Bytes of their values."""
        return sum(one.bytes for one in self._all())

    @property
    def handled(self) -> int:
        """Messages whose handler came back without an error."""
        return sum(one.handled for one in self._all())

    @property
    def dead_lettered(self) -> int:
        """Messages stored as dead letters."""
        return sum(one.dead_lettered for one in self._all())

    @property
    def parked(self) -> int:
        """Messages stored behind a dead letter of their key, to be handled after it."""
        return sum(one.parked for one in self._all())

    @property
    def imported(self) -> int:
        """Messages of dead-letter topics of other systems, stored as they came."""
        return sum(one.imported for one in self._all())

    @property
    def skipped(self) -> int:
        """Messages that their handler, or the project's own decision, left as they were."""
        return sum(one.skipped for one in self._all())

    @property
    def retries(self) -> int:
        """Failed attempts that were followed, or are to be followed, by another."""
        return sum(one.retries for one in self._all())

    @property
    def failures(self) -> Counter[str]:
        """Failed attempts, by category."""
        return _total(one.failures for one in self._all())

    @property
    def outages(self) -> Counter[str]:
        """Attempts that met an outage, by category; they use up none."""
        return _total(one.outages for one in self._all())


def _total(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(dict(one))
    return total


_producers: dict[str, ProducerTally] = {}
_consumers: dict[str, ConsumerTally] = {}
when_begun: list[Callable[[], object]] = []
"""Called when something is counted for a producer or consumer that was unknown to this process."""


def of_producer(name: str) -> ProducerTally:
    """Return the tally of the producer called `name`."""
    found = _producers.get(name)
    if found is None:
        found = _producers.setdefault(name, ProducerTally())
        _begin()
    return found


def of_consumer(name: str) -> ConsumerTally:
    """Return the tally of the consumer called `name`."""
    found = _consumers.get(name)
    if found is None:
        found = _consumers.setdefault(name, ConsumerTally())
        _begin()
    return found


def producers() -> dict[str, ProducerTally]:
    """Return all there are, by name."""
    return dict(_producers)


def consumers() -> dict[str, ConsumerTally]:
    """Return all there are, by name."""
    return dict(_consumers)


def _begin() -> None:
    for call in when_begun:
        call()


def _forget() -> None:
    # What the parent has done, it tells itself: else it would be counted once more by each of its children.
    _producers.clear()
    _consumers.clear()


os.register_at_fork(after_in_child=_forget)
