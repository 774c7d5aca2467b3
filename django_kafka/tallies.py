"""Plain counters of this process, one set for each producer and consumer.

They are incremented by one thread each, or under the interpreter's lock, and read by anyone at any time; nothing here
locks, formats or allocates, because millions of messages pass by.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class ProducerTally:
    """What one producer did since the process began."""

    acknowledged: int = 0
    """Records that Kafka has."""
    bytes: int = 0
    """Bytes of the values of those."""
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


@dataclass(slots=True)
class ConsumerTally:
    """What one consumer did since the process began."""

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
    unpublished: int = 0
    """Dead letters that are too large for their topic."""
    imported: int = 0
    """Messages of dead-letter topics of other systems, stored as they came."""
    skipped: int = 0
    """Messages that their handler, or the project's own decision, left as they were."""
    failures: Counter[str] = field(default_factory=Counter)
    """Failed attempts, by category."""
    outages: Counter[str] = field(default_factory=Counter)
    """Attempts that met an outage, by category; they use up none."""
    retries: int = 0
    """Failed attempts that were followed, or are to be followed, by another."""
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


_producers: dict[str, ProducerTally] = {}
_consumers: dict[str, ConsumerTally] = {}


def of_producer(name: str) -> ProducerTally:
    """Return the tally of the producer called `name`."""
    return _producers.setdefault(name, ProducerTally())


def of_consumer(name: str) -> ConsumerTally:
    """Return the tally of the consumer called `name`."""
    return _consumers.setdefault(name, ConsumerTally())
