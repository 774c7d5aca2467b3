"""Where one consumer's group stands in the partitions that it reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from django.db import Error as DatabaseFailure
from django.utils.functional import cached_property

from .. import claims, conf, handlers, subscriptions
from ..clients import reading
from ..clients.groups import Group, GroupAdmin, GroupInUse, Member
from ..exceptions import ConfigurationError
from ..membership import reset_of, topics_and_group
from ..models import Tenure, Worker
from ..monitoring import heartbeats
from ..monitoring.positions import Place, Position

_TIMEOUT = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing(Position):
    """Where a group stands in one partition."""

    retry: bool
    """Whether it is of a retry topic."""
    next_at: datetime | None = None
    """The time of the message that it reads next, if there is one."""
    member: Member | None = None
    """Who has it, as the brokers say."""
    worker: Worker | None = None
    """Who has it, as the heartbeats say."""

    def stands_at(self, offset: int) -> bool:
        """Tell whether the group is there, and its claim too."""
        return offset == self.committed and self.claimed in (None, offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where a group stands, all in all."""

    consumer: conf.Consumer
    """Whose group it is."""
    group_id: str
    """As Kafka knows it."""
    group: Group
    """What the brokers say of it."""
    workers: tuple[Worker, ...]
    """Those of the group that were heard of lately."""
    partitions: tuple[Standing, ...]
    """In the order of topics and numbers."""
    missing: tuple[str, ...]
    """Topics that it reads and the cluster does not have."""
    reset: str
    """Where the consumer begins without an offset, as librdkafka calls it."""
    unheard: str = ""
    """Why nothing is known of workers, when that is so."""

    @property
    def begun(self) -> bool:
        """Whether the group has a position anywhere."""
        return any(one.position is not None for one in self.partitions)

    @property
    def users(self) -> list[str]:
        """Who is in the group or about to be: to be stopped before its offsets are moved."""
        workers = [f"worker {one.host}:{one.pid}" for one in self.workers]
        return workers + [f"member {one}" for one in self.group.members]


