"""Clusters: how to reach them, and how to read that from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .blocks import MISSING, Block
from .librdkafka import CLUSTER_SAME
from .options import advice, read_options
from .registries import SchemaRegistry, read_registry
from .secrets import Options
from .security import Security, read_security
from .topics import Topic, read_topics
from .values import Rule, brokers, duration, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How connections to brokers are held."""

    timeout: float = 30.0
    """For setting one up, and how long `result()` waits while no broker can be reached."""
    keep_alive: float = 30.0
    """TCP keep-alive is on, unless this is 0; how often it asks is the system's to say."""
    max_connections: int = 100
    """librdkafka keeps one connection to each broker it needs, and so never comes near."""
    options: Options = field(default_factory=Options)
    """librdkafka's own properties for every client of the cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A Kafka cluster."""

    name: str
    """What it is called in settings; "default" for the keys at the top."""
    brokers: tuple[str, ...] = ("localhost:9092",)
    """Addresses to begin with; none of an embedded cluster, whose state file has them."""
    embedded: bool = False
    """True for the development cluster that `kafka_broker` runs."""
    security: Security = field(default_factory=Security)
    """Login and encryption."""
    connection: Connection = field(default_factory=Connection)
    """How connections are held."""
    schema_registry: SchemaRegistry = field(default_factory=SchemaRegistry)
    """Where its schemas are kept."""
    topics: Mapping[str, Topic] = field(default_factory=lambda: MappingProxyType({}))
    """Those that `kafka_topics` makes and keeps as they are declared, by name without prefix."""

    @property
    def path(self) -> str:
        """Where its settings stand."""
        return path_of(self.name)


def path_of(name: str) -> str:
    """Return where the settings of the cluster of that name stand."""
    return "KAFKA" if name == "default" else f'KAFKA["clusters"]["{name}"]'


CONNECTION: Mapping[str, Rule] = {
    "timeout": duration(1.0, 3600.0),
    "keep_alive": duration(0.0, 86400.0),
    "max_connections": whole(1),
}
CONNECTION_SAME = {
    name.removeprefix("connection."): same for name, same in CLUSTER_SAME.items() if name.startswith("connection.")
}


def read_cluster(name: str, block: Block, prefix: str) -> tuple[Cluster, Mapping[str, str]]:
    """Return the cluster that a block describes, and where its keys were given ("sasl.username" → path)."""
    addresses = block.read({"brokers": brokers}).get("brokers")
    if addresses is None and name != "default" and "brokers" not in block.given:
        sentence = f"{block.path} has no `brokers`; only the cluster at the top has a default."
        block.problem(MISSING, sentence, "Name the brokers to begin with.")
    security, given = read_security(block.block("security"))
    connection, registry = block.block("connection"), block.block("schema_registry")
    held = connection.read(CONNECTION)
    options = connection.block("options")
    given = {**given, **{f"connection.{key}": path for key, path in connection.given.items() if key in CONNECTION}}
    cluster = Cluster(
        name=name,
        brokers=() if addresses == ("embedded",) else addresses or Cluster(name=name).brokers,
        embedded=addresses == ("embedded",),
        security=security,
        connection=Connection(**held, options=read_options(options, (CLUSTER_SAME, given))),
        schema_registry=read_registry(registry),
        topics=read_topics(block, prefix),
    )
    connection.close(advice(connection, CONNECTION_SAME))
    return cluster, given
