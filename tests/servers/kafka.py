"""Apache Kafka from Maven, KRaft, one node or several, no containers."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from .processes import Broken, Program, Server, Unavailable, found, free_port, listens, run, wait_ready

VERSION = "4.3.1"
DEPENDENCIES = (
    ("org.apache.kafka", "kafka_2.13", VERSION),
    ("org.apache.kafka", "kafka-tools", VERSION),
    ("org.slf4j", "slf4j-simple", "1.7.36"),  # without it Kafka's log is empty
)
CHEAP = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""Java that starts with half the work: what a broker of tests does never pays for more compiling and more threads."""


@dataclass(slots=True, kw_only=True)
class Node:
    """One node: a broker that is a controller as well."""

    id: int
    """Its number, from 1."""
    port: int = field(default_factory=free_port)
    """Where clients reach it."""
    controller_port: int = field(default_factory=free_port)
    """Where the other nodes reach its controller."""
    program: Program | None = None
    """The Java process, while it runs."""

    @property
    def running(self) -> bool:
        return self.program is not None and self.program.poll() is None


class Kafka(Server):
    """A cluster of `nodes` nodes. Topics are made by whoever needs them: nothing appears by being named.

    `properties` are added to every node's server.properties and win over ours.
    """

    name = "Kafka"

    def __init__(self, nodes: int = 1, *, properties: dict[str, str] | None = None, heap: str = "") -> None:
        super().__init__()
        self.nodes = [Node(id=number) for number in range(1, nodes + 1)]
        self.properties = properties or {}
        self.format_options: list[str] = []
        """What its storage is formatted with."""
        self.java_options: list[str] = []
        """System properties of its Java."""
        self.heap = heap or ("1g" if nodes == 1 else "512m")
        self.cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")

    @property
    def port(self) -> int:
        """The first node's port."""
        return self.nodes[0].port

    @property
    def address(self) -> str:
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    bootstrap_servers = address

    def start(self, node: int | None = None) -> None:
        """Start every node that does not run, or the one with that number, and wait until they are all known."""
        started = [each for each in self._chosen(node) if not each.running]
        for each in started:
            each.program = self._launch(each)
        for each in started:
            assert each.program is not None
            wait_ready(each.program, lambda port=each.port: listens(port), name=f"Kafka node {each.id}")
            wait_ready(each.program, self._complete, name=f"Kafka node {each.id}")

    def stop(self, node: int | None = None) -> None:
        """Stop every node, or the one with that number. Data stays."""
        stopping = [each for each in self._chosen(node) if each.program is not None]
        for each in stopping:
            if each.running and each.program is not None:
                each.program.send_signal(signal.SIGTERM)
        for each in stopping:
            assert each.program is not None
            each.program.end(signal.SIGTERM)
            each.program = None

    def kill(self, node: int | None = None) -> None:
        """End every node, or the one with that number, at once."""
        for each in self._chosen(node):
            if each.program is not None:
                each.program.end()
                each.program = None

    def admin(self) -> AdminClient:
        """Return a client for topics and groups."""
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0, "reconnect.backoff.max.ms": 200})

    def _chosen(self, number: int | None) -> list[Node]:
        return [node for node in self.nodes if number in (None, node.id)]

    def _complete(self) -> bool:
        """Whether the metadata names every running node."""
        expected = {node.id for node in self.nodes if node.running}
        try:
            return expected <= set(self.admin().list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def _launch(self, node: Node) -> Program:
        java, libraries = found("java", "default-jre-headless"), jars()
        home = self.home() / f"node-{node.id}"
        log, settings = home / "server.log", home / "server.properties"
        simple_log = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        base = [java, f"-Xmx{self.heap}", *CHEAP, simple_log, *self.java_options, "-cp", f"{libraries}/*"]
        if not settings.exists():
            home.mkdir()
            text = "".join(f"{key}={value}\n" for key, value in self._properties(node, home).items())
            settings.write_text(text)
            command = [*base, "kafka.tools.StorageTool", "format", "-t", self.cluster_id, "-c", settings]
            command += self.format_options
            try:
                run(command, log=log, name="Formatting Kafka's storage")
            except BaseException:
                settings.unlink()
                raise
        return Program.start([*base, "kafka.Kafka", settings], log=log)

    def _properties(self, node: Node, home: Path) -> dict[str, str]:
        copies = str(min(3, len(self.nodes)))
        most = str(max(1, min(2, len(self.nodes) - 1)))
        return {
            "process.roles": "broker,controller",
            "node.id": str(node.id),
            "controller.quorum.voters": ",".join(f"{each.id}@127.0.0.1:{each.controller_port}" for each in self.nodes),
            "listeners": f"PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{node.port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(home / "data"),
            "num.partitions": "1",
            "default.replication.factor": copies,
            "min.insync.replicas": most,
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "5",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": most,
            "transaction.state.log.num.partitions": "5",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": most,
            "share.coordinator.state.topic.num.partitions": "5",
            "group.initial.rebalance.delay.ms": "0",
            # Some tests send records with timestamps of years ago, which would be deleted at any moment.
            "log.retention.ms": "-1",
            # A killed broker may come back only when the controller has given its earlier life up.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            **self.properties,
        }


def cache() -> Path:
    """Where downloaded jars are kept for this user."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "django-lynx-kafka"


def jars() -> Path:
    """Return the directory of Kafka's jars; Maven fetches them the first time."""
    ready = cache() / f"kafka-{VERSION}"
    if ready.is_dir():
        return ready
    maven = found("mvn", "maven")
    ready.parent.mkdir(parents=True, exist_ok=True)
    fetched = Path(tempfile.mkdtemp(prefix="kafka-", dir=ready.parent))
    try:
        pom, log = fetched / "pom.xml", fetched / "maven.log"
        pom.write_text(project())
        goal = "dependency:copy-dependencies"
        options = ["-B", "-f", pom, goal, "-DincludeScope=runtime", f"-DoutputDirectory={fetched / 'libs'}"]
        try:
            run([maven, *options], log=log, name="Fetching Kafka's jars with Maven", seconds=600)
        except Broken as error:
            raise Unavailable(str(error)) from error
        try:
            (fetched / "libs").rename(ready)
        except OSError:
            # Another run was faster; its jars are as good.
            if not ready.is_dir():
                raise
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return ready


def project() -> str:
    """A Maven project that needs what a Kafka server needs, and nothing else."""
    wanted = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>"
        for group, name, version in DEPENDENCIES
    )
    return (
        "<project><modelVersion>4.0.0</modelVersion>"
        "<groupId>tests</groupId><artifactId>kafka</artifactId><version>1</version>"
        f"<dependencies>{wanted}</dependencies></project>\n"
    )
