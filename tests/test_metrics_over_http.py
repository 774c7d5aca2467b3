"""What workers answer to Prometheus, held against books that are kept beside them: everything that was sent by a bare
client, what handlers left behind, and what is in tables and topics.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import sys
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from django_kafka.clients.embedded import Cluster
from tests.servers.processes import Program, free_port, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = """
import json, os
from tests.settings import *
DATABASES = {"default": {
    "ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["METRICS_DATABASE"],
    "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
}}
KAFKA = json.loads(os.environ["METRICS_KAFKA"])
INSTALLED_APPS = [*INSTALLED_APPS, "planes"]
ROOT_URLCONF = os.environ.get("METRICS_URLS", ROOT_URLCONF)
LOGGING = {
    "version": 1, "handlers": {"stream": {"class": "logging.StreamHandler"}},
    "loggers": {"django_kafka": {"handlers": ["stream"], "level": "INFO"}},
}
"""
HANDLERS = """
import os
from django_kafka import services
from django_kafka.exceptions import Skip
from django_kafka.handlers import kafka_handler
from prometheus_client import Counter
from tests.app.handlers import record

seen = Counter("planes_seen", "What a project counts itself.", ["process"])

@kafka_handler(topics=os.environ["METRICS_TOPIC"], consumer="ops")
def fly(message):
    value = message.value
    if value["n"] % 10 == 3:
        raise Skip("not ours")
    record(message)
    if value["n"] % 10 == 7:
        raise ValueError("of this one nothing stays")
    if value["n"] % 2 == 0:
        services.produce(os.environ["METRICS_TOPIC"] + ".out", None, value)
    seen.labels("theirs").inc()
"""
WEB = """
import os
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import include, path

application = get_wsgi_application()

from django_kafka import services

def send(request, number):
    services.produce(os.environ["METRICS_TOPIC"], None, {"n": number})
    return HttpResponse(str(os.getpid()))

urlpatterns = [path("send/<int:number>/", send), path("", include("django_prometheus.urls"))]
services.produce(os.environ["METRICS_TOPIC"], None, {"n": 0}).result(20)
"""


@dataclass
class Scrape:
    """What was answered to one request, as samples by name and labels."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of all series of a name that have these labels."""
        wanted = set(labels.items())
        return sum(value for (one, has), value in self.samples.items() if one == name and wanted <= has)

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Return the same for each value of one label."""
        values = {dict(has)[label] for one, has in self.samples if one == name and label in dict(has)}
        return {value: self.sum(name, **labels, **{label: value}) for value in values}


def scrape(port: int, path: str = "/metrics") -> Scrape:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return read(answer.read().decode())


def read(text: str) -> Scrape:
    """Read what Prometheus would; a series that is there twice is an error, as it is to Prometheus."""
    found = Scrape()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found.samples, f"{key} is there twice"
            found.samples[key] = sample.value
    return found


class Field:
    """A project on disk that runs as real processes, and the books beside it."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory = directory
        self.cluster = cluster
        self.topic = f"flights.{uuid.uuid4().hex[:8]}"
        self.database = directory / "db.sqlite3"
        self.programs: list[Program] = []
        self.sent: Counter[str] = Counter()
        self.bytes = 0
        cluster.create_topic(self.topic, 4)
        cluster.create_topic(f"{self.topic}.out", 2)
        (directory / "project_settings.py").write_text(SETTINGS)
        (directory / "planes").mkdir()
        (directory / "planes" / "__init__.py").write_text("")
        (directory / "planes" / "kafka_handlers.py").write_text(HANDLERS)
        (directory / "web.py").write_text(WEB)
        ops = {
            "group_id": self.topic, "session_timeout": "6s", "heartbeat_interval": "300ms",
            "retry": {"max_retries": 1, "backoff": "10ms", "jitter": 0}, "circuit_breaker": {"enabled": False},
        }  # fmt: skip
        kafka = {
            "brokers": cluster.bootstrap_servers.split(","),
            "consumers": {"ops": ops},
            "producers": {"default": {"options": {"statistics.interval.ms": 200}}},
        }
        self.env = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "project_settings",
            "PYTHONPATH": f"{directory}{os.pathsep}{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "METRICS_DATABASE": str(self.database),
            "METRICS_TOPIC": self.topic,
            "METRICS_KAFKA": json.dumps(kafka),
        }
        migrate = self.start("migrate", "--verbosity=0")
        assert migrate.finish(60) == 0, migrate.output()

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> Program:
        log = self.directory / f"{len(self.programs)}.log"
        command = [sys.executable, "-m", *(() if arguments[0] == "gunicorn" else ["django"]), *arguments]
        self.programs.append(Program.start(command, log=log, env={**self.env, **(env or {})}, cwd=self.directory))
        return self.programs[-1]

    def serve(self, port: int, *more: str, env: Mapping[str, str]) -> Program:
        """Start gunicorn, which sends a record before it forks, and wait until it answers."""
        program = self.start(
            "gunicorn", "web:application", "--bind", f"127.0.0.1:{port}", "--log-level", "warning", *more,
            env={"METRICS_URLS": "web", **env},
        )  # fmt: skip
        wait_until(lambda: _answers(port))
        return program

    def send(self, numbers: range) -> None:
        """Send a record for each number with a bare client, and write it in the books."""
        producer = Producer({"bootstrap.servers": self.cluster.bootstrap_servers, "linger.ms": 20})
        for number in numbers:
            value = json.dumps({"n": number}).encode()
            producer.produce(self.topic, value, partition=number % 4)
            kind = {3: "skipped", 7: "dead"}.get(number % 10, "handled")
            self.sent[kind] += 1
            self.sent["produced"] += kind == "handled" and number % 2 == 0
            self.bytes += len(value)
        assert producer.flush(20) == 0

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        database = sqlite3.connect(self.database, timeout=20)
        try:
            return database.execute(query).fetchall()
        finally:
            database.close()

    def count(self, table: str) -> int:
        return int(self.rows(f"SELECT count(*) FROM {table}")[0][0])

    def arrived(self) -> tuple[int, int]:
        """Return how many records are in the topic that handlers send to, and the bytes of their values."""
        client = Consumer({"bootstrap.servers": self.cluster.bootstrap_servers, "group.id": uuid.uuid4().hex})
        out, found, size = f"{self.topic}.out", 0, 0
        try:
            wanted = 0
            for number in range(2):
                low, high = client.get_watermark_offsets(TopicPartition(out, number), 10)
                assert low == 0
                wanted += high
            client.assign([TopicPartition(out, number, 0) for number in range(2)])
            while found < wanted:
                for message in client.consume(500, 1.0):
                    assert message.error() is None
                    found += 1
                    size += len(message)
        finally:
            client.close()
        return found, size


