"""Where a run takes place: three brokers, a database server, and a Django project that uses them."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from tests.journeys.project import Project
from tests.servers import Kafka, PostgreSQL
from tests.servers.processes import Program

from .books import EFFECTS
from .plan import MAX_POLL_SECONDS, SESSION_SECONDS, Scenario
from .records import INPUT, OUTPUT
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

    @property
    def book(self) -> Path:
        """The file in which the sending process notes what became of its records."""
        return self.directory / "sent.jsonl"

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
            group="chaos",
            extra_env={
                "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
                "CHAOS_CONTROL": str(self.control),
                "CHAOS_BOOK": str(self.book),
                "CHAOS_TOPIC": INPUT,
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
        self.project.consumer("chaos", INPUT, "tests.chaos.handlers.work", **_consumer(scenario))
        self.project.create_topic(INPUT, PARTITIONS)
        self.project.create_topic(OUTPUT, 1, **{"message.timestamp.type": "LogAppendTime"})
        self.project.run("migrate", "--verbosity=0")
        self.execute(EFFECTS)

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

    def log_ends(self) -> dict[int, int]:
        """Return one past the last offset of each partition."""
        consumer = Consumer({"bootstrap.servers": self.cluster.address, "group.id": "nobody", "log_level": 0})
        try:
            places = {number: TopicPartition(INPUT, number) for number in range(PARTITIONS)}
            return {number: consumer.get_watermark_offsets(place, timeout=30)[1] for number, place in places.items()}
        finally:
            consumer.close()

    def echoes(self) -> dict[tuple[str, int], float]:
        """Return key and sequence of every record that handlers produced, and when the broker first had it."""
        settings = {"bootstrap.servers": self.cluster.address, "group.id": "nobody", "enable.auto.commit": False}
        consumer = Consumer({**settings, "enable.partition.eof": True, "log_level": 0})
        found: dict[tuple[str, int], float] = {}
        deadline = time.monotonic() + 60
        try:
            consumer.assign([TopicPartition(OUTPUT, 0, OFFSET_BEGINNING)])
            while time.monotonic() < deadline:
                for message in consumer.consume(500, 0.5):
                    if (error := message.error()) is None:
                        name = (message.key() or b"").decode(), json.loads(message.value() or b"")["sequence"]
                        found.setdefault(name, message.timestamp()[1] / 1000)
                    elif error.name() == "_PARTITION_EOF":
                        return found
        finally:
            consumer.close()
        raise AssertionError(f"{OUTPUT} could not be read to its end within 60 s.")

    def start(self, command: list[str], name: str) -> Program:
        """Start a process of the project."""
        return self.project.start(command, env={"CHAOS_WORKER": name})

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
