"""The client that asks which topics there are, and makes new ones."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import TimeoutError as LateAnswer
from dataclasses import dataclass
from typing import Any

import confluent_kafka
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from .. import conf
from . import errors
from .asking import Unreachable
from .sharing import asking_client

__all__ = ["BROKERS_DECIDE", "Layout", "TopicAdmin", "Unreachable"]

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

    def create(self, wanted: Mapping[str, Layout]) -> dict[str, str]:
        """Make topics; return why not for each that was refused. One that is there by now counts as made."""
        if not wanted:
            return {}
        if self.cluster.embedded:
            # It does not know the request, and makes what is asked for by its name.
            for name in wanted:
                self._client.list_topics(name, timeout=self.timeout)
            return {}
        new = [NewTopic(name, one.partitions, one.replication) for name, one in wanted.items()]
        refused = {}
        client = self._client
        for name, answer in client.create_topics(new, operation_timeout=self.timeout).items():
            try:
                answer.result(2 * self.timeout)
            except confluent_kafka.KafkaException as error:
                cause = errors.of(error)
                if cause is None or cause.name() != "TOPIC_ALREADY_EXISTS":
                    refused[name] = self._scrub(errors.sentence(error))
            except LateAnswer:
                refused[name] = f"no answer within {2 * self.timeout:g} s"
        return refused
