"""Producers: how they send, and how to read that from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from . import claims, encryption, events
from .blocks import CONTRADICTION, Block
from .claims import ClaimCheck
from .encryption import Encryption
from .events import CloudEvents
from .librdkafka import CLUSTER_SAME, PRODUCER_SAME
from .options import advice, is_true, merge_options, read_options, refuse_reserved, rename
from .registries import WRITING, Schema, SchemaOptions, options_rule, schema
from .secrets import Options
from .values import (
    RECORD_PLACES,
    Rule,
    acks,
    choice,
    choice_or_path,
    duration,
    flag,
    label,
    optional,
    size,
    topic,
    topic_template,
    whole,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerTopic:
    """What is different for one topic of a producer; None: as the producer has it."""

    serializer: str | None = None
    """Of values."""
    key_serializer: str | None = None
    """Of keys."""
    schema: Schema | None = None
    """Of values, for avro, jsonschema and protobuf."""
    key_schema: Schema | None = None
    """Of keys."""
    schema_options: SchemaOptions = field(default_factory=SchemaOptions)
    """How the registry is used."""
    encryption: Encryption | None = None
    """What of values is encrypted."""
    cloud_events: CloudEvents = field(default_factory=CloudEvents)
    """How values are written as CloudEvents."""
    claim_check: ClaimCheck | None = None
    """Where large values are left."""
    routing: str | None = None
    """Which partition a record goes to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerCircuit:
    """When a producer refuses records because its brokers are out of reach."""

    enabled: bool = True
    """False: it never does; records fill the queue, and then each waits for room."""
    threshold: float = 30.0
    """How long they must have been out of reach."""
    cooldown: float = 5.0
    """How long it waits before it asks them again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Producer:
    """A producer."""

    name: str
    """What it is called in settings."""
    enabled: bool = True
    """False: producing with it is an error."""
    cluster: str = "default"
    """The name of its cluster."""
    client_id: str = ""
    """What brokers see it as; "" for librdkafka's default."""
    topic: str | None = None
    """Where a record goes that names no topic: a topic, or a template of `{app}`, `{model}`, `{type}`, `{tenant}`."""
    topics: Mapping[str, ProducerTopic] = field(default_factory=lambda: MappingProxyType({}))
    """What is different for some topics."""
    send: str = "on_commit"
    """When: on_commit (at once outside a transaction), immediate, or outbox."""
    serializer: str = "json"
    """Of values: bytes, text, json, avro, jsonschema, protobuf, or a dotted path."""
    key_serializer: str = "text"
    """Of keys."""
    schema: Schema | None = None
    """Of values, for avro, jsonschema and protobuf."""
    key_schema: Schema | None = None
    """Of keys."""
    schema_options: SchemaOptions = field(default_factory=SchemaOptions)
    """How the registry is used."""
    encryption: Encryption = field(default_factory=Encryption)
    """What of values is encrypted."""
    cloud_events: CloudEvents = field(default_factory=CloudEvents)
    """How values are written as CloudEvents."""
    claim_check: ClaimCheck = field(default_factory=ClaimCheck)
    """Where large values are left."""
    acks: str = "all"
    """How many replicas must have a record: all, 1, or 0."""
    idempotent: bool | None = None
    """As given; None follows acks. `is_idempotent` is what holds."""
    max_retries: int | None = None
    """How often sending is tried again; None: until delivery_timeout."""
    retry_backoff: float = 0.1
    """Before the first of these tries."""
    delivery_timeout: float = 120.0
    """A record that is not acknowledged after this has failed."""
    batch_size: int = 1_000_000
    """Bytes that go out together at most."""
    batch_timeout: float = 0.005
    """How long a record waits for others to go with it."""
    compression: str = "zstd"
    """none, gzip, snappy, lz4 or zstd."""
    compression_level: int | None = None
    """How hard it tries; None as the codec does by itself."""
    circuit_breaker: ProducerCircuit = field(default_factory=ProducerCircuit)
    """When it refuses records because its brokers are out of reach."""
    routing: str = "key"
    """Which partition a record goes to: key (as Java clients do), round_robin, sticky, or a dotted path."""
    options: Mapping[str, Any] = field(default_factory=Options)
    """librdkafka's own properties; they win over ours."""

    @property
    def has_topic_template(self) -> bool:
        """Tell whether `topic` is not the name of one, but what names are made of."""
        return self.topic is not None and "{" in self.topic

    @property
    def is_idempotent(self) -> bool:
        """Tell whether the broker drops what arrives a second time."""
        if "enable.idempotence" in self.options:
            return is_true(self.options["enable.idempotence"])
        if self.idempotent is not None:
            return self.idempotent
        retries = self.options.get("message.send.max.retries", self.max_retries)
        return self.effective_acks == "all" and str(retries) != "0"

    @property
    def effective_acks(self) -> str:
        """Return all, 1 or 0, or what librdkafka's own property says."""
        acks = str(self.options.get("request.required.acks", self.acks))
        return "all" if acks == "-1" else acks


