"""What applications call: `from django_kafka import services`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from . import conf, handlers
from .batches import produce_batch
from .deliveries import Delivery
from .exceptions import Unhealthy
from .handlers import HandlerFunction
from .monitoring import analytics, health, heartbeats
from .monitoring.figures import Metrics
from .monitoring.health import HealthStatus
from .producer import Producer
from .producers import producers
from .producing import aproduce, produce
from .records import Headers, Record
from .routing import Routing

__all__ = [
    "Delivery",
    "Record",
    "aproduce",
    "check_health",
    "close",
    "flush",
    "get_consumer",
    "get_health_status",
    "get_metrics",
    "get_producer",
    "is_consumer_ready",
    "is_producer_ready",
    "produce",
    "produce_batch",
    "produce_with",
    "subscribe",
    "subscribe_with",
]


def produce_with(
    producer: str,
    topic: str | None,
    key: Any,
    value: Any,
    *,
    headers: Headers | None = None,
    partition: int | None = None,
    timestamp: datetime | int | None = None,
    routing: Routing | None = None,
) -> Delivery:
    """Send one record with the producer of that name; otherwise as `produce`."""
    return produce(
        topic, key, value,
        headers=headers, partition=partition, timestamp=timestamp, producer=producer, routing=routing,
    )  # fmt: skip


def flush(timeout: float = 30.0) -> int:
    """Wait up to `timeout` seconds until nothing is undelivered; return how many records still are."""
    return producers.flush(timeout)


def subscribe(topics: str | Iterable[str], handler: HandlerFunction | str) -> None:
    """Register `handler` for `topics` of the default consumer; workers of that consumer run it."""
    handlers.subscribe(topics, handler)


def subscribe_with(consumer: str, topics: str | Iterable[str], handler: HandlerFunction | str) -> None:
    """Register `handler` for `topics` of the consumer of that name. Raises `UnknownName`."""
    handlers.subscribe(topics, handler, consumer=conf.consumer(consumer).name)


def get_producer(name: str | None = None) -> Producer:
    """Return the producer of that name, made now if need be (None: the default one). Raises `UnknownName`."""
    return producers[conf.producer(name).name]


def get_consumer(name: str | None = None) -> conf.Consumer:
    """Return the settings of a consumer (None: the default one); consumers run in workers. Raises `UnknownName`."""
    return conf.consumer(name)


def is_producer_ready(name: str | None = None) -> bool:
    """Tell whether the producer exists in this process and knows of no reason why its brokers are out of reach."""
    name = conf.producer(name).name
    return name in producers and producers[name].unreachable() is None


def is_consumer_ready(name: str | None = None) -> bool:
    """Tell from heartbeats whether a worker of the consumer runs."""
    return heartbeats.alive(conf.consumer(name).name)


def check_health() -> None:
    """Look at everything that settings declare. Raises `Unhealthy`, with a line for each that is not healthy.

    Within a few seconds brokers are asked once.
    """
    found = health.status()
    if not found.healthy:
        raise Unhealthy("\n".join(str(one) for one in found.components if not one.healthy))


def get_health_status() -> HealthStatus:
    """Return how everything is: `healthy`, `last_error`, and `components` with details."""
    return health.status()


def get_metrics() -> Metrics:
    """Return throughput, percentiles of latency, errors and connections of the last 1, 5 and 15 minutes.

    Of producers in this process, of consumers in all workers whose heartbeats were heard of lately. The database is
    asked once; where it does not answer, `incomplete` says so. `get_metrics().as_dict()` is for JSON.
    """
    return analytics.metrics()


def close(name: str) -> None:
    """Flush and close the producer of that name in this process. A consumer ends with its worker."""
    settings: Mapping[str, object] = conf.kafka().consumers
    if name not in settings or name in producers:
        producers.close(conf.producer(name).name)
