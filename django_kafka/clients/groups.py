"""The client that asks how a group stands and where logs begin and end, and moves groups that have no members."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateAnswer
from dataclasses import dataclass
from typing import Any, TypeVar

import confluent_kafka
from confluent_kafka import ConsumerGroupTopicPartitions, TopicCollection, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from .. import conf
from ..exceptions import ConfigurationError
from . import errors
from .admin import TopicAdmin, Unreachable
from .events import Place

_LOGIN = ("sasl.", "ssl.", "security.", "enable.ssl.", "enable.sasl.", "https.", "socket.", "broker.", "client.")
"""What the options of a consumer begin with that its way to the brokers depends on."""
SETTLING = {"COORDINATOR_LOAD_IN_PROGRESS", "COORDINATOR_NOT_AVAILABLE", "NOT_COORDINATOR", "_WAIT_COORD",
             "LEADER_NOT_AVAILABLE", "NOT_LEADER_FOR_PARTITION"}  # fmt: skip
"""What a broker says that has just started, or just taken the group over."""
_IN_USE = {"UNKNOWN_MEMBER_ID", "NON_EMPTY_GROUP", "ILLEGAL_GENERATION", "REBALANCE_IN_PROGRESS", "STALE_MEMBER_EPOCH",
           "FENCED_MEMBER_EPOCH"}  # fmt: skip
_NEVER = "dead"
"""The state of a group that does not exist."""

_Key = TypeVar("_Key")
_Answer = TypeVar("_Answer")


class GroupInUse(ConfigurationError):
    """A group has members, so that Kafka takes no offsets for it from outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A client that is in a group."""

    id: str
    """What the brokers call it."""
    client_id: str
    """What it calls itself."""
    host: str
    """Where it connects from."""
    places: frozenset[Place]
    """The partitions that it has."""

    def __str__(self) -> str:
        return f"{self.client_id} at {self.host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group as its brokers describe it."""

    state: str
    """stable, empty, …; "none" when there is no such group, "unknown" when the cluster does not tell."""
    protocol: str = ""
    """classic or consumer; "" for what has never had members, or is not known."""
    members: tuple[Member, ...] = ()
    """Who is in it."""

    @property
    def known(self) -> bool:
        """Whether the cluster tells about groups; the embedded one does not."""
        return self.state != "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where the log of a partition begins and ends."""

    low: int
    """The offset of the first message that is there."""
    high: int
    """The offset of the next message to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log(Ends):
    """What brokers have of a partition."""

    topic_id: str | None
    """What tells this topic from others of its name; None: the cluster does not say, as the embedded one does not."""


class GroupAdmin(TopicAdmin):
    """Looks after one consumer's group; every answer is waited for up to `timeout` seconds."""

    def __init__(self, consumer: conf.Consumer, group_id: str, timeout: float) -> None:
        super().__init__(conf.cluster(consumer.cluster), timeout, login_of(consumer))
        self.group_id = group_id

    def group(self) -> Group:
        """Return how the group stands. Raises `Unreachable`."""
        try:
            (found,) = self._ask_coordinator(
                "who is in it",
                lambda client, seconds: client.describe_consumer_groups([self.group_id], request_timeout=seconds),
            ).values()
        except _Unsupported:
            return Group(state="unknown")
        return described(found)

    def committed(self, places: Iterable[Place]) -> dict[Place, int | None]:
        """Return what the group has committed; None where nothing is. Raises `Unreachable`."""
        found: dict[Place, int | None] = dict.fromkeys(places)
        if not found:
            return found
        request = ConsumerGroupTopicPartitions(self.group_id, [TopicPartition(*place) for place in found])
        (answer,) = self._ask_coordinator(
            "what it has committed",
            lambda client, seconds: client.list_consumer_group_offsets([request], request_timeout=seconds),
        ).values()
        for one in answer.topic_partitions:
            if one.error is not None:
                where = f"for {one.topic}[{one.partition}]"
                raise self._silent(f"what it has committed {where}", one.error.str())
            found[one.topic, one.partition] = None if one.offset < 0 else one.offset
        return found

    def ends(self, places: Collection[Place]) -> dict[Place, Ends]:
        """Return where partitions begin and end. Raises `Unreachable`."""
        lows = self._offsets(places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        highs = self._offsets(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return {place: Ends(low=lows[place], high=highs[place]) for place in places}

    def logs(self, places: Collection[Place]) -> dict[Place, Log]:
        """Return what brokers have of these partitions, of each whose topic they tell of. Raises `Unreachable`."""
        ends, ids = self.ends(places), self._topic_ids({topic for topic, _partition in places})
        return {
            place: Log(low=found.low, high=found.high, topic_id=ids[place[0]])
            for place, found in ends.items()
            if place[0] in ids
        }

    def _topic_ids(self, topics: Collection[str]) -> dict[str, str | None]:
        if self.cluster.embedded:
            return dict.fromkeys(topics)
        client = self._client
        try:
            asked = client.describe_topics(TopicCollection(list(topics)), request_timeout=self.timeout)
        except confluent_kafka.KafkaException as error:
            raise self._asking.failure(self._unsaid("which topics it reads"), error) from None
        found: dict[str, str | None] = {}
        for topic, answer in asked.items():
            try:
                found[topic] = str(answer.result(2 * self.timeout).topic_id)
            except LateAnswer:
                continue
            except confluent_kafka.KafkaException as error:
                # A cluster like the embedded one has no controller, which is who is asked.
                if (cause := errors.of(error)) is not None and cause.name() == "_TIMED_OUT":
                    found[topic] = None
        return found

    def since(self, places: Collection[Place], milliseconds: int) -> dict[Place, int | None]:
        """Return the offset of the first message of that time or later; None where there is none."""
        found = self._offsets(places, OffsetSpec.for_timestamp(milliseconds))
        return {place: None if offset < 0 else offset for place, offset in found.items()}

    def _offsets(self, places: Collection[Place], which: OffsetSpec) -> dict[Place, int]:
        if not places:
            return {}
        wanted = {TopicPartition(*place): which for place in places}
        found = self._ask(
            "where its partitions begin and end",
            lambda client: client.list_offsets(wanted, request_timeout=self.timeout),
        )
        return {(one.topic, one.partition): answer.offset for one, answer in found.items()}

    def commit(self, offsets: Mapping[Place, int]) -> None:
        """Commit these offsets for the group. Raises `GroupInUse`: Kafka takes them only while it has no members."""
        request = ConsumerGroupTopicPartitions(
            self.group_id, [TopicPartition(*place, offset) for place, offset in offsets.items()]
        )
        (answer,) = self._ask_coordinator(
            "whether it took the offsets",
            lambda client, seconds: client.alter_consumer_group_offsets([request], request_timeout=seconds),
        ).values()
        refused = [(one, one.error) for one in answer.topic_partitions if one.error is not None]
        if any(error.name() in _IN_USE for _one, error in refused):
            raise GroupInUse(f"Group {self.group_id!r} has members; Kafka takes no offsets for it meanwhile.")
        if refused:
            why = ", ".join(f"{one.topic}[{one.partition}]: {self._scrub(error.str())}" for one, error in refused)
            raise ConfigurationError(f"Kafka did not take the offsets of group {self.group_id!r}: {why}.")

    def _ask_coordinator(
        self, what: str, ask: Callable[[Any, float], Mapping[_Key, Future[_Answer]]]
    ) -> dict[_Key, _Answer]:
        def answered() -> dict[_Key, _Answer]:
            answers = self._asking.ask_coordinators(ask, self.timeout)
            return {key: answer.result(0) for key, answer in answers.items()}

        return self._repeat(what, answered)

    def _ask(self, what: str, ask: Callable[[Any], Mapping[_Key, Future[_Answer]]]) -> dict[_Key, _Answer]:
        def answered() -> dict[_Key, _Answer]:
            # Held until it has answered: it may be another one by then.
            client = self._client
            # The client itself gives up after the timeout.
            return {key: answer.result(2 * self.timeout) for key, answer in ask(client).items()}

        return self._repeat(what, answered)

    def _repeat(self, what: str, answered: Callable[[], dict[_Key, _Answer]]) -> dict[_Key, _Answer]:
        """Ask until brokers that have just started or taken over know the answer."""
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                answers = answered()
                self._asking.answered()
                return answers
            except confluent_kafka.KafkaException as error:
                name = cause.name() if (cause := errors.of(error)) else ""
                if name == "_UNSUPPORTED_FEATURE":
                    raise _Unsupported(str(self._silent(what, errors.sentence(error)))) from None
                if name in _IN_USE:
                    raise GroupInUse(f"Group {self.group_id!r} has members.") from None
                if name not in SETTLING or time.monotonic() > deadline:
                    raise self._asking.failure(self._unsaid(what), error, group=self.group_id) from None
            except LateAnswer:
                late = TimeoutError(f"no answer within {self.timeout:g} s")
                raise self._asking.failure(self._unsaid(what), late, group=self.group_id) from None
            time.sleep(0.1)

    def _silent(self, what: str, reason: str) -> Unreachable:
        return Unreachable(f"{self._unsaid(what)}: {self._scrub(reason)}")

    def _unsaid(self, what: str) -> str:
        return f"Cluster {self.cluster.name!r} does not say of group {self.group_id!r} {what}"


class _Unsupported(Unreachable):
    """The cluster does not know the request."""


def login_of(client: conf.Consumer | conf.Producer) -> dict[str, Any]:
    """Return those of the library's own properties of a client that its way to the brokers depends on."""
    return {name: value for name, value in client.options.items() if name.startswith(_LOGIN)}


def described(found: Any) -> Group:
    """Return a group as the library describes it."""
    state = found.state.name.lower().replace("_", " ")
    members = tuple(map(_member, found.members))
    return Group(
        state="none" if state == _NEVER else state,
        protocol=found.type.name.lower() if members else "",
        members=members,
    )


def _member(found: Any) -> Member:
    places = found.assignment.topic_partitions if found.assignment else ()
    return Member(
        id=found.member_id,
        client_id=found.client_id,
        host=found.host.removeprefix("/"),
        places=frozenset((one.topic, one.partition) for one in places),
    )
