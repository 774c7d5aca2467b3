"""Reads what the group has committed, again and again, with a client of its own."""

from __future__ import annotations

import threading
import time

from confluent_kafka import Consumer, KafkaException, TopicPartition

from .books import Sample
from .records import INPUT
from .world import PARTITIONS, World

EVERY = 0.3
"""Seconds between two samples."""


class Watcher(threading.Thread):
    """Takes samples until it is told to end. While no broker answers there are none."""

    def __init__(self, world: World) -> None:
        super().__init__(name="watcher", daemon=True)
        self.samples: list[Sample] = []
        self._world = world
        self._ending = threading.Event()

    def run(self) -> None:
        """Take samples."""
        consumer = Consumer(
            {"bootstrap.servers": self._world.cluster.address, "group.id": self._world.project.group, "log_level": 0}
        )
        try:
            while not self._ending.wait(EVERY):
                try:
                    self.samples.append(self._sample(consumer))
                except KafkaException:
                    continue
        finally:
            consumer.close()

    def _sample(self, consumer: Consumer) -> Sample:
        answers = consumer.committed([TopicPartition(INPUT, number) for number in range(PARTITIONS)], timeout=5)
        now = time.time()
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
        return Sample(at=now, committed={answer.partition: max(0, answer.offset) for answer in answers})

    def next(self, seconds: float) -> Sample:
        """Wait for a sample that was begun after this call."""
        deadline = time.monotonic() + seconds
        wanted = len(self.samples) + 2  # the next one may have been begun before
        while len(self.samples) < wanted:
            if time.monotonic() > deadline or not self.is_alive():
                raise AssertionError(f"The committed offsets could not be read for {seconds} s.")
            time.sleep(0.05)
        return self.samples[-1]

    def end(self) -> None:
        """Take no more samples."""
        self._ending.set()
        self.join(20)
