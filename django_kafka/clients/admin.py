"""The client that asks which topics there are and how, makes new ones, and changes and deletes them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateAnswer
from dataclasses import dataclass
from typing import Any

import confluent_kafka
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from .. import conf
from . import errors
from .asking import Unreachable
from .sharing import asking_client

__all__ = ["BROKERS_DECIDE", "Layout", "Property", "TopicAdmin", "Unreachable"]

BROKERS_DECIDE = -1
"""In place of a number: as brokers have it by default."""
_HEARS_WITHIN = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a topic is spread."""

    partitions: int = BROKERS_DECIDE
    """How many it has."""
    replication: int = BROKERS_DECIDE
    """How many brokers have each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Property:
    """One of Kafka's properties of a topic."""

    value: str
    """What holds."""
    own: bool
    """Whether it was set for this topic; else it is what brokers have for all."""


class TopicAdmin:
    """Looks after the topics of one cluster; every answer is waited for up to `timeout` seconds."""

    def __init__(self, cluster: conf.Cluster, timeout: float, options: Mapping[str, Any] | None = None) -> None:
        self.cluster = cluster
        self.timeout = timeout
        self._asking = asking_client(cluster, options)
        self._scrub = self._asking.scrub

    @property
    def _client(self) -> Any:
        return self._asking.now

    def layouts(self, *, made: Collection[str] = ()) -> dict[str, Layout]:
        """Return all topics that this login may see, of those just `made` too. Raises `Unreachable`."""
        # A broker hears of a new topic a moment after the one that made it.
        deadline = time.monotonic() + min(self.timeout, _HEARS_WITHIN)
        while True:
            found = self._layouts()
            if found.keys() >= set(made) or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def _layouts(self) -> dict[str, Layout]:
        try:
            found = self._client.list_topics(timeout=self.timeout).topics
        except confluent_kafka.KafkaException as error:
            sentence = f"Cluster {self.cluster.name!r} does not say which topics it has"
            raise self._asking.failure(sentence, error) from None
        self._asking.answered()
        return {
            name: Layout(
                partitions=len(topic.partitions),
                replication=min((len(one.replicas) for one in topic.partitions.values()), default=0),
            )
            for name, topic in found.items()
            if topic.error is None
        }

    def properties(self, names: Collection[str]) -> dict[str, dict[str, Property]]:
        """Return the properties of these topics; those that this login may not see are left out.

        Raises `Unreachable`. The embedded cluster does not know the question.
        """
        if not names or self.cluster.embedded:
            return {}
        asked = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        client, found = self._client, {}
        for resource, answer in client.describe_configs(asked, request_timeout=self.timeout).items():
            try:
                told = answer.result(2 * self.timeout)
            except confluent_kafka.KafkaException as error:
                cause = errors.of(error)
                if cause is None or not cause.name().endswith("AUTHORIZATION_FAILED"):
                    sentence = f"Cluster {self.cluster.name!r} does not say how {resource.name!r} is configured"
                    raise self._asking.failure(sentence, error, topic=resource.name) from None
                continue
            except LateAnswer:
                sentence = f"Cluster {self.cluster.name!r} does not say how {resource.name!r} is configured"
                raise Unreachable(f"{sentence}: no answer within {2 * self.timeout:g} s.") from None
            found[resource.name] = {
                one.name: Property(value=one.value or "", own=one.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value)
                for one in told.values()
            }
        return found

    def create(
        self, wanted: Mapping[str, Layout], config: Mapping[str, Mapping[str, str]] | None = None
    ) -> dict[str, str]:
        """Make topics, with properties by topic; return why not for each that was refused.

        One that is there by now counts as made. The embedded cluster decides partitions and properties itself.
        """
        if not wanted:
            return {}
        if self.cluster.embedded:
            # It does not know the request, and makes what is asked for by its name.
            for name in wanted:
                self._client.list_topics(name, timeout=self.timeout)
            return {}
        new = [
            NewTopic(name, one.partitions, one.replication, config=dict((config or {}).get(name, {})))
            for name, one in wanted.items()
        ]
        client = self._client
        answers = client.create_topics(new, operation_timeout=self.timeout)
        refusals = {name: self._refusal(answer, unless="TOPIC_ALREADY_EXISTS") for name, answer in answers.items()}
        return {name: why for name, why in refusals.items() if why}

    def grow(self, name: str, partitions: int) -> str:
        """Give a topic as many partitions; return why not, or ""."""
        client = self._client
        (answer,) = client.create_partitions([NewPartitions(name, partitions)], operation_timeout=self.timeout).values()
        return self._refusal(answer)

    def configure(self, name: str, config: Mapping[str, str | None]) -> str:
        """Set properties of a topic, None back to what brokers have; others stay. Return why not, or ""."""
        entries = [
            ConfigEntry(
                key, value, incremental_operation=AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
            )
            for key, value in config.items()
        ]
        client = self._client
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        (answer,) = client.incremental_alter_configs([resource], request_timeout=self.timeout).values()
        return self._refusal(answer)

    def delete(self, name: str) -> str:
        """Delete a topic with all its messages; return why not, or "". One that is gone by now counts as deleted."""
        client = self._client
        (answer,) = client.delete_topics([name], operation_timeout=self.timeout).values()
        return self._refusal(answer, unless="UNKNOWN_TOPIC_OR_PART")

    def _refusal(self, answer: Future[Any], *, unless: str = "") -> str:
        try:
            answer.result(2 * self.timeout)
        except confluent_kafka.KafkaException as error:
            cause = errors.of(error)
            if cause is None or cause.name() != unless:
                return self._scrub(errors.sentence(error))
        except LateAnswer:
            return f"no answer within {2 * self.timeout:g} s"
        return ""
