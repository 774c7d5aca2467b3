"""Where a run takes place: three brokers, a database server, and a Django project that uses them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from tests.journeys.project import Project
from tests.servers import Kafka, PostgreSQL
from tests.servers.processes import Program

from .books import DIARY, EFFECTS
from .plan import MAX_POLL_SECONDS, SESSION_SECONDS, Scenario
from .records import FORWARDED, GUARDED, HELD, MOST, PLAIN, Course
from .sending import PRODUCER

NODES, PARTITIONS = 3, 6
_SHORT = {
    # Sessions shorter than Kafka allows by itself, so that what was killed is missed soon.
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": str(int(SESSION_SECONDS * 1000)),
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "500",
}
_QUICK_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Halves the time in which three brokers start, which here counts for more than how fast they are."""
_PROTOCOLS: dict[str, dict[str, Any]] = {
    "eager": {"partition.assignment.strategy": "range,roundrobin"},
    "cooperative": {"partition.assignment.strategy": "cooperative-sticky"},
    "consumer": {"group.protocol": "consumer"},
}


BACKOFF, MULTIPLIER = 1.0, 2.0
"""How long messages wait in the first retry topic, in seconds, and how many times that in the next one."""
_MORE: dict[Course, dict[str, Any]] = {
    PLAIN: {},
    FORWARDED: {
        "concurrency": 2,
        "retry": {
            "mode": "topics",
            "max_retries": FORWARDED.retries,
            "backoff": BACKOFF,
            "multiplier": MULTIPLIER,
            "max_backoff": "4s",
        },
    },
    HELD: {"concurrency": 2, "on_dead_letter": "hold_key"},
}
FETCH = 20
"""The `max_poll_records` of what is handled at most once, and so what a crash may lose of a partition."""


def _guarded(scenario: Scenario) -> dict[str, Any]:
    """Return what a consumer with another guarantee is told."""
    more = {"max_poll_records": FETCH} if GUARDED[scenario.guarantee] is MOST else {}
    names = ("guarantee", "transaction", "ordering")
    return {"concurrency": 2, **{name: getattr(scenario, name) for name in names}, **more}


