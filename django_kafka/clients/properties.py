"""Our settings as librdkafka properties.

Names and meanings: librdkafka's CONFIGURATION.md. The defaults of ours that differ from the library's are chosen by
measurement and give way to the user's `options`.
"""

from __future__ import annotations

import ctypes
import difflib
from collections.abc import Mapping
from functools import cache
from itertools import chain

from .. import conf
from ..conf.librdkafka import CLUSTER_SAME, CONSUMER_SAME, PRODUCER_SAME
from ..conf.secrets import revealed, without_login
from . import embedded, librdkafka, security
from .credentials import Properties

FOUND_BY_MEASUREMENT = {
    # The library's own 1000 puts the next fetch off by up to a second whenever `queued.min.messages` are waiting:
    # a fast consumer then runs at a quarter of its speed.
    "fetch.queue.backoff.ms": 5,
    # What waits in the client counts towards the memory of a worker: 16 MiB keep it busy, the library's 64 MiB cost
    # three times the memory for the same speed.
    "queued.max.messages.kbytes": 16384,
    # Java's default of five minutes lets a worker overlook a new topic, or new partitions, for as long.
    "topic.metadata.refresh.interval.ms": 10000,
}

_LONGEST_BACKOFF = 1.0
"""Seconds: the library's own `retry.backoff.max.ms`."""


def for_cluster(cluster: conf.Cluster) -> Properties:
    """Return what every client of one cluster needs to find it and log in."""
    brokers = embedded.find() if cluster.embedded else ",".join(cluster.brokers)
    own = cluster.connection.options
    chosen = {
        "bootstrap.servers": brokers,
        "socket.connection.setup.timeout.ms": max(1000, milliseconds(cluster.connection.timeout)),
        "socket.keepalive.enable": cluster.connection.keep_alive > 0,
        **security.properties(cluster.security),
        # The library takes a connection that stands for success, and begins its growing pause anew: a client whose
        # login or certificate is refused after that would come back twenty times a second.
        **({"reconnect.backoff.ms": 1000} if cluster.security.sasl.enabled or cluster.security.tls.enabled else {}),
        **({"debug": "all"} if conf.kafka().logging.enable_sarama_logger else {}),
    }
    return _with_own(Properties(chosen, cluster.name), {}, own)


def _with_own(cluster: Properties, chosen: Mapping[str, object], own: Mapping[str, object]) -> Properties:
    """Return the properties of a cluster's client with ours for its kind, and the user's own over both."""
    longest = own.get("reconnect.backoff.max.ms")
    if longest is not None and "reconnect.backoff.ms" not in own and "reconnect.backoff.ms" in cluster:
        # The library refuses a first pause that is longer than the longest.
        own = {"reconnect.backoff.ms": min(int(str(longest)), cluster["reconnect.backoff.ms"]), **own}
    return cluster.with_({**chosen, **own})


def for_producer(producer: conf.Producer, cluster: conf.Cluster) -> Properties:
    """Return the properties of one producer's client."""
    chosen: dict[str, object] = {
        "acks": producer.acks,
        "enable.idempotence": producer.is_idempotent,
        "retry.backoff.ms": milliseconds(producer.retry_backoff),
        "delivery.timeout.ms": milliseconds(producer.delivery_timeout),
        "batch.size": producer.batch_size,
        "linger.ms": producer.batch_timeout * 1000,
        "compression.type": producer.compression,
        # The hash of Java's clients: the same key lands in the same partition whoever sends it.
        "partitioner": "murmur2_random",
    }
    if producer.retry_backoff > _LONGEST_BACKOFF:
        # The library cuts the one off at the other.
        chosen["retry.backoff.max.ms"] = milliseconds(producer.retry_backoff)
    if producer.compression_level is not None:
        chosen["compression.level"] = producer.compression_level
    if producer.max_retries is not None:
        chosen["message.send.max.retries"] = producer.max_retries
    if producer.client_id:
        chosen["client.id"] = producer.client_id
    return _with_own(for_cluster(cluster), chosen, producer.options)


