"""Everything at one moment: clusters, consumers, partitions, workers, dead letters. What `kafka_status` shows.

None stands for what is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from ..models import Worker
from . import heartbeats
from .figures import ConsumerMetrics
from .lag import GroupLag, PartitionLag
from .trends import Trend

COUNTED_TO = 10_000
"""Dead letters of one consumer and state are counted so far: that many are that many or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is known of a cluster."""

    name: str
    """As settings call it."""
    asked_at: datetime | None = None
    """When it was asked last, by this process's clock; None: it has not answered yet."""
    topics: int | None = None
    """How many topics this login sees."""
    reason: str = ""
    """Why it did not answer; "" when it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition that a consumer reads."""

    consumer: str
    """The consumer's name."""
    known: PartitionLag
    """What brokers say of it."""
    worker: str | None = None
    """The address of the worker that says it has it; None: none does."""
    in_flight: int | None = None
    """Messages that this worker has and that are not settled."""
    waits_for: str = ""
    """What it waits for; "": for nothing."""
    paused: bool = False
    """Whether somebody has paused it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """What is known of a consumer."""

    name: str
    """As settings or workers call it."""
    cluster: str
    """The name of its cluster."""
    group_id: str
    """As Kafka knows it, as far as that is known."""
    declared: bool
    """Whether it is in settings."""
    enabled: bool
    """Whether it is switched on there, and has a group."""
    group: GroupLag | None = None
    """What brokers say of its group; None: they were not asked, or have not answered."""
    partitions: tuple[Partition, ...] = ()
    """Its partitions, in the order of topics and numbers."""
    trend: Trend | None = None
    """How its lag moves; None until it was seen twice."""
    history: tuple[tuple[float, int], ...] = ()
    """The lag of the last minutes, with its times in seconds."""
    dead_letters: Mapping[str, int] | None = None
    """Their numbers by state, counted up to `COUNTED_TO`; None: the database did not say."""
    workers: int | None = None
    """How many of its workers were heard of lately; None: not known."""
    waiting: int = 0
    """How many of their partitions wait."""
    paused: str = ""
    """By whom it is paused, since when and why, or how many of its partitions are; "" when none is."""
    circuit: str | None = None
    """The worst of their circuits: open, probing or closed; None: there is none."""
    figures: ConsumerMetrics | None = None
    """What they did in the last minutes; None: none of them says."""

    @property
    def state(self) -> str:
        """The word for what matters most; "asking": brokers have not told of its group; "": they do not know it."""
        if not self.declared:
            return "not declared"
        if not self.enabled:
            return "off"
        if self.paused:
            return "paused"
        if self.circuit in (Worker.Circuit.OPEN, Worker.Circuit.PROBING):
            return f"circuit {self.circuit}"
        if self.waiting:
            return "waiting"
        if self.group is None:
            return "asking"
        # The last word of "preparing rebalancing" and the like says enough.
        return "" if self.group.state == "unknown" else self.group.state.rpartition(" ")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything at one moment."""

    at: datetime
    """By this process's clock."""
    clusters: tuple[Cluster, ...]
    """Those of the consumers that are shown."""
    consumers: tuple[Consumer, ...]
    """In the order of settings, then those that only workers know."""
    workers: tuple[Any, ...] | None = None
    """Rows of `Worker` as `heartbeats.with_clock` brings them; None: not known."""
    paces: Mapping[str, float] = field(default_factory=dict)
    """Messages a second that workers handled, by their ids, as far as they were seen twice."""
    heartbeats: bool = True
    """Whether workers write rows."""
    problem: str = ""
    """Why workers and dead letters are not known; "" when they are."""

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON; its keys stay."""
        return {
            "at": self.at.isoformat(),
            "heartbeats": self.heartbeats,
            "problem": self.problem,
            "clusters": [
                {"name": one.name, "asked_at": _iso(one.asked_at), "topics": one.topics, "problem": one.reason}
                for one in self.clusters
            ],
            "consumers": [_consumer(one) for one in self.consumers],
            "workers": None if self.workers is None else [_worker(one, self.paces) for one in self.workers],
        }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _consumer(one: Consumer) -> dict[str, Any]:
    group, trend = one.group, one.trend
    return {
        "name": one.name,
        "cluster": one.cluster,
        "declared": one.declared,
        "enabled": one.enabled,
        "group": one.group_id,
        "state": None if group is None else group.state,
        "members": None if group is None else group.members,
        "lag": None if group is None else group.messages,
        "lag_seconds": None if group is None else group.seconds,
        "produced_per_second": None if trend is None else trend.produced,
        "consumed_per_second": None if trend is None else trend.consumed,
        "trend": None if trend is None else trend.direction,
        "lag_per_second": None if trend is None else trend.change,
        "seconds_until_empty": None if trend is None else trend.until_empty,
        "dead_letters": None if one.dead_letters is None else {**one.dead_letters, "counted_to": COUNTED_TO},
        "workers": one.workers,
        "waiting": one.waiting,
        "paused": one.paused,
        "circuit": one.circuit,
        "windows": None if one.figures is None else {name: asdict(span) for name, span in one.figures.windows.items()},
        "missing_topics": [] if group is None else list(group.missing),
        "problem": "" if group is None else group.reason,
        "partitions": [_partition(each) for each in one.partitions],
    }


def _partition(one: Partition) -> dict[str, Any]:
    return {
        "topic": one.known.topic,
        "partition": one.known.partition,
        "position": one.known.position,
        "begin": one.known.log.low,
        "end": one.known.log.high,
        "lag": one.known.lag,
        "lag_seconds": one.known.seconds,
        "worker": one.worker,
        "in_flight": one.in_flight,
        "waits_for": one.waits_for,
        "paused": one.paused,
    }


def _worker(worker: Any, paces: Mapping[str, float]) -> dict[str, Any]:
    return {
        "consumer": worker.consumer,
        "cluster": worker.cluster,
        "group": worker.group_id,
        "host": worker.host,
        "pid": worker.pid,
        "supervisor": worker.supervisor,
        "number": worker.number,
        "version": worker.version,
        "alive": heartbeats.is_alive(worker),
        "state": worker.state,
        "not_live": worker.not_live,
        "not_ready": worker.not_ready,
        "started_at": worker.started_at.isoformat(),
        "seen_at": worker.seen_at.isoformat(),
        "seconds_since_rebalance": worker.rebalance_age,
        "memory": worker.memory,
        "partitions": worker.partitions,
        "in_flight": worker.in_flight,
        "lag": worker.lag,
        "waiting": worker.waiting,
        "waits_for": worker.waits_for,
        "hangs": worker.hangs,
        "handled": worker.handled,
        "handled_per_second": paces.get(worker.pk),
        "dead_lettered": worker.dead_lettered,
        "last_error": worker.last_error,
        "circuit": {
            "state": worker.circuit,
            "writing_letters": worker.circuit_writing,
            "opened_at": _iso(worker.circuit_opened_at),
            "reason": worker.circuit_reason,
            "close_asked": worker.circuit != Worker.Circuit.CLOSED
            and worker.circuit_close_asked == worker.circuit_episode,
        },
    }
