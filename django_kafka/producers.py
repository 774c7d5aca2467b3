"""Producers by name: one client per process and name, safe over `fork()`, flushed at exit.

    from django_kafka.producers import producers

    producers["default"]
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing.util
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.core.signals import setting_changed

from . import conf, serializers, tallies
from .clients import properties
from .clients.producer import ProducerClient
from .exceptions import ConfigurationError, DeliveryFailed, NotAvailable
from .messages import Delivery
from .signals import delivery_failed, record_delivered

log = logging.getLogger(__name__)

SERVE_EVERY = 1000
"""Records after which the producing thread serves delivery reports itself, which keeps the queue from filling."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where the records for one topic go, and what turns them into bytes."""

    topic: str
    """The topic as Kafka knows it, prefix included."""
    key: serializers.Serializer
    """Serializes keys."""
    value: serializers.Serializer
    """Serializes values."""


class Producer:
    """One producer of settings in this process. Get it from `producers`; send through `services`."""

    def __init__(self, settings: conf.Producer) -> None:
        cluster = conf.cluster(settings.cluster)
        self.settings = settings
        self.name = settings.name
        self.pid = os.getpid()
        self.connection_timeout = cluster.connection.timeout
        self.tally = tallies.of_producer(settings.name)
        chosen = properties.for_producer(settings, cluster)
        self.max_bytes = int(str(chosen.get("message.max.bytes", 1_000_000)))
        self.queue_limit = int(str(chosen.get("queue.buffering.max.messages", 100_000)))
        self.client = ProducerClient(settings.name, chosen)
        self._routes: dict[str, Route] = {}
        self._sent = 0

    def __repr__(self) -> str:
        return f"<Producer {self.name}>"

    def route(self, topic: str) -> Route:
        """Return where records for `topic`, named without prefix, go. Raises `ConfigurationError` for illegal names."""
        try:
            return self._routes[topic]
        except KeyError:
            pass
        own = self.settings.topics.get(topic)
        route = Route(
            conf.kafka().prefixed(conf.topic_name(topic)),
            serializers.get((own and own.key_serializer) or self.settings.key_serializer),
            serializers.get((own and own.serializer) or self.settings.serializer),
        )
        self._routes[topic] = route
        return route

    def unreachable(self) -> str | None:
        """Return why no broker can be reached, or None when that is not so."""
        return self.client.unreachable

    def hurry(self, waiting: int) -> None:
        """Note that one more (1) or one less (-1) waits for a delivery of this producer."""
        self.client.hurry(waiting)

    def serve_now_and_then(self) -> None:
        """Serve delivery reports in the thread that produces, once in `SERVE_EVERY` calls."""
        self._sent += 1
        if not self._sent % SERVE_EVERY:
            self.client.serve(0)

    def acknowledged(self, delivery: Delivery, partition: int, offset: int, size: int) -> None:
        """Settle a delivery that Kafka answered for."""
        tally = self.tally
        tally.acknowledged += 1
        tally.bytes += size
        self.client.unreachable = None
        delivery.acknowledge(partition, offset if offset >= 0 else None)
        if record_delivered.receivers:
            self._tell(record_delivered, delivery=delivery)

    def gave_up(self, delivery: Delivery, error: BaseException) -> None:
        """Settle a delivery that Kafka, the client, or what stands before it gave up."""
        code = error.code if isinstance(error, DeliveryFailed) else type(error).__name__
        self.tally.failed[code] += 1
        delivery.fail(error)
        log.error("producer=%s topic=%s delivery failed code=%s", self.name, delivery.topic, code)
        if delivery_failed.receivers:
            self._tell(delivery_failed, delivery=delivery, error=error)

    def _tell(self, signal: Any, **event: Any) -> None:
        # Runs inside the client's callback, which nothing may leave: send_robust logs what receivers raise.
        signal.send_robust(self.name, **event)

    def flush(self, timeout: float) -> int:
        """Wait up to `timeout` seconds until nothing is undelivered; return how many records still are."""
        return self.client.flush(timeout)

    def close(self, timeout: float | None = None) -> int:
        """Flush for up to `timeout` seconds (default: `connection.timeout`), stop, and report by count what is left."""
        left = self.client.close(self.connection_timeout if timeout is None else timeout)
        if left:
            log.error("producer=%s undelivered=%s records were not delivered before it was closed", self.name, left)
        return left


