"""Looks at everything, again and again: brokers through `lag`, workers and dead letters through their rows.

    observer = Observer()
    observer.expected()            what settings say, before anybody was asked
    observer.look()                what is known now; brokers are asked behind it
    observer.look(wait=True)       the same, once they have answered

From its second look on it knows how lag and throughput move. What cannot be asked is a sentence, never an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django.db import Error as DatabaseFailure
from django.db import connections

from .. import conf
from ..models import DeadLetter, Pause, Worker, WorkerPartition
from . import figures, heartbeats, lag, packing
from .lag import ClusterLag
from .overview import COUNTED_TO, Cluster, Consumer, Overview, Partition
from .trends import Pace, Track


class Observer:
    """Looks at everything, or at the consumers of these names, and remembers for some minutes what it saw."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = names
        self._tracks: dict[str, Track] = {}
        self._paces: dict[str, Pace] = {}

    def expected(self) -> Overview:
        """Return what settings say. Raises `ConfigurationError`."""
        return self._overview({}, _Rows())

    def ask(self, max_age: float) -> None:
        """Have brokers asked behind it when what is known is older than `max_age` seconds, for the next look."""
        lag.known(max_age=max_age)

    def look(self, *, wait: bool = False, max_age: float = lag.KEPT) -> Overview:
        """Return what is known of brokers, asked anew when it is older than `max_age` seconds, and what rows say."""
        rows = self._rows()
        answers = self._asked(max_age) if wait else lag.known(max_age=max_age)
        found = {one.cluster: one for one in answers}
        for worker in rows.workers or ():
            self._paces.setdefault(worker.pk, Pace()).take(worker.seen_at.timestamp(), worker.handled)
        if rows.workers is not None:
            self._paces = {one.pk: self._paces[one.pk] for one in rows.workers}
        for cluster in found.values():
            for name, group in () if cluster.reason else cluster.groups.items():
                self._tracks.setdefault(name, Track()).take(cluster.asked_at.timestamp(), group.partitions)
        return self._overview(found, rows)

    def _asked(self, max_age: float) -> list[ClusterLag]:
        """Ask all clusters at once."""
        names = list(dict.fromkeys(one.cluster for one in self._declared() if _has_group(one)))

        def ask(name: str) -> ClusterLag:
            try:
                return lag.of_cluster(name, max_age=max_age)
            finally:
                connections.close_all()  # of claims

        with ThreadPoolExecutor(max(1, len(names)), "kafka-overview") as pool:
            return list(pool.map(ask, names))

    def _declared(self) -> list[conf.Consumer]:
        return [one for one in conf.kafka().consumers.values() if not self._names or one.name in self._names]

    def _rows(self) -> _Rows:
        whole = conf.kafka()
        alias = whole.dead_letters.database
        names = [one.name for one in self._declared()]
        try:
            workers, partitions = None, {}
            if whole.heartbeats.enabled:
                rows = Worker.objects.using(alias)
                found = heartbeats.with_clock(rows.filter(consumer__in=self._names) if self._names else rows)
                workers = tuple(found)
                partitions = _partitions(alias, [one for one in workers if heartbeats.is_alive(one)])
                names = list(dict.fromkeys([*names, *(one.consumer for one in workers)]))
            pauses = list(Pause.objects.using(alias).filter(consumer__in=names).order_by("topic", "partition"))
            return _Rows(
                workers=workers, partitions=partitions, letters=count_letters(alias, names), pauses=_pauses(pauses)
            )
        except DatabaseFailure as error:
            # Only its kind: what a database says may name users and hosts.
            return _Rows(problem=f"Database {alias!r} cannot be read ({type(error).__name__}).")

    def _overview(self, found: Mapping[str, ClusterLag], rows: _Rows) -> Overview:
        declared = self._declared()
        names = dict.fromkeys(one.cluster for one in declared if _has_group(one))
        strangers = {one.consumer: one for one in rows.workers or ()}
        for one in declared:
            strangers.pop(one.name, None)
        return Overview(
            at=datetime.now(UTC),
            clusters=tuple(_cluster(name, found.get(name)) for name in names),
            consumers=(
                *(self._consumer(one, found.get(one.cluster), rows) for one in declared),
                *(
                    Consumer(
                        name=one.consumer, cluster=one.cluster, group_id=one.group_id, declared=False, enabled=False,
                        **rows.of(one.consumer),
                    )
                    for one in strangers.values()
                ),
            ),
            workers=rows.workers,
            paces={pk: pace.per_second for pk, pace in self._paces.items() if pace.per_second is not None},
            heartbeats=conf.kafka().heartbeats.enabled,
            problem=rows.problem,
        )  # fmt: skip

    def _consumer(self, settings: conf.Consumer, cluster: ClusterLag | None, rows: _Rows) -> Consumer:
        # What a cluster that does not answer has to say is said of it once, and not of each of its groups.
        group = None if cluster is None or cluster.reason else cluster.groups.get(settings.name)
        track = self._tracks.get(settings.name)
        return Consumer(
            name=settings.name,
            cluster=settings.cluster,
            group_id=settings.group_id if group is None else group.group_id,
            declared=True,
            enabled=_has_group(settings),
            group=group,
            partitions=tuple(
                Partition(consumer=settings.name, known=one, **rows.partitions.get((settings.name, *one.place), {}))
                for one in (group.partitions if group is not None else ())
            ),
            # What was seen before is not what is so now.
            trend=track.trend(_between_commits(settings)) if track is not None and group is not None else None,
            history=track.history() if track is not None else (),
            **rows.of(settings.name),
        )


