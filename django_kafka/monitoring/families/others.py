"""Connections, and versions."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

import django

from ... import __version__
from ...clients import librdkafka
from ...tallies import ConsumerTally, ProducerTally
from .family import Family, Read, Sample, Scene


def _connections(value: Callable[[ProducerTally | ConsumerTally], float]) -> Read:
    def read(scene: Scene) -> Iterator[Sample]:
        for name, one in scene.producers.items():
            yield ("producer", name), value(one)
        for name, other in scene.consumers.items():
            yield ("consumer", name), value(other)

    return read


def _versions(_scene: Scene) -> Iterator[Sample]:
    yield (__version__, librdkafka.version(), platform.python_version(), django.get_version()), 1


OTHERS = (
    Family(
        name="lynx_kafka_connections_active", kind="gauge", labels=("role", "name"),
        means="Connections to brokers that stand, as of the client's last statistics (every 10 s).",
        read=_connections(lambda one: one.connections_active),
    ),
    Family(
        name="lynx_kafka_connections_total", kind="counter", labels=("role", "name"),
        means="Connections to brokers that were made.", read=_connections(lambda one: one.connections_total),
    ),
    Family(
        name="lynx_kafka_connection_errors_total", kind="counter", labels=("role", "name"),
        means="Connections that broke or did not come about.", read=_connections(lambda one: one.connection_errors),
    ),
    Family(
        name="lynx_kafka_info", kind="gauge", labels=("version", "librdkafka", "python", "django"),
        means="Always 1; its labels tell the versions that run.", read=_versions,
        adds_up=False,
    ),
)  # fmt: skip
