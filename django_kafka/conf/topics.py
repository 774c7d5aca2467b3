"""Topics that settings declare: how they are to be, and how to read that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .blocks import CONTRADICTION, Block
from .values import Rule, Wrong, flag, optional, topic, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """How a topic is to be."""

    name: str
    """Without prefix."""
    partitions: int | None = None
    """How many it has at least; None: as its origin, else as brokers decide."""
    replication_factor: int | None = None
    """How many brokers have each of them; None: the same."""
    config: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    """Kafka's own properties of it; None: what brokers have by default."""
    delete: bool = False
    """It is to be gone, with all its messages."""


def text_of_property(value: object) -> str:
    """Read the value of one of Kafka's properties, as Kafka writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise Wrong('text, a number, or a boolean, such as 604800000 or "compact"')


TOPIC: Mapping[str, Rule] = {
    "partitions": optional(whole(1, 100_000)),
    "replication_factor": optional(whole(1, 32_767)),
    "delete": flag,
}


def read_topics(block: Block, prefix: str) -> Mapping[str, Topic]:
    """Return the topics that the key `topics` of a cluster's block declares, by name."""
    found: dict[str, Topic] = {}
    for name, inner in block.entries("topics", "topic", topic(prefix)):
        read: dict[str, Any] = inner.read(TOPIC)
        config = _read_config(inner.block("config"))
        if read.get("delete") and (config or len(read) > 1):
            sentence = f"{inner.path} is to be deleted, and says how it is to be."
            inner.problem(CONTRADICTION, sentence, "Leave the one or the other out.")
        found[name] = Topic(name=name, config=MappingProxyType(config), **read)
        inner.close()
    return MappingProxyType(found)


def _read_config(block: Block) -> dict[str, str | None]:
    rules = {key: optional(text_of_property) for key in block.values if isinstance(key, str)}
    found: dict[str, str | None] = block.read(rules)
    block.close()
    return found
