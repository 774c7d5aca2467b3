"""Which Kafka it is, as its features tell, and what of it the project needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .. import conf
from .findings import Finding, error
from .wire import Abilities

_METADATA = "metadata.version"
_VERSIONS = (
    (30, "4.3"), (28, "4.2"), (26, "4.1"), (22, "4.0"), (21, "3.9"), (20, "3.8"), (15, "3.7"), (12, "3.6"), (9, "3.5"),
    (8, "3.4"), (4, "3.3"), (3, "3.2"), (2, "3.1"), (1, "3.0"),
)  # fmt: skip
"""The first level of the feature metadata.version that each Kafka has."""
_PRODUCE, _INIT_PRODUCER_ID, _CONSUMER_GROUP_HEARTBEAT = 0, 22, 68
_ZSTD = 7
"""The first version of Produce that takes it."""


def version(found: Abilities) -> str:
    """Return which Kafka it is, as far as it tells."""
    level = found.features.get(_METADATA)
    if level is None:
        return f"a broker that knows {len(found.requests)} kinds of requests and names no version"
    if level > _VERSIONS[0][0]:
        return f"Kafka {_VERSIONS[0][1]} or later ({_METADATA} {level})"
    name = next((name for first, name in _VERSIONS if level >= first), "")
    return f"Kafka {name} ({_METADATA} {level})"


def lacking(
    found: Abilities, producers: Iterable[conf.Producer], consumers: Iterable[conf.Consumer], of: str
) -> Iterator[Finding]:
    """Yield what producers and consumers ask for and the broker does not have."""
    highest = found.requests.get(_PRODUCE, (0, 0))[1]
    for producer in producers:
        path = f'KAFKA["producers"]["{producer.name}"]'
        if producer.compression == "zstd" and highest < _ZSTD:
            saw = f"Producer {producer.name!r} compresses with zstd, which brokers have since Kafka 2.1."
            yield error("version", saw, f'Set {path}["compression"] to "lz4".', of=of)
        if producer.is_idempotent and _INIT_PRODUCER_ID not in found.requests:
            saw = f"Producer {producer.name!r} is idempotent, and this broker does not know that."
            yield error("version", saw, f'Set {path}["idempotent"] to False.', of=of)
    for consumer in consumers:
        wanted = str(consumer.options.get("group.protocol", "")).lower() == "consumer"
        if wanted and _CONSUMER_GROUP_HEARTBEAT not in found.requests:
            path = f'KAFKA["consumers"]["{consumer.name}"]["options"]["group.protocol"]'
            saw = f"Consumer {consumer.name!r} has group.protocol consumer, which brokers have since Kafka 4.0."
            yield error("version", saw, f"Leave {path} out.", of=of)
