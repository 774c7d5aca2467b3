"""The workers of this process as metrics see them: what is true of them now, and not counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionNow:
    """A partition that a worker has."""

    topic: str
    """As Kafka knows it."""
    number: int
    """Its number."""
    lag: int | None
    """How many messages are in it that are not settled, as far as the client knows its end; None: it does not."""
    gap: int | None
    """Offsets from the watermark to the last message that was fetched; None: nothing was fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerNow:
    """A worker at one moment."""

    consumer: str
    """The name of its consumer."""
    in_flight: int
    """Messages that it has and that are not settled."""
    in_flight_bytes: int
    """Their bytes."""
    paused: int
    """Partitions for which it fetches nothing at the moment."""
    waiting: int
    """Partitions with a lane that waits for an outage to end, or for something else to pass."""
    suspended: int = 0
    """Partitions that somebody has paused."""
    circuit: str
    """closed, open or probing."""
    poll_age: float
    """Seconds since it polled."""
    partitions: Sequence[PartitionNow]
    """Those that it has."""


class Working(Protocol):
    """A worker."""

    def now(self) -> WorkerNow:
        """Return what is true of it now. Called by any thread."""


_workers: list[Working] = []
_lock = threading.Lock()


def begun(worker: Working) -> None:
    """Note that a worker works in this process."""
    with _lock:
        _workers.append(worker)


def ended(worker: Working) -> None:
    """Note that it does no longer."""
    with _lock:
        if worker in _workers:
            _workers.remove(worker)


def now() -> list[WorkerNow]:
    """Return what is true of all of them now."""
    with _lock:
        workers = list(_workers)
    return [worker.now() for worker in workers]


Lags = dict[tuple[str, str, int], int]
"""By the name of the consumer, the topic as Kafka knows it, and the number of the partition."""


def lags(workers: Sequence[WorkerNow]) -> Lags:
    """Return how many messages are not settled, of the partitions that these workers have."""
    return {
        (worker.consumer, one.topic, one.number): one.lag
        for worker in workers
        for one in worker.partitions
        if one.lag is not None
    }