def for_consumer(consumer: conf.Consumer, cluster: conf.Cluster, group_id: str) -> Properties:
    """Return the properties of one consumer's client; offsets are stored and partitions assigned by the worker."""
    chosen: dict[str, object] = {
        **FOUND_BY_MEASUREMENT,
        "group.id": group_id,
        "auto.offset.reset": consumer.auto_offset_reset,
        # The worker commits, also on the interval, which is kept here for its own keys and the client's in one place.
        "enable.auto.commit": False,
        "auto.commit.interval.ms": milliseconds(consumer.auto_commit_interval),
        "enable.auto.offset.store": False,
    }
    if str(consumer.options.get("group.protocol")).lower() != "consumer":
        chosen["partition.assignment.strategy"] = "cooperative-sticky"
        if cluster.embedded:
            # When the last member of a group has left, it lets the next one wait for a whole session.
            chosen |= {"session.timeout.ms": 3000, "heartbeat.interval.ms": 500}
    given = {
        "session.timeout.ms": consumer.session_timeout,
        "heartbeat.interval.ms": consumer.heartbeat_interval,
        "fetch.wait.max.ms": consumer.fetch_max_wait,
    }
    chosen |= {name: milliseconds(seconds) for name, seconds in given.items() if seconds is not None}
    if consumer.fetch_min_bytes is not None:
        chosen["fetch.min.bytes"] = consumer.fetch_min_bytes
    if consumer.client_id:
        chosen["client.id"] = consumer.client_id
    return _with_own(for_cluster(cluster), chosen, consumer.options)


def milliseconds(seconds: float) -> int:
    """Return a duration as librdkafka takes it."""
    return round(seconds * 1000)


def problems(kind: str, options: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return (name, sentence) for each option that librdkafka does not have or does not take.

    Asks the library itself, without making a client. `kind` is "producer" or "consumer".
    """
    library = _library()
    found = []
    configuration = ctypes.c_void_p(library.rd_kafka_conf_new())
    try:
        for name, value in options.items():
            text = str(value).lower() if isinstance(value, bool) else str(revealed(value))
            error = ctypes.create_string_buffer(512)
            answer = library.rd_kafka_conf_set(configuration, name.encode(), text.encode(), error, len(error))
            if answer == _UNKNOWN:
                found.append((name, f"librdkafka has no {name!r}{_nearest(name)}"))
            elif answer == _INVALID:
                found.append((name, f"librdkafka refuses it: {without_login(error.value.decode(errors='replace'))}"))
    finally:
        library.rd_kafka_conf_destroy(configuration)
    return found


_UNKNOWN, _INVALID = -2, -1
_ALIASES = tuple(chain.from_iterable(chain(PRODUCER_SAME.values(), CONSUMER_SAME.values(), CLUSTER_SAME.values())))
"""Names that people use and the library does not list: it knows each property by one name."""


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, (*known(), *_ALIASES), n=1)
    return f"; did you mean {near[0]!r}?" if near else "; its CONFIGURATION.md lists what it has."


@cache
def known() -> tuple[str, ...]:
    """Return the names of all properties that the loaded librdkafka has."""
    return librdkafka.property_names() or _with_a_value()


def _with_a_value() -> tuple[str, ...]:
    """Return those that have one unless it is given, which can be asked for on any system."""
    library = _library()
    configuration = ctypes.c_void_p(library.rd_kafka_conf_new())
    count = ctypes.c_size_t()
    dump = library.rd_kafka_conf_dump(configuration, ctypes.byref(count))
    try:
        return tuple((dump[index] or b"").decode() for index in range(0, count.value, 2))
    finally:
        library.rd_kafka_conf_dump_free(dump, count)
        library.rd_kafka_conf_destroy(configuration)


def _library() -> ctypes.CDLL:
    library = librdkafka.load()
    library.rd_kafka_conf_new.restype = ctypes.c_void_p
    library.rd_kafka_conf_dump.restype = ctypes.POINTER(ctypes.c_char_p)
    return library
