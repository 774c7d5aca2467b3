"""Clusters: how to reach them, and how to read that from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .blocks import CONTRADICTION, MISSING, Block
from .librdkafka import CLUSTER_SAME
from .options import advice, read_options
from .secrets import Options, Secret
from .security import Security, read_security
from .values import Rule, brokers, duration, secret, text_or_kept, url, whole


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
class SchemaRegistry:
    """Where schemas are kept."""

    url: str = ""
    """Its address, without a login; "" for none."""
    username: str | Secret = ""
    """Who the client is there; "" for nobody."""
    password: Secret = field(default_factory=Secret)
    """What proves it."""
    login_in_url: bool = False
    """Whether settings have both in the address, which Django's page about an error shows."""


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
SCHEMA_REGISTRY: Mapping[str, Rule] = {"url": url, "username": text_or_kept, "password": secret}


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
        schema_registry=_read_registry(registry),
    )
    connection.close(advice(connection, CONNECTION_SAME))
    registry.close()
    return cluster, given


def _read_registry(block: Block) -> SchemaRegistry:
    found: dict[str, Any] = block.read(SCHEMA_REGISTRY)
    scheme, _, rest = found.get("url", "").partition("://")
    place, slash, path = rest.partition("/")
    login, at, host = place.rpartition("@")
    if not at:
        return SchemaRegistry(**found)
    if {"username", "password"} & block.given.keys():
        sentence = f"{block.path} has a login in `url`, and one beside it."
        block.problem(CONTRADICTION, sentence, "Write it beside the address only.")
    username, _, password = login.partition(":")
    return SchemaRegistry(
        url=f"{scheme}://{host}{slash}{path}",
        username=unquote(username),
        password=Secret(unquote(password)),
        login_in_url=True,
    )