CIRCUIT_BREAKER: Mapping[str, Rule] = {
    "enabled": flag,
    "threshold": duration(0.1, 86400.0),
    "cooldown": duration(0.1, 3600.0),
}
SERIALIZER: Rule = choice_or_path("bytes", "text", "json", "avro", "jsonschema", "protobuf")
SCHEMAS: Mapping[str, Rule] = {
    "schema": optional(schema),
    "key_schema": optional(schema),
    "schema_options": options_rule(WRITING),
}
ROUTING: Rule = choice_or_path("key", "round_robin", "sticky")

PRODUCER: Mapping[str, Rule] = {
    "enabled": flag,
    "cluster": label,
    "send": choice("on_commit", "immediate", "outbox"),
    "serializer": SERIALIZER,
    "key_serializer": SERIALIZER,
    **SCHEMAS,
    **encryption.WRITING,
    **events.WRITING,
    **claims.WRITING,
    "acks": acks,
    "idempotent": optional(flag),
    "max_retries": optional(whole()),
    "retry_backoff": duration(0.001, 300.0),
    "delivery_timeout": duration(0.001, 2147483.0),
    "batch_size": size(1, 2147483647),
    "batch_timeout": duration(0.0, 900.0),
    "compression": choice("none", "gzip", "snappy", "lz4", "zstd"),
    "compression_level": optional(whole(0, 12)),
    "routing": ROUTING,
}
LEVELS = {"none": 0, "gzip": 9, "snappy": 0, "lz4": 12, "zstd": 12}
"""How far the level of each codec goes."""
PRODUCER_TOPIC: Mapping[str, Rule] = {
    "serializer": optional(SERIALIZER),
    "key_serializer": optional(SERIALIZER),
    **SCHEMAS,
    **encryption.WRITING_TOPIC,
    **events.WRITING,
    **claims.WRITING_TOPIC,
    "routing": optional(ROUTING),
}


def read_producer(
    name: str, block: Block, *, client_id: str, prefix: str, clusters: Mapping[str, Mapping[str, str]]
) -> Producer:
    """Return the producer that a block describes; `clusters` tells where the keys of each cluster were given."""
    options = merge_options(block)
    rename(block, "retries", "max_retries")
    found = block.read({"topic": optional(topic_template(prefix, RECORD_PLACES)), **PRODUCER})
    topics = {}
    for topic_name, inner in block.entries("topics", "topic", topic(prefix)):
        topics[topic_name] = ProducerTopic(**inner.read(PRODUCER_TOPIC))
        inner.close()
    breaker = block.block("circuit_breaker")
    found["circuit_breaker"] = ProducerCircuit(**breaker.read(CIRCUIT_BREAKER))
    breaker.close()
    refuse_reserved(block)
    block.close(advice(block, PRODUCER_SAME))
    given = clusters.get(found.get("cluster", "default"), {})
    found["options"] = read_options(options, (PRODUCER_SAME, block.given), (CLUSTER_SAME, given))
    producer = Producer(name=name, client_id=client_id, topics=MappingProxyType(topics), **found)
    _find_contradictions(producer, block)
    return producer


def _find_contradictions(producer: Producer, block: Block) -> None:
    asked = producer.idempotent or (producer.is_idempotent and "enable.idempotence" in producer.options)
    if asked and producer.effective_acks != "all":
        sentence = f"{block.path} has acks {producer.effective_acks!r} and is idempotent."
        block.problem(CONTRADICTION, sentence, 'A producer that is idempotent needs acks "all".')
    if asked and "0" in (str(producer.max_retries), str(producer.options.get("message.send.max.retries"))):
        sentence = f"{block.path} has max_retries 0 and is idempotent."
        block.problem(CONTRADICTION, sentence, "What is never sent twice needs no idempotence: choose one.")
    if producer.is_idempotent:
        for name in ("max.in.flight.requests.per.connection", "max.in.flight"):
            allowed = str(producer.options.get(name, "1"))
            if allowed.isdecimal() and int(allowed) > 5:
                sentence = f'{block.path}["options"]["{name}"] is {allowed}; a producer that is idempotent may have 5.'
                block.problem(CONTRADICTION, sentence, 'Give less, or "idempotent": False.')
    if (level := producer.compression_level) is not None and level > LEVELS[producer.compression]:
        most = LEVELS[producer.compression]
        has = f"levels up to {most}" if most else "no levels"
        sentence = f"{block.path} has compression_level {level}; {producer.compression} has {has}."
        block.problem(CONTRADICTION, sentence, "Lower it, or leave it out: each codec has a good one of its own.")
    if producer.batch_timeout >= producer.delivery_timeout:
        sentence = (
            f"{block.path}: records wait for company (batch_timeout, {producer.batch_timeout:g} s) "
            f"until they are given up (delivery_timeout, {producer.delivery_timeout:g} s)."
        )
        block.problem(CONTRADICTION, sentence, "Make batch_timeout the shorter one.")
