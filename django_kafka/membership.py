"""What a consumer reads, and as a member of which group."""

from __future__ import annotations

from collections.abc import Collection

from . import conf
from .exceptions import ConfigurationError


def topics_and_group(consumer: conf.Consumer, topics: Collection[str]) -> tuple[list[str], str]:
    """Return the topics and the group of a consumer with their prefix. Raises `ConfigurationError`."""
    settings = conf.kafka()
    if not consumer.group_id:
        raise ConfigurationError(f'Consumer {consumer.name!r} has no group: set its "group_id", or KAFKA["group_id"].')
    return [settings.prefixed(topic) for topic in topics], settings.prefixed(consumer.group_id)


def reset_of(consumer: conf.Consumer) -> str:
    """Return where a consumer begins without an offset that is there, as librdkafka calls it."""
    return str(consumer.options.get("auto.offset.reset", consumer.auto_offset_reset)).lower()
