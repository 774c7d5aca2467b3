"""The testproject's airline on a day of bad weather: real flights, its handler, and a worker, in this process."""

from __future__ import annotations

import copy
import linecache
import threading
import types
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import Any

import pytest
from django.db import connection, connections
from pytest_django import Settings

from django_kafka import registry, services
from django_kafka.clients.embedded import Cluster
from django_kafka.consuming.crew import Crew
from django_kafka.handlers import kafka_handler
from django_kafka.models import DeadLetter
from django_kafka.records import Record
from testproject import settings as project
from testproject.flights import kafka_handlers, source
from testproject.flights.models import Flight
from tests.servers.processes import wait_until

CONSUMER, TOPIC = "operations", "flights"
PLACE = "/srv/airline/flights/kafka_handlers.py"
"""Where the airline's code seems to be: pages and pictures show it."""
FIRST, COUNT = 25_856, 220
"""Lines of the file: the last flights of 30 January 2013 that left, and the 98 that did not."""
CANCELLED = 98


class Airline:
    """One consumer of real flights."""

    def __init__(self, cluster: Cluster, settings: Settings, patch: pytest.MonkeyPatch) -> None:
        kafka: dict[str, Any] = copy.deepcopy(project.KAFKA)
        soon = {"session_timeout": "1500ms", "heartbeat_interval": "300ms"}
        kafka["consumers"][CONSUMER] |= soon
        settings.KAFKA = {
            **kafka,
            "brokers": cluster.bootstrap_servers.split(","),
            "connection": {"timeout": "1s"},
            "heartbeats": {"interval": "500ms"},
            # So few are few for an airline; here they are many.
            "dead_letters": {"edit": True, "job_above": 50, "reason_above": 50},
            "release": "2013.1",
        }
        kafka_handler(topics=TOPIC, consumer=CONSUMER, dry_run=True)(kafka_handlers.flight_departed)
        cluster.create_topic(TOPIC, 4)
        _wait_for_writers(patch)
        self._patch = patch
        self._crew: Crew | None = None
        self._running = threading.Thread(target=self._run, name="crew")
        _move_code(patch)

    def fly(self) -> list[dict[str, str]]:
        """Send the flights, and return them when Kafka has them."""
        flights = flights_of_the_evening()
        records = [Record(key=flight["carrier"] + flight["flight"], value=flight) for flight in flights]
        for delivery in services.produce_batch(TOPIC, records):
            delivery.result(20)
        return flights

    def work(self) -> None:
        """Start what `kafka_consume operations` runs in a process of its own."""
        self._crew = Crew([CONSUMER])
        self._running.start()

    def settle(self, count: int) -> None:
        """Wait until so many flights are handled or dead letters."""
        wait_until(lambda: Flight.objects.count() + DeadLetter.objects.count() >= count, 60)

    def mend(self) -> None:
        """Tell the handler how the file says that something is missing, as a new release would."""
        self._patch.setattr(kafka_handlers, "MISSING", {"", "NA"})

    def close(self) -> None:
        """Stop the worker."""
        if self._crew is not None:
            self._crew.stop()
            self._running.join(30)
            assert not self._running.is_alive()
        registry.forget(kafka_handlers.flight_departed)
        connection.close()

    def _run(self) -> None:
        assert self._crew is not None
        self._crew.run()


@cache
def flights_of_the_evening() -> list[dict[str, str]]:
    """Return the flights."""
    return list(islice(source.read(source.fetch()), FIRST, FIRST + COUNT))


def _wait_for_writers(patch: pytest.MonkeyPatch) -> None:
    """Let worker and pages share SQLite as in the settings of the project: writers wait for each other."""
    if connection.vendor == "sqlite":
        options = {"transaction_mode": "IMMEDIATE", "timeout": 20}
        patch.setitem(connections.databases["default"], "OPTIONS", options)
        connection.close()


def _move_code(patch: pytest.MonkeyPatch) -> None:
    """Let tracebacks name the same file wherever the tests run."""
    with open(kafka_handlers.__file__, encoding="utf-8") as file:
        lines = file.readlines()
    patch.setitem(linecache.cache, PLACE, (len("".join(lines)), None, lines, PLACE))
    for function in _functions():
        patch.setattr(function, "__code__", function.__code__.replace(co_filename=PLACE))


def _functions() -> Iterator[types.FunctionType]:
    found: list[Callable[..., Any]] = [kafka_handlers.flight_departed, kafka_handlers.clock, kafka_handlers.minutes]
    yield from (one for one in found if isinstance(one, types.FunctionType))
