"""Settings that are understood and checked, but whose behaviour this version lacks: a line for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .producers import Producer
from .schema import Consumer, Kafka

_Line = tuple[str, Callable[[Any], bool], str]


CONSUMER: tuple[_Line, ...] = (("deduplicate", lambda value: value is not None, "only None"),)
CONSUMER_TOPIC: tuple[_Line, ...] = ()
PRODUCER: tuple[_Line, ...] = (("send", lambda value: value == "outbox", 'only "on_commit" and "immediate"'),)
PRODUCER_TOPIC: tuple[_Line, ...] = ()
WITH_CONSUMERS: tuple[_Line, ...] = (("bridges", bool, "only an empty list"),)
"""What stands elsewhere in KAFKA, and is missed when a consumer runs."""


def lacking(client: Consumer | Producer, kafka: Kafka) -> list[str]:
    """Return a sentence for each setting of a consumer or producer whose behaviour this version lacks."""
    return list(_sentences(client, kafka))


def _sentences(client: Consumer | Producer, kafka: Kafka) -> Iterator[str]:
    consuming = isinstance(client, Consumer)
    path = f'KAFKA["{"consumers" if consuming else "producers"}"]["{client.name}"]'
    yield from _compare(client, path, CONSUMER if consuming else PRODUCER)
    for name, topic in client.topics.items():
        yield from _compare(topic, f'{path}["topics"]["{name}"]', CONSUMER_TOPIC if consuming else PRODUCER_TOPIC)
    if consuming:
        yield from _compare(kafka, "KAFKA", WITH_CONSUMERS)


def _compare(found: Any, path: str, lines: tuple[_Line, ...]) -> Iterator[str]:
    for setting, lacks, has in lines:
        value, place = found, path
        for key in setting.split("."):
            value, place = getattr(value, key), f'{place}["{key}"]'
        if lacks(value):
            shown = f" is {value!r}" if isinstance(value, str | int | float) else " asks for more"
            yield f"{place}{shown}; this version has {has}."
