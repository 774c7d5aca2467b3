"""Airports report real flights as Avro, JSON Schema and Protobuf; the letters of those reports are shown decoded."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from django_kafka import services
from django_kafka.clients.embedded import Cluster
from django_kafka.consuming.worker import Worker
from django_kafka.models import DeadLetter
from testproject import settings as project
from testproject.flights import reports, source
from testproject.flights.models import Flight
from tests.servers.processes import wait_until
from tests.servers.registry import Registry

pytestmark = pytest.mark.django_db(transaction=True)

COUNT = 1000
"""The first flights of 2013, of which 4 were cancelled, and 7 more arrived elsewhere."""


@pytest.fixture
def airports(embedded: Cluster, registry: Registry, settings: Settings) -> Iterator[list[dict[str, str]]]:
    """Lines of the airports' file, in a project that has a registry and a worker for what they report."""
    kafka = project.with_schemas(project.KAFKA, registry.url)
    soon = {"session_timeout": "1500ms", "heartbeat_interval": "300ms"}
    settings.KAFKA = {
        **kafka,
        "brokers": embedded.bootstrap_servers.split(","),
        "connection": {"timeout": "5s"},
        "consumers": {"reports": kafka["consumers"]["reports"] | soon},
    }
    for topic in reports.REPORTS:
        embedded.create_topic(topic, 2)
    call_command("kafka_schemas", "register", "--no-input", stdout=io.StringIO())
    worker = Worker("reports")
    worker.start()
    yield list(islice(source.read(source.fetch()), COUNT))
    worker.stop()
    wait_until(lambda: worker.join(0.1))
    worker.close()


def report(lines: list[dict[str, str]]) -> dict[str, int]:
    """Report flights on all topics, and return how many went to each."""
    sent = dict.fromkeys(reports.REPORTS, 0)
    for topic, make in reports.REPORTS.items():
        told = [one for one in map(make, lines) if one is not None]
        for delivery in [services.produce(topic, f"{one['carrier']}{one['number']}", one) for one in told]:
            delivery.result(20)
        sent[topic] = len(told)
    return sent


def shown(admin: Client, letter: DeadLetter) -> str:
    """Return the text of the page of a letter."""
    page = admin.get(reverse("admin:lynx_kafka_deadletter_change", args=[letter.pk])).content.decode()
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_reports_of_real_flights_are_handled_and_those_that_fail_are_shown_decoded(
    airports: list[dict[str, str]], admin_client: Client
) -> None:
    cancelled = [line for line in airports if line["dep_time"] == "NA"]
    astray = [line for line in airports if line["dep_time"] != "NA" and line["arr_delay"] == "NA"]
    assert (len(cancelled), len(astray)) == (4, 7)

    assert report(airports) == {"departures": COUNT, "arrivals": COUNT - 4, "legs": COUNT - 4}

    wait_until(lambda: DeadLetter.objects.count() == 4 + 7 + 7)
    wait_until(lambda: Flight.objects.exclude(speed=None).count() == COUNT - 4 - 7)
    wait_until(lambda: Flight.objects.exclude(punctual=None).count() == COUNT - 4 - 7)
    wait_until(lambda: Flight.objects.exclude(departed=None).count() == COUNT - 4)
    first = Flight.objects.get(carrier="UA", number=1545, scheduled="2013-01-01T10:15:00Z")
    assert (first.departed.isoformat(), first.delay, first.punctual, first.speed) == ("05:17:00", 2, True, 322)

    def key(line: dict[str, str]) -> str:
        return f"{line['carrier']}{line['flight']}"

    for topic, failed, why, words in (
        ("departures", cancelled, "divmod", ['"left": null', '"delay": null', '"number": ']),
        ("arrivals", astray, "'<' not supported", ['"delay": null', '"scheduled": "2013-01-']),
        ("legs", astray, "division by zero", ['"miles": ', '"scheduled": "2013-01-']),
    ):
        letters = list(DeadLetter.objects.filter(topic=topic))
        assert sorted(bytes(one.key).decode() for one in letters) == sorted(map(key, failed))
        for letter in letters:
            said = shown(admin_client, letter)
            assert why in said
            for word in (f'"carrier": "{bytes(letter.key).decode()[:2]}"', *words):
                assert word in said, said


def test_a_registry_in_the_environment_adds_to_the_project_and_takes_nothing_away() -> None:
    with_schemas: dict[str, Any] = project.with_schemas(project.KAFKA, "http://registry:8081")
    assert set(with_schemas["consumers"]) == {"operations", "reports"}
    assert with_schemas["consumers"]["operations"] == project.KAFKA["consumers"]["operations"]
