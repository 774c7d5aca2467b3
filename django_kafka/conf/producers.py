"""Reading producers from settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from . import encryption, events
from .blocks import CONTRADICTION, Block
from .librdkafka import CLUSTER_SAME, PRODUCER_SAME
from .options import advice, merge_options, read_options, refuse_reserved, rename
from .registries import WRITING, options_rule, schema
from .schema import Producer, ProducerCircuit, ProducerTopic
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