class Books:
    """What brokers and database know of one consumer. Raises `ConfigurationError` for one that settings lack."""

    def __init__(self, name: str, *, timeout: float = _TIMEOUT) -> None:
        """`timeout`: seconds that brokers may take for each answer."""
        self.consumer = conf.consumer(name)
        self._named, self.group_id = topics_and_group(self.consumer, handlers.topics(name))
        self.retries = frozenset(handlers.retry_topics(name))
        self.timeout = min(timeout, max(1.0, conf.cluster(self.consumer.cluster).connection.timeout))
        self.reset = reset_of(self.consumer)
        self._admin = GroupAdmin(self.consumer, self.group_id, self.timeout)

    @cached_property
    def topics(self) -> list[str]:
        """The topics that it reads. Those that patterns fit are known by the cluster: raises `Unreachable`."""
        return self._read(self._admin.layouts() if subscriptions.patterns(self.consumer.name) else ())

    def _read(self, there: Iterable[str]) -> list[str]:
        return [*self._named, *subscriptions.of_patterns(self.consumer.name, there), *sorted(self.retries)]

    def stand(self, topics: Collection[str] = (), partitions: Collection[int] = ()) -> Stand:
        """Return where the group stands in all partitions, or in those of `topics` and with these numbers.

        Raises `Unreachable` when no broker answers, `ConfigurationError` for a topic or partition that is not there.
        """
        places, missing = self._places(topics, partitions)
        group, logs, committed = self._admin.group(), self._admin.ends(places), self._admin.committed(places)
        workers, owners, unheard = self._workers()
        claimed = self._claimed()
        members = {place: member for member in group.members for place in member.places}
        standings = [
            Standing(
                topic=topic,
                partition=number,
                retry=topic in self.retries,
                committed=committed[topic, number],
                log=logs[topic, number],
                claimed=claimed.get((topic, number)),
                reset=self.reset,
                member=members.get((topic, number)),
                worker=owners.get((topic, number)),
            )
            for topic, number in places
        ]
        return Stand(
            consumer=self.consumer, group_id=self.group_id, group=group, workers=workers,
            partitions=self._with_times(standings), missing=missing, unheard=unheard, reset=self.reset,
        )  # fmt: skip

    def times(self, offsets: Mapping[Place, int]) -> dict[Place, datetime]:
        """Return when the first message from each offset on was sent; what has none is left out."""
        found = reading.times(self.consumer, self.group_id, offsets, self.timeout)
        return {place: datetime.fromtimestamp(at / 1000, UTC) for place, at in found.items()}

    def since(self, at: datetime, stand: Stand) -> dict[Place, int | None]:
        """Return the offset of the first message that was sent then or later; None where there is none."""
        milliseconds = round(at.timestamp() * 1000)
        logs = {one.place: one.log for one in stand.partitions}
        if stand.group.known:
            return self._admin.since(logs, milliseconds)
        # The cluster that does not describe groups, the embedded one, does not look times up either.
        return reading.since(self.consumer, self.group_id, logs, milliseconds, self.timeout)

    def commit(self, offsets: Mapping[Place, int]) -> None:
        """Commit these offsets for the group, and move its claims there. Raises `GroupInUse` while it has members."""
        # Kafka first: it refuses while anybody is in the group.
        self._commit(offsets)
        if self.consumer.guarantee == "effect_once":
            with self._database_answers():
                for place, offset in offsets.items():
                    claims.reset(self.consumer, self.group_id, place, offset)

    def _claimed(self) -> dict[Place, int]:
        if self.consumer.guarantee != "effect_once":
            return {}
        with self._database_answers():
            found = claims.of_group(self.consumer.database, self.consumer.cluster, self.group_id)
            return {(one.topic, one.partition): one.offset for one in found}

    @contextmanager
    def _database_answers(self) -> Iterator[None]:
        try:
            yield
        except DatabaseFailure as error:
            raise ConfigurationError(
                f"Consumer {self.consumer.name!r} keeps its offsets in database {self.consumer.database!r}, which does "
                f"not answer ({type(error).__name__}). Try again when it does."
            ) from error

    def _commit(self, offsets: Mapping[Place, int]) -> None:
        try:
            self._admin.commit(offsets)
        except GroupInUse:
            if self._admin.group().known:
                raise
            # The embedded cluster takes nothing from outside once a group has had members, whether they left or not.
            every, _missing = self._places((), ())
            reading.commit_as_only_member(self.consumer, self.group_id, frozenset(every), offsets)

    def _places(self, topics: Collection[str], partitions: Collection[int]) -> tuple[list[Place], tuple[str, ...]]:
        layouts = self._admin.layouts()
        chosen = [name for name in self._read(layouts) if not topics or name in topics]
        missing = tuple(name for name in chosen if name not in layouts)
        if topics and missing:
            raise ConfigurationError(f"Cluster {self.consumer.cluster!r} has no topic {', '.join(missing)}.")
        places = []
        for name in chosen:
            if name in missing:
                continue
            count = layouts[name].partitions
            if beyond := sorted(number for number in partitions if not 0 <= number < count):
                has = "only partition 0" if count == 1 else f"the partitions 0 to {count - 1}"
                raise ConfigurationError(f"{name} has {has}, not {', '.join(map(str, beyond))}.")
            places += [(name, number) for number in range(count) if not partitions or number in partitions]
        return places, missing

    def _workers(self) -> tuple[tuple[Worker, ...], dict[Place, Worker], str]:
        """Return the workers of the group, which partition is whose, and why that is not known."""
        try:
            workers = {one.pk: one for one in heartbeats.of_group(self.consumer.cluster, self.group_id)}
            rows = Tenure.objects.using(conf.kafka().dead_letters.database).filter(
                cluster=self.consumer.cluster, group_id=self.group_id, worker__in=workers
            )
            owners = {(one.topic, one.partition): workers[one.worker] for one in rows}
        except DatabaseFailure as error:
            return (), {}, f"The rows of workers cannot be read ({type(error).__name__})."
        return tuple(workers.values()), owners, ""

    def _with_times(self, standings: Iterable[Standing]) -> tuple[Standing, ...]:
        found = list(standings)
        behind = {one.place: one.reads_from for one in found if one.lag}
        times = self.times({place: offset for place, offset in behind.items() if offset is not None})
        return tuple(replace(one, next_at=times.get(one.place)) for one in found)
