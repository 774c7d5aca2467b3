"""The client that only looks: what a cluster says of itself, of topics and groups, and of what this login may do there.

A question is given up after as many seconds as it is asked with; nothing here changes anything in a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as LateAnswer
from dataclasses import dataclass
from typing import Any

import confluent_kafka
from confluent_kafka import TopicCollection, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from .. import conf
from . import errors
from .asking import Unreachable
from .groups import SETTLING, Group, described
from .sharing import asking_client

_FIRST_TRY = 1.0
"""Seconds for the first question after metadata; each further one has twice as many."""
_PAUSE = 0.1
"""Seconds before what failed is asked again."""
_GRACE = 0.5
"""Seconds that the library gets for saying that it has given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster as one of its brokers describes it."""

    id: str
    """What it calls itself; "" when it does not say."""
    controlled: bool
    """Whether one of its brokers is its controller. In the embedded cluster none is, and nobody tells permissions."""
    brokers: Mapping[int, str]
    """The numbers of its brokers, and where each says that it is."""
    topics: Mapping[str, Topic]
    """Those that this login may see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic as brokers describe it."""

    partitions: int
    """How many it has."""
    leaderless: tuple[int, ...]
    """The partitions that nobody leads now."""
    short: tuple[int, ...]
    """The partitions that fewer brokers have a whole copy of than should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permitted:
    """What this login may do with a topic or a group."""

    operations: frozenset[str] | None
    """READ, WRITE, DESCRIBE, …; None: the cluster does not tell."""
    missing: bool = False
    """Whether it does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A group, and what this login may do with it."""

    group: Group
    """How it stands."""
    permitted: Permitted
    """What is allowed."""


