"""Reading the whole of settings.KAFKA, with everything that is wrong in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .blocks import CONTRADICTION, DUPLICATE_NAME, UNKNOWN_CLUSTER, WRONG_VALUE, Block, Problem
from .clusters import Cluster, read_cluster
from .consumers import read_consumer
from .encryption import find_what_encryption_lacks, read_keys
from .events import find_what_events_lack
from .librdkafka import reason_against
from .masks import mask
from .producers import Producer, read_producer
from .registries import find_what_schemas_lack
from .schema import CATEGORIES, Consumer, DeadLetters, Health, Heartbeats, Kafka, Logging, Metrics, Tracing
from .secrets import Options
from .values import (
    LETTERS_PLACES,
    Rule,
    choice,
    dotted_path,
    duration,
    flag,
    label,
    listed,
    optional,
    short_text,
    size,
    text,
    topic_prefix,
    topic_template,
    whole,
)

TOP: Mapping[str, Rule] = {
    "client_id": text,
    "group_id": text,
    "topic_prefix": topic_prefix,
    "release": short_text,
    "tenant": optional(dotted_path),
}
DEAD_LETTERS: Mapping[str, Rule] = {
    "database": label,
    "retention": optional(duration()),
    "unresolved_max_age": optional(duration(60.0)),
    "producer": optional(label),
    "max_shown": size(0),
    "job_above": whole(1),
    "reason_above": optional(whole(0)),
    "edit": flag,
    "mask": mask,
    "audit_retention": optional(duration(60.0)),
}
HEARTBEATS: Mapping[str, Rule] = {"enabled": flag, "interval": duration(0.1, 3600.0)}
HEALTH: Mapping[str, Rule] = {
    "max_poll_age": optional(duration(1.0)),
    "max_lag": optional(whole()),
    "max_lag_age": optional(duration()),
    "max_dead_letters": optional(whole()),
}
METRICS: Mapping[str, Rule] = {"groups": choice("nowhere", "workers", "everywhere")}
ERROR_CATEGORIES: Mapping[str, Rule] = dict.fromkeys(CATEGORIES, listed(dotted_path, "dotted paths"))
LOGGING: Mapping[str, Rule] = {
    "level": optional(choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", upper=True)),
    "enable_sarama_logger": flag,
    "correlation_headers": listed(label, "names of headers"),
    "propagate_correlation": flag,
}
TRACING: Mapping[str, Rule] = {"enabled": flag}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read from settings.KAFKA."""

    kafka: Kafka
    """What it means; where something is wrong, with the default in its place."""
    problems: tuple[Problem, ...]
    """What is wrong in it."""


def read(setting: object) -> Reading:
    """Read the setting; nothing is raised, whatever it holds."""
    problems: list[Problem] = []
    block = Block.of(setting, "KAFKA", problems)
    top = {"client_id": "", "group_id": "", "topic_prefix": "", **block.read(TOP)}
    clusters, given = _read_clusters(block, top["topic_prefix"])
    common = {"client_id": top["client_id"], "prefix": top["topic_prefix"], "clusters": given}
    producers = _read_producers(block, common)
    consumers = {
        name: read_consumer(name, inner, group_id=top["group_id"], **common)
        for name, inner in block.entries("consumers", "consumer")
    }
    rest = _read_the_rest(block, top["topic_prefix"])
    block.close(_advice(block))
    _find_unknown_clusters(clusters, "producers", producers.values(), problems)
    _find_unknown_clusters(clusters, "consumers", consumers.values(), problems)
    find_what_schemas_lack(clusters, "producers", producers.values(), problems)
    find_what_schemas_lack(clusters, "consumers", consumers.values(), problems)
    find_what_events_lack(producers.values(), problems)
    find_what_encryption_lacks(rest["encryption_keys"], "producers", producers.values(), problems)
    find_what_encryption_lacks(rest["encryption_keys"], "consumers", consumers.values(), problems)
    kafka = Kafka(
        clusters=MappingProxyType(clusters),
        producers=MappingProxyType(producers),
        consumers=MappingProxyType(consumers),
        default_producer=_default(producers),
        default_consumer=_default(consumers),
        **top,
        **rest,
    )
    return Reading(kafka=kafka, problems=tuple(problems))


