"""What tests of the consuming half share: a consumer on a topic of its own, workers in this process, a bare sender."""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from django.db import connection
from pytest_django import Settings

from django_kafka import handlers
from django_kafka.clients.embedded import Cluster
from django_kafka.consuming.worker import LANES_A_THREAD, Worker
from django_kafka.messages import Message
from django_kafka.models import DeadLetter
from tests.servers.processes import wait_until

NAME = "ops"


class Workplace:
    """One consumer of settings, its topic, and the workers that a test starts."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self.cluster = cluster
        self.settings = settings
        self.topic = f"flights.{uuid.uuid4().hex[:10]}"
        self.group = f"group-{uuid.uuid4().hex[:10]}"
        self._subscribed: list[Callable[..., Any]] = []
        self._workers: list[Worker] = []

    def consume(
        self,
        handler: Callable[..., Any],
        *,
        partitions: int = 1,
        kafka: dict[str, Any] | None = None,
        pattern: str | None = None,
        **options: Any,
    ) -> None:
        """Make the topic and declare the consumer, with `handler` for it, or for a pattern alone."""
        self.cluster.create_topic(self.topic, partitions)
        # When the last member of a group has left, the embedded cluster lets the next one wait for a whole session.
        # And what is committed is often waited for.
        soon = {"session_timeout": "1500ms", "heartbeat_interval": "300ms", "auto_commit_interval": "200ms"}
        # What a test is about fails once, unless it is about more.
        once = {"retry": {"max_retries": 0}}
        consumer = {"group_id": self.group, "topics": {} if pattern else {self.topic: {}}, **soon, **once, **options}
        self.settings.KAFKA = {
            "brokers": self.cluster.bootstrap_servers.split(","),
            "connection": {"timeout": "1s"},
            "consumers": {NAME: consumer},
            **(kafka or {}),
        }
        self.subscribe(pattern or self.topic, handler)

    def subscribe(self, topic: str, handler: Callable[..., Any]) -> None:
        """Register one more handler, for a topic or a pattern."""
        handlers.subscribe(topic, handler, consumer=NAME)
        self._subscribed.append(handler)

    def send(
        self,
        values: Iterable[Any],
        partition: int = 0,
        key_of: Callable[[Any], bytes | None] = lambda _value: None,
        topic: str | None = None,
        **more: Any,
    ) -> None:
        """Send values, as they are or as JSON, with a bare client, and wait until the cluster has them."""
        # All in one batch, which the cluster hands out whole; the flush below does not wait for the time to pass.
        producer = Producer({"bootstrap.servers": self.cluster.bootstrap_servers, "linger.ms": 1000, "log_level": 0})
        failures: list[Any] = []

        def note(error: Any, _message: Any) -> None:
            if error is not None:
                failures.append(error)

        for value in values:
            raw = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
            options = {"key": key_of(value), **more}
            producer.produce(topic or self.topic, raw, partition=partition, on_delivery=note, **options)
        assert producer.flush(20) == 0
        assert not failures, failures[0]

    @contextmanager
    def worker(self, **options: Any) -> Iterator[Worker]:
        """Run a worker; in the end stop it and wait until it has left its group."""
        worker = self.start(**options)
        yield worker
        self.stop(worker)

    def start(self, **options: Any) -> Worker:
        """Start a worker."""
        worker = Worker(NAME, **options)
        self._workers.append(worker)
        worker.start()
        return worker

    def stop(self, worker: Worker) -> None:
        """Stop a worker and wait until it has left its group."""
        worker.stop()
        self.ended(worker)

    def ended(self, worker: Worker, seconds: float = 30) -> None:
        """Wait until a worker has ended, and see that it kept nothing."""
        wait_until(lambda: worker.join(0.1), seconds, "the worker did not end")
        self._workers.remove(worker)
        worker.close()
        assert (worker.lanes.in_flight, worker.lanes.bytes) == (0, 0)

    def close(self) -> None:
        """End what a failed test left."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join(30)
        for handler in self._subscribed:
            handlers.forget(handler)
        connection.close()

    def committed(self, topic: str | None = None) -> dict[int, int]:
        """Return what the group has committed, by partition."""
        name = topic or self.topic
        servers = self.cluster.bootstrap_servers
        client = Consumer({"bootstrap.servers": servers, "group.id": self.group, "log_level": 0})
        deadline = time.monotonic() + 20
        try:
            while True:
                try:
                    partitions = client.list_topics(name, timeout=10).topics[name].partitions
                    answers = client.committed([TopicPartition(name, number) for number in partitions], timeout=10)
                    return {one.partition: max(0, one.offset) for one in answers}
                except KafkaException:
                    if time.monotonic() > deadline:
                        raise
        finally:
            client.close()

    def set_back(self, offset: int, partition: int = 0) -> None:
        """Commit an offset for the group, which has no other member: what follows is read again as after a crash."""
        client = Consumer({
            "bootstrap.servers": self.cluster.bootstrap_servers, "group.id": self.group, "log_level": 0,
            "session.timeout.ms": 1500, "heartbeat.interval.ms": 300, "enable.auto.commit": False,
        })  # fmt: skip
        try:
            client.subscribe([self.topic])
            wait_until(lambda: client.poll(0.1) is not None or client.assignment())
            client.commit(offsets=[TopicPartition(self.topic, partition, offset)], asynchronous=False)
        finally:
            client.close()

    def letters(self) -> list[DeadLetter]:
        """Return the dead letters of this consumer in the order of their messages."""
        return list(DeadLetter.objects.filter(group_id=self.group).order_by("topic", "partition", "offset", "id"))


def keys_apart(count: int, concurrency: int) -> list[bytes]:
    """Return keys that are each dealt to a lane of its own: which ones these are is different in each process."""
    width, found = LANES_A_THREAD * concurrency, dict[int, bytes]()
    for number in itertools.count():
        if len(found) == count:
            return list(found.values())
        key = b"k%d" % number
        found.setdefault(hash(key) % width, key)
    raise AssertionError


class Seen:
    """A handler that keeps what it got; with `then`, it goes on with that."""

    __module__ = "tests.consuming"

    def __init__(self, then: Callable[[Message], Any] | None = None) -> None:
        self.__qualname__ = f"Seen-{uuid.uuid4().hex[:6]}"
        self.then = then
        self.places: list[tuple[int, int]] = []
        self.values: list[Any] = []
        self.threads: set[int] = set()

    def __call__(self, message: Message) -> None:
        self.threads.add(threading.get_ident())
        if self.then is not None:
            self.then(message)
        self.values.append(message.value)
        self.places.append((message.partition, message.offset))

    def of(self, partition: int) -> list[int]:
        """Return the offsets of one partition in the order in which they were handled."""
        return [offset for number, offset in self.places if number == partition]

    def wait(self, count: int, seconds: float = 30) -> None:
        """Wait until so many messages were handled."""
        wait_until(lambda: len(self.places) >= count, seconds, f"fewer than {count} messages were handled")


class Awaited(Seen):
    """The same as a coroutine; what it goes on with is awaited."""

    async def __call__(self, message: Message) -> None:  # type: ignore[override]
        self.threads.add(threading.get_ident())
        if self.then is not None:
            await self.then(message)
        self.values.append(message.value)
        self.places.append((message.partition, message.offset))