class Inspector:
    """Looks at one cluster with one login."""

    def __init__(self, cluster: conf.Cluster, own: Mapping[str, Any] | None = None) -> None:
        """`own` are librdkafka's properties beside the cluster's. Raises `ConfigurationError`."""
        self._name = cluster.name
        self._asking = asking_client(cluster, own)
        self.scrub = self._asking.scrub

    def cluster(self, seconds: float) -> Cluster:
        """Return the cluster. Raises `Unreachable`: soon when it is known what is refused, else after that time."""
        deadline = time.monotonic() + seconds
        slice_ = _FIRST_TRY
        while True:
            left = deadline - time.monotonic()
            client = self._asking.now
            try:
                found = client.list_topics(timeout=max(0.1, min(slice_, left)))
            except confluent_kafka.KafkaException as error:
                failure = self._asking.failure(f"Cluster {self._name!r} does not answer", error)
                if type(failure) is not Unreachable or time.monotonic() > deadline - _PAUSE:
                    raise failure from None
                slice_ *= 2
                time.sleep(_PAUSE)
                continue
            self._asking.answered()
            return Cluster(
                id=str(found.cluster_id or ""),
                controlled=found.controller_id in found.brokers,
                brokers={number: f"{one.host}:{one.port}" for number, one in found.brokers.items()},
                topics={name: _topic(one) for name, one in found.topics.items() if one.error is None},
            )

    def topics(self, names: Iterable[str], seconds: float) -> dict[str, Permitted | Unreachable]:
        """Return what this login may do with each topic, or why that is not said."""

        def ask(wanted: list[str], left: float) -> Mapping[str, Future[Any]]:
            client = self._asking.now  # held until all have answered
            answers: Mapping[str, Future[Any]] = client.describe_topics(
                TopicCollection(wanted), include_authorized_operations=True, request_timeout=left
            )
            wait(answers.values(), left + _GRACE)
            return answers

        def read(found: Any) -> Permitted:
            return Permitted(operations=_operations(found))

        def fail(name: str, error: confluent_kafka.KafkaException) -> Permitted | Unreachable:
            if (cause := errors.of(error)) is not None and cause.name() in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC"):
                return Permitted(operations=None, missing=True)
            return self._asking.failure(f"Topic {name!r} is not described", error, topic=name)

        return self._each(names, seconds, ask, read, fail)

    def groups(self, ids: Iterable[str], seconds: float) -> dict[str, Described | Unreachable]:
        """Return how each group stands and what this login may do with it, or why that is not said."""

        def ask(wanted: list[str], left: float) -> Mapping[str, Future[Any]]:
            def describe(client: Any, seconds: float) -> Mapping[str, Future[Any]]:
                answers: Mapping[str, Future[Any]] = client.describe_consumer_groups(
                    wanted, include_authorized_operations=True, request_timeout=seconds
                )
                return answers

            return self._asking.ask_coordinators(describe, left)

        def read(found: Any) -> Described:
            return Described(group=described(found), permitted=Permitted(operations=_operations(found)))

        def fail(name: str, error: confluent_kafka.KafkaException) -> Described | Unreachable:
            if (cause := errors.of(error)) is not None and cause.name() == "_UNSUPPORTED_FEATURE":
                return Described(group=Group(state="unknown"), permitted=Permitted(operations=None))
            return self._asking.failure(f"Group {name!r} is not described", error, group=name)

        return self._each(ids, seconds, ask, read, fail)

    def newest(self, topics: Mapping[str, int], seconds: float) -> dict[tuple[str, int], int]:
        """Return the latest time of any record of each partition, in milliseconds since the epoch.

        `topics` are numbers of partitions by name. What has no record, or is not answered, is left out.
        """
        places = [TopicPartition(name, number) for name, count in topics.items() for number in range(count)]
        if not places:
            return {}
        client = self._asking.now
        wanted = {place: OffsetSpec.max_timestamp() for place in places}  # type: ignore[no-untyped-call]
        found: dict[tuple[str, int], int] = {}
        deadline = time.monotonic() + seconds
        try:
            answers = client.list_offsets(wanted, request_timeout=seconds)
        except confluent_kafka.KafkaException:
            return {}
        for place, answer in answers.items():
            try:
                at = answer.result(max(0.0, deadline - time.monotonic()) + _GRACE).timestamp
            except (confluent_kafka.KafkaException, LateAnswer):
                continue
            if at > 0:
                found[place.topic, place.partition] = at
        return found

    def _each(
        self,
        names: Iterable[str],
        seconds: float,
        ask: Callable[[list[str], float], Mapping[str, Future[Any]]],
        read: Callable[[Any], Any],
        fail: Callable[[str, confluent_kafka.KafkaException], Any],
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        wanted, deadline = list(dict.fromkeys(names)), time.monotonic() + seconds
        while wanted:
            left, again = max(0.1, deadline - time.monotonic()), []
            try:
                answers = ask(wanted, left)
            except confluent_kafka.KafkaException as error:
                return found | {name: fail(name, error) for name in wanted}
            for name, answer in answers.items():
                try:
                    found[name] = read(answer.result(0))
                except LateAnswer:
                    found[name] = Unreachable(f"Cluster {self._name!r} says nothing of {name!r} within {seconds:.1f} s")
                except confluent_kafka.KafkaException as error:
                    cause = errors.of(error)
                    if cause is not None and cause.name() in SETTLING and time.monotonic() < deadline - 0.2:
                        again.append(name)
                    else:
                        found[name] = fail(name, error)
            if wanted := again:
                time.sleep(_PAUSE)
        return found


def _topic(found: Any) -> Topic:
    parts = found.partitions
    return Topic(
        partitions=len(parts),
        leaderless=tuple(sorted(number for number, one in parts.items() if one.leader < 0)),
        short=tuple(sorted(number for number, one in parts.items() if len(one.isrs) < len(one.replicas))),
    )


def _operations(found: Any) -> frozenset[str] | None:
    operations = found.authorized_operations
    return None if operations is None else frozenset(one.name for one in operations)
