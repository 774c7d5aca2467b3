"""What was sent and waits to be handled, bounded by what the embedded cluster keeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from confluent_kafka import Consumer, TopicPartition

from django_kafka import conf
from django_kafka.clients import embedded, properties
from django_kafka.deliveries import Delivery

from .processes import DemoError

MOST = embedded.KEPT_BYTES * 6 // 10
"""Bytes that may wait in one partition. Sizes are taken before compression, so there is room to spare."""

ENVELOPE = 80
"""Bytes that a record takes beside its key and value, at the most."""


class Backlog:
    """Counts the records of a topic that its group has not committed yet, and their bytes."""

    def __init__(self, topic: str, group_id: str) -> None:
        self.settled = 0
        self._topic = conf.kafka().prefixed(topic)
        self._waiting: dict[int, deque[tuple[int, int]]] = {}
        self._bytes: dict[int, int] = {}
        cluster = properties.for_cluster(conf.cluster("default"))
        group = conf.kafka().prefixed(group_id)
        self._consumer = Consumer({**cluster.revealed(), "group.id": group, "enable.auto.commit": False})

    @property
    def waiting(self) -> int:
        """How many records wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def full(self) -> bool:
        """Tell whether a partition holds as much as it should."""
        return max(self._bytes.values(), default=0) > MOST

    def add(self, sent: Iterable[tuple[Delivery, int]]) -> None:
        """Count acknowledged deliveries, each with its bytes."""
        for delivery, size in sent:
            assert delivery.partition is not None
            assert delivery.offset is not None
            self._waiting.setdefault(delivery.partition, deque()).append((delivery.offset, size + ENVELOPE))
            self._bytes[delivery.partition] = self._bytes.get(delivery.partition, 0) + size + ENVELOPE

    def look(self) -> None:
        """Ask the cluster what is committed, and that nothing was deleted before."""
        if not self._waiting:
            return
        asked = [TopicPartition(self._topic, partition) for partition in self._waiting]
        for place in self._consumer.committed(asked, timeout=10):
            committed = max(place.offset, 0)
            low, _ = self._consumer.get_watermark_offsets(place, timeout=10)
            if low > committed:
                raise DemoError(
                    f"The embedded cluster deleted {low - committed} messages of {self._topic}[{place.partition}] that "
                    f"were not handled yet: offsets {committed} to {low - 1}."
                )
            self._settle(place.partition, committed)

    def _settle(self, partition: int, committed: int) -> None:
        waiting = self._waiting[partition]
        while waiting and waiting[0][0] < committed:
            self._bytes[partition] -= waiting.popleft()[1]
            self.settled += 1

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()
