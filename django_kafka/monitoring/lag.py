"""Lag as the brokers see it: how far what groups have committed is behind the ends of partitions.

It is right whether workers run, are paused or are dead, because it asks none of them. Brokers are asked once in a few
seconds for a whole process, whoever wants to know:

    of_consumer(), of_cluster()   what is known, asked anew when it is older than `KEPT`
    known()                       the same at once, for who may not wait: it is asked anew behind their back

What cannot be asked, because brokers are away or a permission is missing, is a `reason`, never an error.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from django.core.signals import setting_changed
from django.db import Error as DatabaseFailure
from django.db import connections

from .. import claims, conf, handlers, logs, subscriptions
from ..clients import reading
from ..clients.admin import Layout, TopicAdmin
from ..clients.groups import Group, GroupAdmin
from ..exceptions import ConfigurationError
from ..membership import reset_of, topics_and_group
from .positions import Place, Position

log = logs.of(__name__)

KEPT = 5.0
"""Seconds for which an answer is good enough."""
_HEARD = 300.0
"""Seconds after which what was heard is no news, as for Prometheus: nobody has asked for long, or nobody answers."""
_TIMEOUT = 4.0
"""Seconds, at most, that brokers may take for one answer: a health page is waited for."""
_PATIENCE = 3
"""Of such times altogether; once they are over, each further answer gets only so many seconds:"""
_BRIEFLY = 1.0
_READ_EVERY = 10.0
"""Seconds between two looks at the times of messages, which have to be fetched."""
_READ_AT_ONCE = 50
"""Partitions in which one look does so; others keep what they had, and come first at the next."""
_READS_FOR = 2.0
"""Seconds that it takes at the most for one consumer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLag(Position):
    """How far a group is behind in one partition."""

    next_at: datetime | None = None
    """The time of the message that it reads next, as its producer or the broker set it; None: not known."""
    seconds: float | None = None
    """How old that message was when it was looked at, 0 when there is none; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLag:
    """How far the group of one consumer is behind."""

    consumer: str
    """The consumer's name."""
    group_id: str
    """As Kafka knows it."""
    state: str
    """Of the group, as its brokers say: stable, empty, …; "none": there is none; "unknown": they do not say."""
    members: int = 0
    """How many are in it, as they say."""
    partitions: tuple[PartitionLag, ...] = ()
    """In the order of topics and numbers; nothing when it is not known."""
    missing: tuple[str, ...] = ()
    """Topics that it reads and this login does not see: they are not there, or it may not."""
    reason: str = ""
    """Why something of this is not known; "" when all is."""

    @property
    def described(self) -> bool:
        """Whether its brokers say how it stands."""
        return self.state != "unknown"

    @property
    def deserted(self) -> bool:
        """Whether they say that nobody is in it."""
        return self.described and not self.members

    @property
    def messages(self) -> int | None:
        """How many messages it has still to read in all partitions whose lag is known; None when none is."""
        known = [one.lag for one in self.partitions if one.lag is not None]
        return sum(known) if known else None

    @property
    def seconds(self) -> float | None:
        """How old the oldest message is that it has still to read, 0 when there is none; None when no age is known."""
        return max((one.seconds for one in self.partitions if one.seconds is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLag:
    """How far all groups of a cluster are behind."""

    cluster: str
    """The cluster's name."""
    asked_at: datetime
    """When it was asked, by this process's clock."""
    topics: int = 0
    """How many topics this login sees."""
    groups: Mapping[str, GroupLag] = field(default_factory=dict)
    """By consumer: those that are enabled."""
    reason: str = ""
    """Why it did not answer; "" when it did."""


def of_cluster(name: str = "default", *, max_age: float = KEPT) -> ClusterLag:
    """Return the lag on a cluster, asked anew when it is older than `max_age` seconds. Raises `UnknownName`."""
    return _memory.of(conf.cluster(name).name).answer(max_age)


def of_consumer(name: str | None = None, *, max_age: float = KEPT) -> GroupLag:
    """Return the lag of a consumer (None: the default one). Raises `UnknownName`."""
    consumer = conf.consumer(name)
    found = of_cluster(consumer.cluster, max_age=max_age)
    if (one := found.groups.get(consumer.name)) is not None:
        return one
    return _unknown(consumer, "It is switched off, or has no group.")


def known(*, max_age: float = KEPT) -> list[ClusterLag]:
    """Return what is known of all clusters that have consumers, without waiting: at first nothing.

    What is older than `max_age` seconds is asked anew in a thread.
    """
    watches = [_memory.of(name) for name in dict.fromkeys(one.cluster for one in _consumers())]
    for watch in watches:
        watch.refresh(max_age)
    return [watch.last for watch in watches if watch.last is not None]


def heard(*, max_age: float = KEPT) -> list[GroupLag]:
    """Return what brokers said last of the groups of all consumers, without waiting, unless that is long ago.

    It is asked anew as by `known`. Nothing is raised: of what settings do not say rightly nothing is known.
    """
    try:
        clusters = known(max_age=max_age)
    except ConfigurationError:
        return []
    oldest = datetime.now(UTC) - timedelta(seconds=_HEARD)
    return [group for one in clusters if one.asked_at >= oldest for group in one.groups.values()]


class _Watch:
    """What is known of one cluster in this process."""

    def __init__(self, cluster: str) -> None:
        self.last: ClusterLag | None = None
        self._said: set[str] = set()
        self._cluster = cluster
        self._asked = 0.0
        self._asking = threading.Lock()
        self._times = _Times()

    def answer(self, max_age: float) -> ClusterLag:
        """Return what is known, asked anew when it is older; whoever comes meanwhile waits for the same answer."""
        with self._asking:
            if self.last is None or time.monotonic() - self._asked > max_age:
                self.last = self._ask()
                self._asked = time.monotonic()
                self._say(self.last)
            return self.last

    def _say(self, found: ClusterLag) -> None:
        """Log why something is not known, until it is once."""
        reasons = {one.reason for one in found.groups.values() if one.reason}
        for reason in sorted(reasons - self._said):
            log.warning("cluster=%s lag is not known in full: %s", self._cluster, reason)
        self._said = reasons

    def refresh(self, max_age: float) -> None:
        """Have it asked anew in a thread when it is older, unless it is being asked."""
        if (self.last is None or time.monotonic() - self._asked > max_age) and not self._asking.locked():
            threading.Thread(target=self._refresh, args=(max_age,), name="kafka-lag", daemon=True).start()

    def _refresh(self, max_age: float) -> None:
        try:
            self.answer(max_age)
        except Exception:  # nobody is there to hear of it
            log.exception("cluster=%s its lag could not be asked", self._cluster)
        finally:
            connections.close_all()  # of claims

    def _ask(self) -> ClusterLag:
        at = datetime.now(UTC)
        consumers = _consumers(self._cluster)
        try:
            cluster = conf.cluster(self._cluster)
            timeout = min(_TIMEOUT, cluster.connection.timeout)
            layouts = TopicAdmin(cluster, timeout).layouts()
            deadline = time.monotonic() + _PATIENCE * timeout
            groups = {}
            for one in consumers:
                patience = timeout if time.monotonic() < deadline else min(timeout, _BRIEFLY)
                groups[one.name] = self._ask_of(one, layouts, patience)
        except ConfigurationError as error:
            unknown = {one.name: _unknown(one, str(error)) for one in consumers}
            return ClusterLag(cluster=self._cluster, asked_at=at, groups=unknown, reason=str(error))
        return ClusterLag(cluster=self._cluster, asked_at=at, topics=len(layouts), groups=groups)

    def _ask_of(self, consumer: conf.Consumer, layouts: Mapping[str, Layout], timeout: float) -> GroupLag:
        origins, group_id = topics_and_group(consumer, handlers.topics(consumer.name))
        found = subscriptions.of_patterns(consumer.name, layouts)
        topics = [*origins, *found, *sorted(handlers.retry_topics(consumer.name))]
        places = [(name, number) for name in topics if name in layouts for number in range(layouts[name].partitions)]
        reasons: list[str] = []
        group, positions = Group(state="unknown"), list[PartitionLag]()
        try:
            admin = GroupAdmin(consumer, group_id, timeout)
            try:
                group = admin.group()
            except ConfigurationError as error:
                reasons.append(str(error))
            positions = _positions(consumer, group_id, admin, places, reasons)
        except ConfigurationError as error:
            # Not the same once more: who may not describe the group may not read its offsets.
            reasons += [sentence for sentence in [str(error)] if not reasons]
        return GroupLag(
            consumer=consumer.name,
            group_id=group_id,
            state=group.state,
            members=len(group.members),
            partitions=self._times.of(consumer, group_id, positions, timeout),
            missing=tuple(name for name in topics if name not in layouts),
            reason=" ".join(reasons),
        )


def _unknown(consumer: conf.Consumer, reason: str) -> GroupLag:
    group_id = consumer.group_id and conf.kafka().prefixed(consumer.group_id)
    return GroupLag(consumer=consumer.name, group_id=group_id, state="unknown", reason=reason)


def _positions(
    consumer: conf.Consumer, group_id: str, admin: GroupAdmin, places: list[Place], reasons: list[str]
) -> list[PartitionLag]:
    committed, ends = admin.committed(places), admin.ends(places)
    claimed: dict[Place, int] = {}
    if consumer.guarantee == "effect_once":
        try:
            rows = claims.of_group(consumer.database, consumer.cluster, group_id)
            claimed = {(one.topic, one.partition): one.offset for one in rows}
        except DatabaseFailure as error:
            # What is committed follows the claims closely.
            reasons.append(f"Database {consumer.database!r} does not say what is claimed ({type(error).__name__}).")
    reset = reset_of(consumer)
    return [
        PartitionLag(
            topic=place[0], partition=place[1], committed=committed[place], log=ends[place],
            claimed=claimed.get(place), reset=reset,
        )
        for place in places
    ]  # fmt: skip


class _Times:
    """When the messages were sent that groups read next. One at an offset has the same time for ever."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Place], tuple[int, datetime]] = {}
        """By consumer and partition: an offset, and its time."""
        self._looked: dict[tuple[str, Place], float] = {}
        self._looked_at_any: dict[str, float] = {}

    def of(
        self, consumer: conf.Consumer, group_id: str, partitions: Iterable[PartitionLag], timeout: float
    ) -> tuple[PartitionLag, ...]:
        """Return partitions with the times of what is read next, as far as these are known."""
        found = list(partitions)
        behind = {one.place: one.reads_from for one in found if one.lag and one.reads_from is not None}
        self._look(consumer, group_id, behind, timeout)
        now = datetime.now(UTC)
        return tuple(self._dated(consumer.name, one, now) for one in found)

    def _look(self, consumer: conf.Consumer, group_id: str, behind: Mapping[Place, int], timeout: float) -> None:
        name, now = consumer.name, time.monotonic()
        for key in [key for key in self._looked if key[0] == name and key[1] not in behind]:
            del self._looked[key]
            self._known.pop(key, None)
        wanted = {place: one for place, one in behind.items() if self._known.get((name, place), (-1,))[0] != one}
        if not wanted or now - self._looked_at_any.get(name, -_READ_EVERY) < _READ_EVERY:
            return
        longest_ago = sorted(wanted, key=lambda place: self._looked.get((name, place), 0.0))
        some = {place: wanted[place] for place in longest_ago[:_READ_AT_ONCE]}
        self._looked_at_any[name] = now
        self._looked |= {(name, place): now for place in some}
        try:
            times = reading.times(consumer, group_id, some, min(timeout, _READS_FOR))
        except ConfigurationError:
            return
        for place, at in times.items():
            self._known[name, place] = some[place], datetime.fromtimestamp(at / 1000, UTC)

    def _dated(self, consumer: str, one: PartitionLag, now: datetime) -> PartitionLag:
        if one.lag == 0:
            return replace(one, seconds=0.0)
        # A bit early while the group moves on between two looks: never later than it is.
        _offset, at = self._known.get((consumer, one.place), (0, None))
        return one if at is None else replace(one, next_at=at, seconds=max(0.0, (now - at).total_seconds()))


def _consumers(cluster: str | None = None) -> list[conf.Consumer]:
    """Return the consumers that are enabled and have a group, of one cluster or of all."""
    found = conf.kafka().consumers.values()
    return [one for one in found if one.enabled and one.group_id and cluster in (None, one.cluster)]


class _Memory:
    """The watches of this process."""

    def __init__(self) -> None:
        self._watches: dict[str, _Watch] = {}

    def of(self, cluster: str) -> _Watch:
        """Return the one of a cluster."""
        return self._watches.setdefault(cluster, _Watch(cluster))

    def forget(self) -> None:
        """Begin anew, as in a child process: a thread that is not there may have been asking."""
        self._watches = {}


_memory = _Memory()


def forget() -> None:
    """Have everything asked anew."""
    _memory.forget()


def _forget_settings(*, setting: str, **_event: object) -> None:
    if setting == "KAFKA":
        forget()


os.register_at_fork(after_in_child=forget)
setting_changed.connect(_forget_settings, dispatch_uid="django_kafka.monitoring.lag")
