"""Clusters: how to reach them, and how to read that from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .blocks import CONTRADICTION, MISSING, Block
from .secrets import Secret, without_login
from .values import Rule, brokers, choice, duration, file_path, flag, secret, text, url, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Sasl:
    """How a client logs in."""

    enabled: bool = False
    """Whether it does."""
    mechanism: str = "PLAIN"
    """PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI or OAUTHBEARER."""
    username: str = ""
    """Who it is."""
    password: Secret = field(default_factory=Secret)
    """What proves it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the connection is encrypted."""

    enabled: bool = False
    """Whether it is."""
    ca_file: str = ""
    """Certificates that are trusted; "" for the system's."""
    cert_file: str = ""
    """The client's own certificate."""
    key_file: str = ""
    """The key of that certificate."""
    insecure_skip_verify: bool = False
    """True to trust whoever answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Login and encryption."""

    sasl: Sasl = field(default_factory=Sasl)
    """The login."""
    tls: Tls = field(default_factory=Tls)
    """The encryption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How connections to brokers are held."""

    timeout: float = 30.0
    """For setting one up, and how long `result()` waits while no broker can be reached."""
    keep_alive: float = 30.0
    """TCP keep-alive is on, unless this is 0; how often it asks is the system's to say."""
    max_connections: int = 100
    """librdkafka keeps one connection to each broker it needs, and so never comes near."""


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


SASL: Mapping[str, Rule] = {
    "enabled": flag,
    "mechanism": choice("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER", upper=True),
    "username": text,
    "password": secret,
}
TLS: Mapping[str, Rule] = {
    "enabled": flag,
    "ca_file": file_path,
    "cert_file": file_path,
    "key_file": file_path,
    "insecure_skip_verify": flag,
}
CONNECTION: Mapping[str, Rule] = {
    "timeout": duration(1.0, 3600.0),
    "keep_alive": duration(0.0, 86400.0),
    "max_connections": whole(1),
}
SCHEMA_REGISTRY: Mapping[str, Rule] = {"url": url}


def read_cluster(name: str, block: Block) -> tuple[Cluster, Mapping[str, str]]:
    """Return the cluster that a block describes, and where its keys were given ("sasl.username" → path)."""
    addresses = block.read({"brokers": brokers}).get("brokers")
    if addresses is None and name != "default" and "brokers" not in block.given:
        sentence = f"{block.path} has no `brokers`; only the cluster at the top has a default."
        block.problem(MISSING, sentence, "Name the brokers to begin with.")
    security = block.block("security")
    inner = {"sasl": security.block("sasl"), "tls": security.block("tls"), "connection": block.block("connection")}
    security.close()
    registry = block.block("schema_registry")
    cluster = Cluster(
        name=name,
        brokers=() if addresses == ("embedded",) else addresses or Cluster(name=name).brokers,
        embedded=addresses == ("embedded",),
        security=Security(sasl=Sasl(**inner["sasl"].read(SASL)), tls=Tls(**inner["tls"].read(TLS))),
        connection=Connection(**inner["connection"].read(CONNECTION)),
        schema_registry=SchemaRegistry(**registry.read(SCHEMA_REGISTRY)),
    )
    for part in (*inner.values(), registry):
        part.close()
    _find_contradictions(cluster, inner["sasl"], inner["tls"])
    given = {f"{part}.{key}": path for part, read in inner.items() for key, path in read.given.items()}
    return cluster, given


def _find_contradictions(cluster: Cluster, sasl: Block, tls: Block) -> None:
    login, encryption = cluster.security.sasl, cluster.security.tls
    if login.enabled and login.mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        lacking = [key for key in ("username", "password") if not getattr(login, key)]
        for key in lacking:
            if not any(problem.path == sasl.path_to(key) for problem in sasl.problems):
                sentence = f"{sasl.path_to(key)} is empty, but {login.mechanism} needs it."
                sasl.problem(CONTRADICTION, sentence, path=sasl.path_to(key))
    if encryption.enabled and bool(encryption.cert_file) != bool(encryption.key_file):
        there, absent = ("cert_file", "key_file") if encryption.cert_file else ("key_file", "cert_file")
        sentence = f"{tls.path} has `{there}` but no `{absent}`; a client's certificate needs both."
        tls.problem(CONTRADICTION, sentence, "If one file holds both, name it twice.")
