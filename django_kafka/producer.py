"""One producer of settings in this process: its client, the routes of its records, and what became of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat
from typing import Any, TypeVar

from django.utils.functional import cached_property

from . import conf, envelopes, history, logs, partitioning, serializers, tallies, tracing
from .alike import LARGEST, AlikeReports
from .clients import properties
from .clients.producer import ProducerClient, failure
from .deliveries import Delivery, delivery_of
from .exceptions import CircuitOpen, ConfigurationError, DeliveryFailed, KafkaError, QueueFull
from .gathering import close_broken_connections
from .reachability import Reachability
from .reports import PAGE, Reports
from .signals import circuit_closed, circuit_opened, delivery_failed, record_delivered

log = logs.of("django_kafka.producers")

_FIRST_PAGE = 16
_ALIKE = 256
"""Records that come one by one on a page of those that are alike: what is on it is kept until it is full."""
RECORD_OVERHEAD = 100
"""Bytes that Kafka adds to a record, at the most (librdkafka counts them too)."""
_NOT_TAKEN = (QueueFull, CircuitOpen)
"""Why a record is not taken; counted where it is raised, whether a caller gets it or a delivery."""
_Error = TypeVar("_Error", bound=BaseException)
_ASK_FOR = 1.0
"""Seconds for which a broker may think about an answer while delivery reports wait."""


class Route:
    """Where the records for one topic go, and what turns them into bytes."""

    __slots__ = ("_places", "client", "envelope", "find", "key", "page", "producer", "topic", "value")

    def __init__(
        self,
        producer: Producer,
        topic: str,
        key: serializers.Serializer,
        value: serializers.Serializer,
        envelope: envelopes.Envelope | None,
        find: Callable[[Producer], Route],
    ) -> None:
        self.producer = producer
        """What sends them."""
        self.topic = topic
        """The topic as Kafka knows it, prefix included."""
        self.key = key
        """Serializes keys."""
        self.value = value
        """Serializes values."""
        self.envelope = envelope
        """What these are put into; None: nothing."""
        self.find = find
        """Finds the same route of another producer."""
        self.page = AlikeReports.empty(topic, producer, 0)
        """Where the next record goes that is a key and a value and no more."""
        self.client: ProducerClient
        """What they are handed to; there once it has had a page. To ask the producer for it takes longer."""
        self._places = _places(Reports(topic, producer, _FIRST_PAGE))

    def turn(self) -> AlikeReports:
        """Begin a new page of those."""
        self.client = self.producer.client
        page = self.page = AlikeReports.empty(self.topic, self.producer, _ALIKE if len(self.page) else _FIRST_PAGE)
        return page

    def promise(self) -> Delivery:
        """Return the delivery of a record that is not handed over yet."""
        while (place := next(self._places, None)) is None:
            self._places = _places(Reports(self.topic, self.producer, PAGE))
        return delivery_of(*place)


def _places(reports: Reports) -> Iterator[tuple[Reports, int]]:
    """Return the places of a page; `next` is safe in any number of threads."""
    return zip(repeat(reports), range(len(reports)), strict=False)


class Producer:
    """One producer of settings in this process. Get it from `producers`; send through `services`."""

    def __init__(self, settings: conf.Producer) -> None:
        self.settings = settings
        self.name = settings.name
        self.pid = os.getpid()
        self.connection_timeout = conf.cluster(settings.cluster).connection.timeout
        self.on_commit = settings.send == "on_commit"
        self.tally = tallies.of_producer(settings.name)
        # The library's own defaults, where options do not say otherwise.
        self.max_bytes = int(str(settings.options.get("message.max.bytes", 1_000_000))) - RECORD_OVERHEAD
        """Bytes that key, value and headers of a record may have together."""
        self.traced = False
        """Whether each of its records has a span, and its context in headers."""
        self.largest_alike = 0
        """Bytes of key and value up to which records are told apart by these; -1: none is, because all are traced."""
        self._look_at_tracing()
        self.queue_limit = int(str(settings.options.get("queue.buffering.max.messages", 100_000)))
        self.routes: dict[str | None, Route] = {}
        """What `route` found, by the topic as callers name it."""
        self._routes_to: dict[str, Route] = {}
        self._routes_of: dict[str | None, Route] = {}
        """The same, where records need the router or an envelope: they are not in `routes`, where `produce` looks."""
        self.router = partitioning.Router(settings, self._ask, self.connection_timeout)
        """Finds topics and partitions that are not given."""
        self.reachability = Reachability(
            settings.circuit_breaker, lambda: self.tally.acknowledged, lambda: self.client.answers(_ASK_FOR)
        )
        self._connecting = threading.Lock()

    @cached_property
    def client(self) -> ProducerClient:
        """The client, made when the first record is sent."""
        with self._connecting:
            if (made := self.__dict__.get("client")) is None:
                chosen = properties.for_producer(self.settings, conf.cluster(self.settings.cluster))
                made = self.__dict__["client"] = ProducerClient(self.name, chosen, self._lost, self._look)
            return made

    @property
    def connected(self) -> bool:
        """Whether it has a client, because something was sent."""
        return "client" in self.__dict__

    def __repr__(self) -> str:
        return f"<Producer {self.name}>"

    def route(self, topic: str | None) -> Route:
        """Return where records for `topic`, named without prefix (None: the producer's own), go, and remember it.

        Raises `ConfigurationError` for illegal names.
        """
        if (known := self.routes.get(topic) or self._routes_of.get(topic)) is not None:
            return known
        if topic is None and (self.settings.topic is None or self.settings.has_topic_template):
            raise ConfigurationError(f"No topic given, and producer {self.name!r} has none of its own.")
        name = conf.topic_name(self.settings.topic if topic is None else topic)
        route = self._route(name, conf.kafka().prefixed(name), lambda producer: producer.route(topic))
        routes = self.routes if route.envelope is None and not self.router.needed else self._routes_of
        routes[topic] = route
        return route

    def route_to(self, topic: str) -> Route:
        """Return where records for `topic`, named as Kafka knows it, go, and remember it."""
        if (known := self._routes_to.get(topic)) is not None:
            return known
        name = topic.removeprefix(conf.kafka().topic_prefix)
        route = self._route(name, topic, lambda producer: producer.route_to(topic))
        self._routes_to[topic] = route
        return route

    def _ask(self, topic: str, timeout: float) -> int:
        return self.client.partitions(topic, timeout)

    def _route(self, name: str, topic: str, find: Callable[[Producer], Route]) -> Route:
        own = self.settings.topics.get(name)
        return Route(
            self,
            topic,
            serializers.of_part(self.settings, own, topic, "key"),
            serializers.of_part(self.settings, own, topic, "value"),
            envelopes.of(self.settings, own, topic),
            find,
        )

    def _lost(self, reason: str) -> None:
        self.reachability.lost(reason, time.monotonic())

    def unreachable(self) -> str | None:
        """Return why no broker can be reached, or None when that is not so."""
        return self.reachability.reason

    def refused_login(self) -> str | None:
        """Return what there is to say of a login that is refused, or None when that is not why no broker is reached."""
        return self.client.refused_login if self.unreachable() else None

    def refusal(self) -> CircuitOpen:
        """Return what is raised for a record while the circuit is open."""
        seconds = self.reachability.out_of_reach(time.monotonic())
        return CircuitOpen(
            f"Producer {self.name!r} takes no records: its brokers have been out of reach for {seconds:.0f} s. They "
            f"are asked every {self.settings.circuit_breaker.cooldown:g} s. {self.unreachable() or ''}".rstrip()
        )

    def _look_at_tracing(self) -> None:
        # So that a record which is not traced pays for no look: producing compares its size anyway.
        self.traced = tracing.on()
        self.largest_alike = -1 if self.traced else min(self.max_bytes, LARGEST)

    def _look(self) -> None:
        self.tally.take_times()
        with suppress(Exception):  # the thread that serves delivery reports must live on
            self._look_at_tracing()
            if self.reachability.look(time.monotonic()):
                self._turn()
            history.look()

    def _turn(self) -> None:
        if self.reachability.open:
            self.client.refuse(self.refusal)
            reason = str(self.refusal())
            log.error("producer=%s circuit open: %s", self.name, reason)
            self._tell(circuit_opened, worker=None, reason=reason)
        else:
            self.client.refuse(None)
            log.warning("producer=%s circuit closed: its brokers can be reached again", self.name)
            self._tell(circuit_closed, worker=None)

    def hurry(self, waiting: int) -> None:
        """Note that one more (1) or one less (-1) waits for a delivery of this producer."""
        self.client.hurry(waiting)

    def delivered(self, reports: Reports, place: int) -> None:
        """Tell those who listen that Kafka has a record."""
        self._tell(record_delivered, delivery=delivery_of(reports, place))

    def refused(self, reports: Reports, place: int, error: Any) -> None:
        """Settle a delivery whose report is an error of the client."""
        failed = error if isinstance(error, DeliveryFailed) else failure(reports.topic, error, self.client.refusals)
        self.gave_up(delivery_of(reports, place), failed)

    def counted(self, topic: str, error: _Error) -> _Error:
        """Count an error of a record, which is given up or not taken because of it, and return it."""
        self.tally.of_topic(topic).errors[_category_of(error)] += 1
        return error

    def gave_up(self, delivery: Delivery, error: BaseException) -> None:
        """Settle a delivery that Kafka, the client, or what stands before it gave up."""
        code = error.code if isinstance(error, DeliveryFailed) else type(error).__name__
        self.tally.failed[code] += 1
        if not isinstance(error, _NOT_TAKEN):
            self.counted(delivery.topic, error)
        delivery.fail(error)
        if delivery_failed.receivers:
            self._tell(delivery_failed, delivery=delivery, error=error)
        # Those that closing gives up are told in one line by `close`.
        if not code.startswith("_PURGE"):
            with suppress(Exception):
                log.error("producer=%s topic=%s delivery failed code=%s", self.name, delivery.topic, code)

    def _tell(self, signal: Any, **event: Any) -> None:
        # Runs inside the client's callback, which nothing may leave. send_robust logs what receivers raise; what that
        # log raises ends here.
        with suppress(Exception):
            signal.send_robust(self.name, **event)
            close_broken_connections()

    def flush(self, timeout: float) -> int:
        """Wait up to `timeout` seconds until nothing is undelivered; return how many records still are."""
        return self.client.flush(timeout) if self.connected else 0

    def close(self, timeout: float | None = None) -> int:
        """Flush for up to `timeout` seconds (default: `connection.timeout`), stop, and report by count what is left."""
        if not self.connected:
            return 0
        left = self.client.close(self.connection_timeout if timeout is None else timeout)
        # Its thread looked up to now: what came last would seem to have come later.
        history.take()
        if left:
            log.error("producer=%s undelivered=%s records were not delivered before it was closed", self.name, left)
        return left


def _category_of(error: BaseException) -> str:
    return error.category if isinstance(error, KafkaError) else "handler"