@pytest.fixture
def place(tmp_path: Path, embedded: Cluster) -> Iterator[Field]:
    made = Field(tmp_path, embedded)
    yield made
    for program in made.programs:
        program.end()
        print(program.output())


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/nothing", timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def visit(port: int, numbers: range) -> set[str]:
    """Ask for so many pages that send a record each; return which processes answered."""
    answered = set()
    for number in numbers:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/send/{number}/", timeout=10) as answer:
            answered.add(answer.read().decode())
    return answered


def compare(place: Field, found: Scrape) -> None:
    """Hold every counter that the books know of against them."""
    sent, topic = place.sent, place.topic
    total, (arrived, size) = sent["handled"] + sent["skipped"] + sent["dead"], place.arrived()
    assert (place.count("tests_effect"), place.count("lynx_kafka_deadletter")) == (sent["handled"], sent["dead"])
    assert arrived == sent["produced"]

    of = {"consumer": "ops", "topic": topic}
    assert found.sum("lynx_kafka_consumer_messages_total", **of) == total
    assert found.sum("lynx_kafka_consumer_bytes_total", **of) == place.bytes
    assert found.by("outcome", "lynx_kafka_consumer_settled_total", **of) == {
        "handled": sent["handled"], "skipped": sent["skipped"], "dead_lettered": sent["dead"],
        "parked": 0, "imported": 0, "forwarded": 0,
    }  # fmt: skip
    errors = found.by("category", "lynx_kafka_consumer_errors_total", **of)
    assert errors.pop("handler") == 2 * sent["dead"], "each was tried twice"
    assert set(errors.values()) == {0}
    assert found.sum("lynx_kafka_consumer_retries_total", **of) == sent["dead"]
    assert found.sum("lynx_kafka_consumer_outages_total") == 0
    durations = found.by("outcome", "lynx_kafka_consumer_duration_seconds_count", **of)
    assert durations == {"handled": sent["handled"], "failed": 2 * sent["dead"] + sent["skipped"]}
    assert found.sum("lynx_kafka_consumer_age_seconds_count", **of) == total
    assert found.sum("lynx_kafka_consumer_fetched_messages_sum", consumer="ops") == total

    made = {"producer": "default", "topic": f"{topic}.out"}
    assert found.sum("lynx_kafka_producer_messages_total", **made) == arrived
    assert found.sum("lynx_kafka_producer_bytes_total", **made) == size
    assert found.sum("lynx_kafka_producer_errors_total") == 0
    assert 0 < found.sum("lynx_kafka_producer_duration_seconds_count", **made) <= arrived
    assert found.sum("planes_seen_total") == sent["handled"], "what the project counts itself is there as well"

    for name in ("in_flight", "in_flight_bytes", "watermark_gap", "lag", "partitions_waiting"):
        assert found.sum(f"lynx_kafka_consumer_{name}") == 0, name
    assert found.sum("lynx_kafka_producer_in_flight") == 0
    assert found.sum("lynx_kafka_consumer_partitions", consumer="ops") == 4
    assert found.sum("lynx_kafka_consumer_poll_age_seconds") < 5


def settled(found: Scrape, total: int) -> bool:
    return (
        found.sum("lynx_kafka_consumer_settled_total") == total
        and not found.sum("lynx_kafka_consumer_in_flight")
        and not found.sum("lynx_kafka_producer_in_flight")
        and not found.sum("lynx_kafka_consumer_lag")
    )