@dataclass(slots=True, kw_only=True)
class World:
    """The servers, the project, and the directory in which a run leaves its traces."""

    directory: Path
    """Logs, books and control files."""
    cluster: Kafka = field(default_factory=lambda: Kafka(nodes=NODES, properties=_SHORT))
    """Three nodes; what is written must be on two of them."""
    server: PostgreSQL = field(default_factory=PostgreSQL)
    """The database server."""
    project: Project = field(init=False)
    """The settings and processes of the project."""

    @property
    def control(self) -> Path:
        """Where files tell the processes what to do."""
        return self.directory / "control"

    def book(self, course: Course) -> Path:
        """Return the file in which a sending process notes what became of its records."""
        return self.directory / f"sent-{course.name}.jsonl"

    def build(self, scenario: Scenario, rate: float) -> None:
        """Start the servers, migrate the database, and make the topics."""
        self.control.mkdir(parents=True)
        os.environ.setdefault("JAVA_TOOL_OPTIONS", _QUICK_JAVA)
        self.server.start()
        self._alter_server()
        self.cluster.start()
        self.project = Project(
            cluster=self.cluster,
            server=self.server,
            database="chaos",
            directory=self.directory,
            group=PLAIN.name,
            extra_env={
                "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
                "CHAOS_CONTROL": str(self.control),
                "CHAOS_RATE": str(rate),
                "CHAOS_MIXTURE": json.dumps(asdict(scenario.mixture)),
            },
        )
        self.project.kafka["producers"] = {
            "default": {"delivery_timeout": "30s"},
            PRODUCER: {"send": "immediate", "delivery_timeout": "2m"},
        }
        # A worker that is gone is missed as soon as its session, and not after the 15 seconds of the default.
        self.project.kafka["heartbeats"] = {"interval": "1s"}
        stamped = {"message.timestamp.type": "LogAppendTime"}
        for course in scenario.courses:
            more = _MORE[course] if course in _MORE else _guarded(scenario)
            settings = {**_consumer(scenario), **more, "group_id": course.name}
            self.project.consumer(course.name, course.topic, "tests.chaos.handlers.work", **settings)
            self.project.create_topic(course.topic, PARTITIONS)
            self.project.create_topic(course.output, 1, **stamped)
            for topic in course.retry_topics:
                self.project.create_topic(topic, PARTITIONS, **stamped)
        self.project.run("migrate", "--verbosity=0")
        self.execute(EFFECTS)
        self.execute(DIARY)

    def _alter_server(self) -> None:
        with psycopg.connect(self.server.dsn, autocommit=True) as connection:
            # The verdict orders effects by the moment of their COMMIT.
            connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
            connection.execute("CREATE DATABASE chaos")
        self.server.restart()

    def execute(self, statement: str, seconds: float = 60) -> None:
        """Run a statement in the project's database; while the server is away, wait for it."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                with psycopg.connect(self.project.dsn, autocommit=True, connect_timeout=5) as connection:
                    connection.execute(statement)
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def controller(self) -> int | None:
        """Return the number of the node that leads the cluster, by what the nodes themselves keep of it."""
        votes = []
        for file in self.cluster.home().glob("node-*/data/__cluster_metadata-0/quorum-state"):
            try:
                state = json.loads(file.read_text())
            except (OSError, ValueError):
                continue  # just being written, or the node has not voted yet
            votes.append((state["leaderEpoch"], state["leaderId"]))
        leader = max(votes, default=(0, -1))[1]
        return leader if leader > 0 else None

    def knows(self, node: int) -> bool:
        """Tell whether the cluster counts a node among its brokers."""
        try:
            return node in self.cluster.admin().list_topics(timeout=5).brokers
        except KafkaException:
            return False

    def log_ends(self, topic: str) -> dict[int, int]:
        """Return one past the last offset of each partition."""
        consumer = Consumer({"bootstrap.servers": self.cluster.address, "group.id": "nobody", "log_level": 0})
        try:
            places = {number: TopicPartition(topic, number) for number in range(PARTITIONS)}
            return {number: consumer.get_watermark_offsets(place, timeout=30)[1] for number, place in places.items()}
        finally:
            consumer.close()

    def echoes(self, course: Course) -> dict[tuple[str, int], float]:
        """Return key and sequence of every record that handlers produced, and when the broker first had it."""
        found: dict[tuple[str, int], float] = {}
        for message in self.read(course.output, 1):
            name = (message.key() or b"").decode(), json.loads(message.value() or b"")["sequence"]
            found.setdefault(name, message.timestamp()[1] / 1000)
        return found

    def retried(self, topic: str) -> dict[tuple[int, int], tuple[tuple[int, int], float]]:
        """Return by its place what is in a retry topic: where it was first, and when the broker had it."""
        found = {}
        for message in self.read(topic, PARTITIONS):
            headers = dict(message.headers() or [])
            first = tuple(int(headers[f"lynx-kafka-retry-{name}"]) for name in ("partition", "offset"))
            found[message.partition() or 0, message.offset() or 0] = (first[0], first[1]), message.timestamp()[1] / 1000
        return found

    def read(self, topic: str, partitions: int) -> Iterator[Message]:
        """Yield everything that is in a topic."""
        settings = {"bootstrap.servers": self.cluster.address, "group.id": "nobody", "enable.auto.commit": False}
        consumer = Consumer({**settings, "enable.partition.eof": True, "log_level": 0})
        left = set(range(partitions))
        deadline = time.monotonic() + 60
        try:
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in left])
            while left:
                for message in consumer.consume(500, 0.5):
                    if (error := message.error()) is None:
                        yield message
                    elif error.name() == "_PARTITION_EOF":
                        left.discard(message.partition() or 0)
                if time.monotonic() > deadline:
                    raise AssertionError(f"{topic} could not be read to its end within 60 s.")
        finally:
            consumer.close()

    def start(self, command: list[str], name: str, **env: str) -> Program:
        """Start a process of the project."""
        return self.project.start(command, env={"CHAOS_WORKER": name, **env})

    def close(self) -> None:
        """End every process and server; their logs stay in the directory."""
        if hasattr(self, "project"):
            self.project.close()
        for server, pattern in ((self.cluster, "node-*/server.log"), (self.server, "server.log")):
            for log in server.home().glob(pattern):
                shutil.copy(log, self.directory / f"{server.name}-{log.parent.name}.log")
            server.close()


def _consumer(scenario: Scenario) -> dict[str, Any]:
    session = {"session_timeout": SESSION_SECONDS, "heartbeat_interval": 0.5}
    return {
        "concurrency": scenario.concurrency,
        "enable_auto_commit": scenario.auto_commit,
        "retry": {"max_retries": 2, "backoff": "100ms", "max_backoff": "1s"},
        # Longer than any outage of the plan.
        "outage_patience": "15m",
        "options": {"max.poll.interval.ms": int(MAX_POLL_SECONDS * 1000), **_PROTOCOLS[scenario.protocol]},
        **({} if scenario.protocol == "consumer" else session),
    }
