"""Clusters: how to reach them, and how to read that from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .blocks import MISSING, Block
from .librdkafka import CLUSTER_SAME
from .options import advice, read_options
from .secrets import Options, without_login
from .security import Security, read_security
from .values import Rule, brokers, duration, url, whole


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


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SchemaRegistry:
    """Where schemas are kept."""

    url: str = ""
    """Its address; "" for none."""

    def __repr__(self) -> str:
        return f"SchemaRegistry(url={without_login(self.url)!r})"


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


CONNECTION: Mapping[str, Rule] = {
    "timeout": duration(1.0, 3600.0),
    "keep_alive": duration(0.0, 86400.0),
    "max_connections": whole(1),
}
CONNECTION_SAME = {
    name.removeprefix("connection."): same for name, same in CLUSTER_SAME.items() if name.startswith("connection.")
}
SCHEMA_REGISTRY: Mapping[str, Rule] = {"url": url}


def read_cluster(name: str, block: Block) -> tuple[Cluster, Mapping[str, str]]:
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
        schema_registry=SchemaRegistry(**registry.read(SCHEMA_REGISTRY)),
    )
    connection.close(advice(connection, CONNECTION_SAME))
    registry.close()
    return cluster, given