def test_every_counter_of_all_processes_under_load_is_what_the_books_say(place: Field) -> None:
    port = free_port()
    worker = place.start("kafka_consume", "--processes", "2", "--metrics-port", str(port))
    wait_until(lambda: f"answers at http://127.0.0.1:{port}:" in worker.output())
    wait_until(lambda: scrape(port).by("process", "lynx_kafka_consumer_partitions") == {"1": 2, "2": 2}, 40)

    seen: list[Scrape] = []
    for start in range(0, 800, 200):
        place.send(range(start, start + 200))
        seen.append(scrape(port))
    # The scrape that is compared is the one that found everything settled: statistics of the client, which it makes
    # five times a second here, count as in flight until its thread has taken them.
    wait_until(lambda: settled(seen.append(scrape(port)) or seen[-1], 800), 60)  # type: ignore[func-returns-value]

    compare(place, seen[-1])
    assert seen[-1].by("process", "lynx_kafka_process_up") == {"1": 1, "2": 1}
    assert all(seen[-1].by("process", "lynx_kafka_consumer_messages_total").values()), "both had some"
    assert seen[-1].by("exported_process", "planes_seen_total").keys() == {"theirs"}
    # One that does not answer in time is missing in a scrape, which says so.
    whole = [one for one in seen if one.by("process", "lynx_kafka_process_up") == {"1": 1, "2": 1}]
    for before, after in itertools.pairwise(whole):
        for (name, labels), value in before.samples.items():
            if name.startswith("lynx_kafka_") and name.endswith(("_total", "_count", "_sum", "_bucket")):
                assert after.samples[name, labels] >= value, (name, labels)


def test_what_all_processes_of_gunicorn_have_sent_is_told_by_any_of_them_and_after_they_ended(
    place: Field, tmp_path: Path
) -> None:
    shared, port = tmp_path / "shared", free_port()
    shared.mkdir()
    env = {"PROMETHEUS_MULTIPROC_DIR": str(shared)}
    served = place.serve(port, "--preload", "--workers", "2", "--max-requests", "60", env=env)
    pids: set[str] = set()

    def all_told(count: int) -> bool:
        return scrape(port).sum("lynx_kafka_producer_messages_total", topic=place.topic) == count

    for start in range(0, 200, 40):
        pids |= visit(port, range(start, start + 40))
        # Of those that have ended meanwhile, too; one has sent a record before it was forked.
        wait_until(lambda start=start: all_told(start + 41), 10)  # type: ignore[misc]
    assert len(pids) > 2

    found = scrape(port)
    assert found.sum("lynx_kafka_producer_bytes_total") == sum(len(b'{"n":%d}' % n) for n in [0, *range(200)])
    assert 0 < found.sum("lynx_kafka_producer_duration_seconds_count") <= 201
    buckets = found.by("le", "lynx_kafka_producer_duration_seconds_bucket")
    assert buckets["+Inf"] == max(buckets.values()) == found.sum("lynx_kafka_producer_duration_seconds_count")
    served.send_signal(15)
    assert served.finish() == 0


WORKS_AND_ENDS = """
import struct
import time
from prometheus_client import CollectorRegistry, multiprocess
from django_kafka.consuming.worker import Worker

def told():
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return {
        (one.name, *(one.labels.get(label, "") for label in ("state", "partition"))): one.value
        for family in registry.collect() for one in family.samples if one.name.startswith("lynx_kafka_consumer")
    }

def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try:
            if true(found := told()):
                return
        except struct.error as error:  # the library reads a file that it has just begun
            found = error
        assert time.monotonic() < end, found
        time.sleep(0.05)

partitions, closed = ("lynx_kafka_consumer_partitions", "", ""), ("lynx_kafka_consumer_circuit", "closed", "")
received = ("lynx_kafka_consumer_messages_total", "", "")
worker = Worker("ops")
worker.start()
wait_until(lambda told: (told.get(partitions), told.get(closed), told.get(received)) == (4, 1, 1))
worker.stop()
worker.join()
worker.close()
wait_until(lambda told: (told[partitions], told[closed], told[received]) == (0, 0, 1))
print("it told that")
"""


def test_what_a_process_has_no_longer_is_not_told_on_where_processes_share_a_directory(
    place: Field, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    place.send(range(1))

    program = place.start("shell", "-c", WORKS_AND_ENDS, env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "shared")})

    assert program.finish(60) == 0, program.output()
    assert "it told that" in program.output()


@pytest.mark.parametrize("broken", ["missing", "a-file"])
def test_a_directory_that_cannot_be_written_is_said_and_everything_else_goes_on(
    place: Field, tmp_path: Path, broken: str
) -> None:
    (tmp_path / "a-file").write_text("")
    script = (
        "import os, time, django; django.setup(); from django_kafka import services\n"
        "services.produce(os.environ['METRICS_TOPIC'], None, {}).result(20); time.sleep(1.5); print('went on')"
    )
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / broken)}

    program = place.start("shell", "-c", script, env=env)

    assert program.finish() == 0, program.output()
    assert program.output().count("are not in PROMETHEUS_MULTIPROC_DIR=") == 1
    assert "went on" in program.output()