def _read_clusters(block: Block, prefix: str) -> tuple[dict[str, Cluster], dict[str, Mapping[str, str]]]:
    clusters: dict[str, Cluster] = {}
    given: dict[str, Mapping[str, str]] = {}
    clusters["default"], given["default"] = read_cluster("default", block, prefix)
    for name, inner in block.entries("clusters", "cluster"):
        if name == "default":
            sentence = f'{inner.path} is a second cluster "default"; the first one is made of the keys of KAFKA itself.'
            inner.problem(DUPLICATE_NAME, sentence, "Rename it, or move its keys up.")
            continue
        clusters[name], given[name] = read_cluster(name, inner, prefix)
        inner.close()
    return clusters, given


def _read_producers(block: Block, common: Mapping[str, Any]) -> dict[str, Producer]:
    if "producers" not in block.values:
        # So that a project sends its first record with nothing declared but the brokers.
        block.values["producers"] = {"default": {}}
    return {name: read_producer(name, inner, **common) for name, inner in block.entries("producers", "producer")}


def _read_the_rest(block: Block, prefix: str) -> dict[str, Any]:
    letters, heartbeats, health, metrics, logging, tracing = (
        block.block(key) for key in ("dead_letters", "heartbeats", "health", "metrics", "logging", "tracing")
    )
    rest = {
        "dead_letters": DeadLetters(
            **letters.read({**DEAD_LETTERS, "topic": optional(topic_template(prefix, LETTERS_PLACES))})
        ),
        "heartbeats": Heartbeats(**heartbeats.read(HEARTBEATS)),
        "health": Health(**health.read(HEALTH)),
        "metrics": Metrics(**metrics.read(METRICS)),
        "logging": Logging(**logging.read(LOGGING)),
        "tracing": Tracing(**tracing.read(TRACING)),
        "encryption_keys": read_keys(block.block("encryption")),
        "bridges": _read_bridges(block),
        "error_categories": _read_error_categories(block.block("error_categories")),
    }
    for inner in (letters, heartbeats, health, metrics, logging, tracing):
        inner.close()
    return rest


def _read_bridges(block: Block) -> tuple[Options, ...]:
    path, value = block.path_to("bridges"), block.take("bridges")
    if not isinstance(value, list | tuple | None):
        block.problem(WRONG_VALUE, f"{path} is of type {type(value).__name__}; allowed: a list of dicts.", path=path)
        return ()
    return tuple(Options(Block.of(each, f"{path}[{i}]", block.problems).values) for i, each in enumerate(value or ()))


def _read_error_categories(block: Block) -> Mapping[str, tuple[str, ...]]:
    found = block.read(ERROR_CATEGORIES)
    block.close()
    seen: dict[str, str] = {}
    for category, paths in found.items():
        for path in paths:
            if seen.setdefault(path, category) != category:
                sentence = f"{block.path} has {path!r} in {seen[path]!r} and in {category!r}."
                block.problem(CONTRADICTION, sentence, "An exception has one category.")
    return MappingProxyType(found)


def _advice(block: Block) -> dict[str, str]:
    advice = {key: reason for key in block.values if isinstance(key, str) and (reason := reason_against(key))}
    if "lynx" in block.values:
        advice["lynx"] = 'Of the YAML, KAFKA is what is below: yaml.safe_load(…)["lynx"]["kafka"].'
    if "kafka" in block.values:
        advice["kafka"] = 'Of the YAML, KAFKA is what is below: yaml.safe_load(…)["kafka"].'
    return advice


def _find_unknown_clusters(
    clusters: Mapping[str, Cluster], kind: str, clients: Iterable[Producer | Consumer], problems: list[Problem]
) -> None:
    for client in clients:
        if client.cluster not in clusters:
            path = f'KAFKA["{kind}"]["{client.name}"]["cluster"]'
            sentence = f"{path} is {client.cluster!r}; KAFKA has the clusters: {', '.join(clusters)}."
            problems.append(
                Problem(id=UNKNOWN_CLUSTER, path=path, message=sentence, hint='Add it to KAFKA["clusters"].')
            )


def _default(clients: Mapping[str, Producer] | Mapping[str, Consumer]) -> str | None:
    if "default" in clients:
        return "default"
    return next((name for name, client in clients.items() if client.enabled), None)
