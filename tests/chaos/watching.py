"""Reads what the group has committed, again and again, with a client of its own."""

from __future__ import annotations

import threading
import time

from confluent_kafka import Consumer, KafkaException, TopicPartition

from .books import Sample
from .records import Course
from .world import PARTITIONS, World

EVERY = 0.3
"""Seconds between two samples."""


class Watcher(threading.Thread):
    """Takes samples until it is told to end. While no broker answers there are none."""

    def __init__(self, world: World, course: Course) -> None:
        super().__init__(name="watcher", daemon=True)
        self.course = course
        self.samples: dict[str, list[Sample]] = {topic: [] for topic in (*course.retry_topics, course.topic)}
        self._world = world
        self._ending = threading.Event()

    def run(self) -> None:
        """Take samples."""
        consumer = Consumer(
            {"bootstrap.servers": self._world.cluster.address, "group.id": self.course.name, "log_level": 0}
        )
        try:
            while not self._ending.wait(EVERY):
                try:
                    for topic, sample in self._sample(consumer).items():
                        self.samples[topic].append(sample)
                except KafkaException:
                    continue
        finally:
            consumer.close()

    def _sample(self, consumer: Consumer) -> dict[str, Sample]:
        places = [TopicPartition(topic, number) for topic in self.samples for number in range(PARTITIONS)]
        asked = time.time()
        answers = consumer.committed(places, timeout=5)
        now = time.time()
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
        return {
            topic: Sample(
                at=now,
                committed={one.partition: max(0, one.offset) for one in answers if one.topic == topic},
                asked=asked,
            )
            for topic in self.samples
        }

    def next(self, seconds: float) -> dict[str, Sample]:
        """Wait for samples that were begun after this call."""
        deadline = time.monotonic() + seconds
        mine = self.samples[self.course.topic]  # the last of a round
        wanted = len(mine) + 2  # the next one may have been begun before
        while len(mine) < wanted:
            if time.monotonic() > deadline or not self.is_alive():
                raise AssertionError(f"The committed offsets could not be read for {seconds} s.")
            time.sleep(0.05)
        return {topic: samples[-1] for topic, samples in self.samples.items()}

    def end(self) -> None:
        """Take no more samples."""
        self._ending.set()
        self.join(20)
