"""The client that receives. Only the poller's thread may use it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

import confluent_kafka
from confluent_kafka import OFFSET_INVALID, TopicPartition

from .. import logs, tallies
from ..exceptions import AuthenticationFailed, AuthorizationFailed, ConfigurationError
from . import errors, statistics
from .credentials import Properties, Rotation
from .events import Events, Place
from .logs import ClientLog
from .making import counting, make
from .refusals import Refused
from .scrubbing import Scrubber

log = logs.of("django_kafka.client")

_CLOSE_AT_MOST = 8.0
"""Seconds that closing may take; with brokers it takes about one."""
_UNANSWERED = 30.0
"""Seconds after which a commit without an answer is waited for no longer."""

# Mapped over whole batches in C; every message that was fetched has a topic and a partition.
_error_of = confluent_kafka.Message.error
_partition_of: Callable[[Any], int] = cast("Any", confluent_kafka.Message.partition)
_topic_of: Callable[[Any], str] = cast("Any", confluent_kafka.Message.topic)


def is_fatal(error: BaseException) -> bool:
    """Tell whether the client cannot go on after `error`, as when another member took its `group.instance.id`."""
    if isinstance(error, AuthenticationFailed | AuthorizationFailed):
        return True
    cause = errors.of(error)
    return cause is not None and (cause.fatal() or cause.name() == "_FATAL")


class ConsumerClient:
    """A librdkafka consumer whose callbacks never raise."""

    def __init__(self, name: str, properties: Mapping[str, Any], events: Events, *, idle: bool = False) -> None:
        """With `idle` nothing is fetched of an assigned partition until `begin` says from where."""
        self.name = name
        self._idle = idle
        self._events = events
        self._properties = Properties.of(properties)
        self._scrub = Scrubber(self._properties)
        self._refused = Refused(self._properties, self._scrub)
        self._rotation = Rotation(self._properties)
        # A client may call back while it is made.
        self._connections = statistics.Connections(tallies.of_consumer(name))
        self._client, self._connections = self._make()
        self._topics: tuple[str, ...] = ()
        self._ever: set[str] = set()
        """Topics that it has subscribed to: of one that it left, messages may still come."""
        self._asked: float | None = None
        self.incremental = str(properties.get("group.protocol")).lower() == "consumer" or "cooperative" in str(
            properties.get("partition.assignment.strategy")
        )
        self._leaving = False

    def _make(self) -> tuple[confluent_kafka.Consumer, statistics.Connections]:
        connections = statistics.Connections(tallies.of_consumer(self.name))
        own = {"error_cb": self._on_error, "on_commit": self._on_answer, "stats_cb": connections.note}
        made = make(
            confluent_kafka.Consumer, f"Consumer {self.name!r}", counting(self._properties), self._scrub,
            ClientLog("consumer", self.name, self._scrub), own,
        )  # fmt: skip
        return made, connections

    def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group for these topics, or be in it for these from now on; for none, leave it."""
        self._topics = tuple(topics)
        self._ever.update(self._topics)
        self._refused.topics = frozenset(self._topics)
        if not self._topics:
            self._client.unsubscribe()
            return
        self._client.subscribe(
            list(self._topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def fetch(self, most: int, timeout: float) -> list[Any]:
        """Return up to `most` messages that are here, or the first to come within `timeout` seconds.

        Raises `AuthenticationFailed` or `AuthorizationFailed`, once, when nothing was ever assigned and brokers have
        refused the login, the group or the topics for half of `connection.timeout`.
        """
        if self._rotation:
            self._rotation.look(self._log_in, self._renew)
        # consume() with a timeout waits for all it was asked for, which costs latency: it takes what is here, and one
        # poll() waits for the first when nothing is.
        messages = self._client.consume(most, 0)
        if not messages:
            message = self._client.poll(timeout)
            if message is None:
                self._refused.raise_when_long()
                return []
            messages = [message]
        return self._without_events(messages) if any(map(_error_of, messages)) else messages

    def _without_events(self, messages: list[Any]) -> list[Any]:
        good = []
        for message in messages:
            if (error := message.error()) is None:
                good.append(message)
            elif error.name() == "_PARTITION_EOF":
                self._events.at_end((message.topic(), message.partition()))
            elif error.name() == "_AUTO_OFFSET_RESET":
                self._tell_out_of_log((message.topic(), message.partition()), error)
            elif is_fatal(failed := confluent_kafka.KafkaException(error)):
                raise failed
            else:
                self._on_error(error, message.topic(), message.partition())
        return good

    def _log_in(self, username: str, password: str) -> None:
        self._scrub.learn(password)
        self._client.set_sasl_credentials(username, password)
        log.info("consumer=%s logs in with new credentials from now on", self.name)

    def _renew(self) -> bool:
        """Leave the group and come back with a new client; what runs is finished first, as in any rebalance."""
        if self._leaving:
            return False
        try:
            client, connections = self._make()
        except ConfigurationError as error:
            log.error("consumer=%s stays with what it has; what is new cannot be used: %s", self.name, error)
            return False
        log.info("consumer=%s leaves its group, to come back with new certificates", self.name)
        self._client.unsubscribe()
        deadline = time.monotonic() + _CLOSE_AT_MOST
        while self._client.assignment() and time.monotonic() < deadline:
            # What comes meanwhile is read again by whoever is assigned its partition next.
            self._client.poll(0.1)
        try:
            self.close()
        except Exception:
            log.exception("consumer=%s closing the client of the earlier certificates was not clean", self.name)
        self._client, self._connections = client, connections
        self._asked = None  # the client before answers no more
        self.subscribe(self._topics)
        return True

    def by_partition(self, messages: list[Any]) -> list[tuple[Place, list[Any]]]:
        """Return messages sorted by partition, each in its order."""
        if len(self._ever) == 1:
            (topic,) = self._ever
            numbers = list(map(_partition_of, messages))
            if numbers.count(numbers[0]) == len(numbers):
                return [((topic, numbers[0]), messages)]
            places = [(topic, number) for number in numbers]
        else:
            places = list(zip(map(_topic_of, messages), map(_partition_of, messages), strict=True))
        sorted_: dict[Place, list[Any]] = {}
        for place, message in zip(places, messages, strict=True):
            sorted_.setdefault(place, []).append(message)
        return list(sorted_.items())

    def store(self, settled: Mapping[Place, Any]) -> list[Place]:
        """Hand over offsets for committing, one past each message; return the partitions that are no longer ours.

        With the leader epoch, so that a truncated log is noticed.
        """
        refused = []
        for place, message in settled.items():
            try:
                self._client.store_offsets(message)
            except confluent_kafka.KafkaException as error:
                refused.append(place)
                log.info(
                    "consumer=%s topic=%s partition=%s offset not stored: %s", self.name, *place, errors.sentence(error)
                )
        return refused

    @property
    def committing(self) -> bool:
        """Whether a commit that was not waited for has no answer yet.

        The client sends a commit again that a broker did not take. Another one that was made meanwhile would be
        overtaken by it, and the group be back at the older offsets.
        """
        return self._asked is not None and time.monotonic() - self._asked < _UNANSWERED

    def commit(self, *, wait: bool) -> None:
        """Commit what was stored; `Events.committed` tells the answer, which without `wait` comes while polling."""
        try:
            if wait:
                self._on_commit(None, self._client.commit(asynchronous=False))
            else:
                self._client.commit(asynchronous=True)
                self._asked = time.monotonic()
        except confluent_kafka.KafkaException as error:
            self._on_commit(errors.of(error), [])

    def seek(self, offsets: Mapping[Place, int]) -> None:
        """Fetch again from these offsets."""
        for (topic, partition), offset in offsets.items():
            self._client.seek(TopicPartition(topic, partition, offset))

    def commit_at(self, place: Place, offset: int) -> None:
        """Commit one offset of a partition that is ours, as an operator wants it, which may take the group back.

        What was only stored is not committed when the group is further.
        """
        try:
            self._client.commit(offsets=[TopicPartition(*place, offset)], asynchronous=True)
            self._asked = time.monotonic()
        except confluent_kafka.KafkaException as error:
            self._on_commit(errors.of(error), [])

    def go_on(self, place: Place, offset: int) -> None:
        """Fetch a partition, which may be paused, from an offset, and have that committed."""
        partition = TopicPartition(*place, offset)
        self._client.seek(partition)
        self._client.store_offsets(offsets=[partition])
        self._client.resume([partition])

    def begin(self, place: Place, offset: int, others: Mapping[Place, int]) -> None:
        """Fetch a partition from an offset, and have that committed.

        `others` are as for `start_over`.
        """
        partition = TopicPartition(*place, offset)
        try:
            self._client.seek(partition)
        except confluent_kafka.KafkaException as error:
            if (cause := errors.of(error)) is None or cause.name() != "_STATE":
                raise
            # It has met an end of the log before, and left off.
            self._assign_anew(partition, others)
        with suppress(confluent_kafka.KafkaException):
            self._client.store_offsets(offsets=[partition])
        self._client.resume([partition])

    def _assign_anew(self, partition: TopicPartition, others: Mapping[Place, int]) -> None:
        if self.incremental:
            self._client.incremental_unassign([partition])
            self._client.incremental_assign([partition])
            return
        known = {(partition.topic, partition.partition): partition.offset, **others}
        mine = [(one.topic, one.partition) for one in self._client.assignment()]
        self._client.assign([TopicPartition(*one, known.get(one, 0)) for one in mine])
        self._client.pause([TopicPartition(*one) for one in mine if one not in known])

    @property
    def unsteady(self) -> float:
        """For how many seconds it has had no settled place in its group; 0: it has one. For any thread."""
        since = self._connections.unsteady_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def away(self) -> bool:
        """Whether brokers, or the one that looks after its group, were out of reach by the last statistics."""
        return self._connections.away

    def end_of(self, place: Place) -> int:
        """Return the offset after the last message of a partition, as it was told with the last fetch; -1: unknown."""
        try:
            _low, high = self._client.get_watermark_offsets(TopicPartition(*place), cached=True)
        except confluent_kafka.KafkaException:
            return -1
        return max(high, -1)

    def pause(self, places: Collection[Place]) -> None:
        """Fetch no more for these partitions; what was prefetched for them is thrown away."""
        self._client.pause([TopicPartition(*place) for place in places])

    def resume(self, places: Collection[Place]) -> None:
        """Fetch for these partitions again."""
        self._client.resume([TopicPartition(*place) for place in places])

    def start_over(self, places: Collection[Place], others: Mapping[Place, int]) -> None:
        """Fetch these partitions again from their committed offsets; what is idle waits for its `begin`.

        `others` are the partitions that are fetched already, and how far they are. What was stored of them and is not
        committed has to be stored again, unless the client is `incremental`.
        """
        if self._idle:
            return
        if self.incremental:
            partitions = [TopicPartition(*place) for place in places]
            self._client.incremental_unassign(partitions)
            self._client.incremental_assign(partitions)
            return
        known = {place: offset for place, offset in others.items() if place not in places}
        mine = [(one.topic, one.partition) for one in self._client.assignment()]
        self._client.assign([TopicPartition(*one, known.get(one, OFFSET_INVALID)) for one in mine])

    def unsubscribe(self) -> None:
        """Begin to leave the group; the partitions are revoked while `fetch` is called."""
        self._leaving = True
        self._client.unsubscribe()

    def close(self) -> None:
        """Leave the group, if that was not done, and free what the client holds.

        Without brokers librdkafka takes from six seconds to half a minute over it: after `_CLOSE_AT_MOST` seconds it is
        left to itself, since nobody is there to hear of it.
        """
        raised: list[BaseException] = []
        self._connections.closed()
        closer = threading.Thread(target=self._close, args=(raised,), name=f"kafka-{self.name}-closer", daemon=True)
        closer.start()
        closer.join(_CLOSE_AT_MOST)
        if closer.is_alive():
            log.warning(
                "consumer=%s no broker heard within %.0f s that it leaves; its group notices when the session is over",
                self.name, _CLOSE_AT_MOST,
            )  # fmt: skip
        if raised:
            raise raised[0]

    def _close(self, raised: list[BaseException]) -> None:
        try:
            self._client.close()
        except BaseException as error:  # noqa: BLE001  # raised again in the poller's thread
            raised.append(error)

    def _on_assign(self, _client: object, partitions: list[TopicPartition]) -> None:
        self._connections.joined()
        if partitions:
            self._refused.never_again()
        self._guarded(lambda: self._events.assigned([(one.topic, one.partition) for one in partitions]))
        if self._idle:
            self._guarded(lambda: self._assign_idle(partitions))

    def _assign_idle(self, partitions: list[TopicPartition]) -> None:
        # From an offset of its own, because to look for the committed one may end in an error that stops the fetching.
        idle = [TopicPartition(one.topic, one.partition, 0) for one in partitions]
        if self.incremental:
            self._client.incremental_assign(idle)
        else:
            self._client.assign(idle)
        self._client.pause(idle)

    def _on_revoke(self, _client: object, partitions: list[TopicPartition]) -> None:
        self._guarded(lambda: self._events.revoked([(one.topic, one.partition) for one in partitions], False))

    def _on_lost(self, _client: object, partitions: list[TopicPartition]) -> None:
        self._guarded(lambda: self._events.revoked([(one.topic, one.partition) for one in partitions], True))

    def _tell_out_of_log(self, place: Place, error: confluent_kafka.KafkaError) -> None:
        self._guarded(lambda: self._events.out_of_log(place, self._scrub(error.str())))

    def _on_answer(self, error: confluent_kafka.KafkaError | None, partitions: list[TopicPartition]) -> None:
        self._asked = None
        self._on_commit(error, partitions)

    def _on_commit(self, error: confluent_kafka.KafkaError | None, partitions: list[TopicPartition]) -> None:
        if error is not None and error.name() == "_NO_OFFSET":
            # There was nothing to commit.
            error, partitions = None, []
        refused = error or next((one.error for one in partitions if one.error), None)
        code, sentence = (None, "") if refused is None else (refused.name(), self._scrub(refused.str()))
        # Those come along, without an offset, that there was nothing to commit of.
        known = [one for one in partitions if not (error or one.error) and one.offset >= 0]
        taken = {(one.topic, one.partition): one.offset for one in known}
        self._guarded(lambda: self._events.committed(taken, code, sentence))

    def _on_error(
        self, error: confluent_kafka.KafkaError, topic: str | None = None, partition: int | None = None
    ) -> None:
        self._connections.failed(error.name())
        where = f"partition {partition}: " if error.name() == "_BAD_COMPRESSION" else ""
        self._guarded(lambda: self._events.trouble(error.name(), where + self._refused.note(error, topic), topic))

    def _guarded(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception:  # see Events; what the project's logging raises may not leave it either
            with suppress(Exception):
                log.exception("consumer=%s a callback failed", self.name)
