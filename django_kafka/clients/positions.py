"""The client that asks where logs begin and end, which topic a name stands for, and how far a group is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateAnswer
from dataclasses import dataclass
from typing import Any

import confluent_kafka
from confluent_kafka import ConsumerGroupTopicPartitions, TopicCollection, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from .. import conf
from . import errors, properties
from .asking import AskingClient, Unreachable
from .consumer import Place

_LOGIN = ("sasl.", "ssl.", "security.", "enable.ssl.", "socket.", "broker.", "client.")
"""What those of a consumer's options begin with that say how it reaches brokers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What brokers have of a partition."""

    topic_id: str | None
    """What tells this topic from others of its name; None: the cluster does not say, as the embedded one does not."""
    low: int
    """The offset of the first message that is there, or will be."""
    high: int
    """The offset that the next message gets."""


class Positions:
    """Asks for one consumer; every answer is waited for up to `timeout` seconds. Raises `Unreachable`."""

    def __init__(self, consumer: conf.Consumer, group_id: str, timeout: float) -> None:
        self._group = group_id
        self._timeout = timeout
        cluster = conf.cluster(consumer.cluster)
        self._embedded = cluster.embedded
        own = {name: value for name, value in consumer.options.items() if name.startswith(_LOGIN)}
        self._asking = AskingClient(properties.for_cluster(cluster).with_(own))

    @property
    def _client(self) -> Any:
        return self._asking.now

    def logs(self, places: Collection[Place]) -> dict[Place, Log]:
        """Return what brokers have of these partitions, of each that they tell of."""
        spec: Any = OffsetSpec  # has no types
        low, high = self._ends(places, spec.earliest()), self._ends(places, spec.latest())
        ids = self._topic_ids({topic for topic, _partition in places})
        return {
            place: Log(topic_id=ids[place[0]], low=low[place], high=high[place])
            for place in places
            if place in low and place in high and place[0] in ids
        }

    def _ends(self, places: Collection[Place], spec: OffsetSpec) -> dict[Place, int]:
        wanted = {TopicPartition(*place): spec for place in places}
        answers = self._ask(lambda: self._client.list_offsets(wanted, request_timeout=self._timeout))
        return {(one.topic, one.partition): answer.offset for one, answer in answers.items()}

    def _topic_ids(self, topics: Collection[str]) -> dict[str, str | None]:
        if self._embedded:
            return dict.fromkeys(topics)
        wanted = TopicCollection(list(topics))
        try:
            answers = self._client.describe_topics(wanted, request_timeout=self._timeout)
        except confluent_kafka.KafkaException as error:
            raise self._unreachable(error) from None
        found: dict[str, str | None] = {}
        for topic, answer in answers.items():
            try:
                found[topic] = str(answer.result(2 * self._timeout).topic_id)
            except LateAnswer:
                continue
            except confluent_kafka.KafkaException as error:
                # A cluster like the embedded one has no controller, which is who is asked.
                if (cause := errors.of(error)) is not None and cause.name() == "_TIMED_OUT":
                    found[topic] = None
        return found

    def committed(self, places: Collection[Place]) -> dict[Place, int]:
        """Return what the group has committed of these partitions, where it has."""
        request = [ConsumerGroupTopicPartitions(self._group, [TopicPartition(*place) for place in places])]
        found: dict[Place, int] = {}
        for answer in self._ask(
            lambda: self._client.list_consumer_group_offsets(request, request_timeout=self._timeout)
        ).values():
            for one in answer.topic_partitions or ():
                if one.error is not None:
                    raise Unreachable(f"The brokers do not say how far {self._group} is: {one.error.str()}")
                if one.offset >= 0:
                    found[one.topic, one.partition] = one.offset
        return found

    def _ask(self, question: Any) -> Mapping[Any, Any]:
        try:
            answers: Mapping[Any, Future[Any]] = question()
            return {about: answer.result(2 * self._timeout) for about, answer in answers.items()}
        except confluent_kafka.KafkaException as error:
            raise self._unreachable(error) from None
        except LateAnswer:
            raise Unreachable(f"The brokers did not answer within {2 * self._timeout:g} s.") from None

    def _unreachable(self, error: confluent_kafka.KafkaException) -> Unreachable:
        return self._asking.failure("The brokers do not answer", error, group=self._group)