class Producers:
    """The producers of this process, made when first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Producer] = {}
        self._making = threading.Lock()

    def __getitem__(self, name: str) -> Producer:
        try:
            return self._made[name]
        except KeyError:
            pass
        with self._making:
            if name not in self._made:
                self._made[name] = self._make(name)
            return self._made[name]

    def __iter__(self) -> Iterator[Producer]:
        return iter(list(self._made.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._made

    def _make(self, name: str) -> Producer:
        settings = conf.producer(name)
        if not settings.enabled:
            raise ConfigurationError(f'Producer {name!r} is switched off: KAFKA["producers"][{name!r}]["enabled"].')
        if missing := conf.unavailable(settings):
            raise NotAvailable(" ".join(missing))
        producer = Producer(settings)
        _flush_when_this_process_ends()
        return producer

    def close(self, name: str, timeout: float | None = None) -> int:
        """Close one producer; the next use makes it anew. Returns how many records are undelivered for good."""
        with self._making:
            producer = self._made.pop(name, None)
        return producer.close(timeout) if producer else 0

    def close_all(self, timeout: float | None = None) -> int:
        """Close all of them and return how many records are undelivered for good."""
        return sum(self.close(name, timeout) for name in list(self._made))

    def forget_after_fork(self) -> None:
        """Begin anew in a child process, whose inherited clients have no threads."""
        for producer in self._made.values():
            producer.client.leak()
        self.__init__()  # type: ignore[misc]  # the lock may have been held by a thread that does not exist here


producers = Producers()
close_all = producers.close_all

os.register_at_fork(after_in_child=producers.forget_after_fork)
atexit.register(close_all)

_flushed_by: set[int] = set()


def _flush_when_this_process_ends() -> None:
    """Flush at the end of children too: `atexit` does not run in those of multiprocessing and of Celery."""
    if os.getpid() in _flushed_by:
        return
    _flushed_by.add(os.getpid())
    multiprocessing.util.Finalize(None, close_all, exitpriority=100)
    celery_signals = sys.modules.get("celery.signals")
    if celery_signals is not None:
        celery_signals.worker_process_shutdown.connect(_close_all_for_celery)


def _close_all_for_celery(**_event: Any) -> None:
    close_all()


def _forget_settings(*, setting: str, **_event: Any) -> None:
    if setting == "KAFKA":
        close_all()


setting_changed.connect(_forget_settings)


@dataclass(slots=True)
class Sent:
    """A delivery, and how to send its record again."""

    delivery: Delivery
    """The delivery of the latest sending."""
    send: Callable[[], Delivery]
    """Send the record at once and return the delivery."""

    def again(self) -> None:
        """Send the record again; its earlier delivery failed."""
        self.delivery = self.send()


class Gathered:
    """What a handler produced, so that its message is settled after these deliveries."""

    __slots__ = ("promised", "sent")

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.promised: list[weakref.ref[Any]] = []

    def clear(self) -> None:
        """Forget all of it, as after a rollback."""
        self.sent = []
        self.promised = []


class Collector(threading.local):
    """Gathers what this thread produces, while a handler runs in it."""

    def __init__(self) -> None:
        self._gathered: Gathered | None = None

    def begin(self) -> Gathered:
        """Gather from now on in this thread, into what is returned."""
        self._gathered = Gathered()
        return self._gathered

    def end(self) -> None:
        """Gather no longer in this thread."""
        self._gathered = None

    def current(self) -> Gathered | None:
        """Return what this thread gathers into, if it does."""
        return self._gathered


collector = Collector()