_CIRCUITS = (Worker.Circuit.OPEN, Worker.Circuit.PROBING, Worker.Circuit.CLOSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What the database says."""

    workers: tuple[Any, ...] | None = None
    partitions: Mapping[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    """By consumer, topic and number: what their workers say."""
    letters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By consumer and state."""
    pauses: Mapping[str, str] = field(default_factory=dict)
    """By consumer: what is paused of it."""
    problem: str = ""

    def of(self, consumer: str) -> dict[str, Any]:
        """Return what it says of one consumer."""
        stored = {"dead_letters": self.letters.get(consumer), "paused": self.pauses.get(consumer, "")}
        if self.workers is None:
            return stored
        alive = [one for one in self.workers if one.consumer == consumer and heartbeats.is_alive(one)]
        circuits = {one.circuit for one in alive}
        reports = [report for one in alive if (report := packing.unpacked(one.figures)) is not None]
        return {
            **stored,
            "workers": len(alive),
            "waiting": sum(one.waiting for one in alive),
            "figures": figures.of_consumer(reports) if reports else None,
            "circuit": next((str(one) for one in _CIRCUITS if one in circuits), None),
        }


def _partitions(alias: str, workers: Iterable[Worker]) -> dict[tuple[str, str, int], dict[str, Any]]:
    by_id = {one.pk: (one.consumer, one.address) for one in workers}
    # Not as objects: there may be ten thousand.
    rows = WorkerPartition.objects.using(alias).filter(worker__in=by_id)
    found = {}
    for worker, topic, number, in_flight, waits_for, paused in rows.values_list(
        "worker", "topic", "partition", "in_flight", "waits_for", "paused"
    ):
        consumer, address = by_id[worker]
        found[consumer, topic, number] = {
            "worker": address, "in_flight": in_flight, "waits_for": waits_for, "paused": paused,
        }  # fmt: skip
    return found


def _pauses(rows: Iterable[Pause]) -> dict[str, str]:
    """Return what is paused of each consumer; those of whole consumers come first."""
    found: dict[str, list[Pause]] = {}
    for one in rows:
        found.setdefault(one.consumer, []).append(one)
    return {consumer: _said(some) for consumer, some in found.items()}


def _said(pauses: Sequence[Pause]) -> str:
    first = pauses[0]
    if not first.topic:
        return first.sentence
    more = f" and {len(pauses) - 1} more" if len(pauses) > 1 else ""
    return f"{first.topic}[{first.partition}]{more}: {first.sentence}"


def count_letters(alias: str, consumers: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return how many dead letters consumers have in each state, counted up to `COUNTED_TO`, in one statement."""
    letters = DeadLetter.objects.using(alias)
    terms, values = list[str](), list[Any]()
    for consumer in consumers:
        for state in DeadLetter.State.values:
            some = letters.filter(consumer=consumer, state=state).order_by().values("pk")[:COUNTED_TO]
            sql, parameters = some.query.get_compiler(alias).as_sql()
            # Django's union() takes no slices on SQLite. The text says where a count belongs: order is not promised.
            terms.append(f"SELECT {len(terms)}, COUNT(*) FROM ({sql}) AS counted")
            values += parameters
    if not terms:
        return {}
    with connections[alias].cursor() as cursor:
        cursor.execute(" UNION ALL ".join(terms), values)
        counts = dict(cursor.fetchall())
    states = list(DeadLetter.State.values)
    return {
        consumer: {state: counts[first * len(states) + second] for second, state in enumerate(states)}
        for first, consumer in enumerate(consumers)
    }


def _cluster(name: str, found: ClusterLag | None) -> Cluster:
    if found is None:
        return Cluster(name=name)
    topics = None if found.reason else found.topics
    return Cluster(name=name, asked_at=found.asked_at, topics=topics, reason=found.reason)


def _has_group(settings: conf.Consumer) -> bool:
    return settings.enabled and bool(settings.group_id)


def _between_commits(settings: conf.Consumer) -> float:
    return settings.auto_commit_interval if settings.enable_auto_commit else 0.0
