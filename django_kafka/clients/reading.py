"""A client that looks at single messages, outside of any group."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import confluent_kafka
from confluent_kafka import TopicPartition

from .. import conf
from . import properties
from .admin import Unreachable
from .events import Place
from .groups import Ends, GroupInUse
from .logs import ClientLog
from .making import make
from .scrubbing import Scrubber

_PIECE = 1000
_LOOKS_FOR = 5.0
"""Seconds, at most, for what is only shown."""
_JOINS_WITHIN = 15.0
"""Seconds: the embedded cluster lets a member wait for a session after the last one has left."""
_COMES_WHOLE = 2.0
"""Seconds after the first partition within which the last one comes to a member that is alone."""


def times(consumer: conf.Consumer, group_id: str, offsets: Mapping[Place, int], timeout: float) -> dict[Place, int]:
    """Return the time of the first message from each offset on, in milliseconds since the epoch.

    What has none, or is not answered within `timeout` or five seconds, is left out.
    """
    found: dict[Place, int] = {}
    if offsets:
        done: set[Place] = set()
        with _client(consumer, group_id) as client:
            for place, message in _read(client, offsets, done, min(timeout, _LOOKS_FOR)):
                done.add(place)
                kind, at = message.timestamp()
                if kind != confluent_kafka.TIMESTAMP_NOT_AVAILABLE:
                    found[place] = at
    return found


def since(
    consumer: conf.Consumer, group_id: str, logs: Mapping[Place, Ends], milliseconds: int, timeout: float
) -> dict[Place, int | None]:
    """Return the offset of the first message of that time or later, None where there is none, by reading all of them.

    For a cluster that does not look it up.
    """
    found: dict[Place, int | None] = dict.fromkeys(logs)
    starts = {place: ends.low for place, ends in logs.items() if ends.low < ends.high}
    if starts:
        done: set[Place] = set()
        with _client(consumer, group_id) as client:
            for place, message in _read(client, starts, done, timeout):
                if message.timestamp()[1] >= milliseconds:
                    done.add(place)
                    found[place] = message.offset()
        if unread := starts.keys() - done:
            # One of them may have such a message: "none" would skip it.
            which = ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(unread))
            raise Unreachable(f"The messages of {which} could not be read within {timeout:g} s.")
    return found


def commit_as_only_member(
    consumer: conf.Consumer, group_id: str, places: frozenset[Place], offsets: Mapping[Place, int]
) -> None:
    """Join the group, commit offsets for it, and leave. Raises `GroupInUse` when somebody else is in it.

    `places` are all partitions of the topics that its members subscribe to: who is alone gets every one. For a cluster
    that takes no offsets from outside once a group has had members.
    """
    mine: set[Place] = set()
    deadlines = [time.monotonic() + _JOINS_WITHIN]

    def came(_client: object, partitions: list[TopicPartition]) -> None:
        mine.update((one.topic, one.partition) for one in partitions)
        deadlines.append(time.monotonic() + _COMES_WHOLE)

    def left(_client: object, partitions: list[TopicPartition]) -> None:
        mine.difference_update((one.topic, one.partition) for one in partitions)

    with _client(consumer, group_id) as client:
        client.subscribe(sorted({topic for topic, _partition in places}), on_assign=came, on_revoke=left, on_lost=left)
        while mine != places:
            if time.monotonic() > min(deadlines):
                raise GroupInUse(f"Group {group_id!r} has members: not every partition came to a new one.")
            client.poll(0.1)
        answers = client.commit(
            offsets=[TopicPartition(*place, offset) for place, offset in offsets.items()], asynchronous=False
        )
        for one in answers or ():
            if one.error is not None:
                raise confluent_kafka.KafkaException(one.error)


def _read(
    client: confluent_kafka.Consumer, offsets: Mapping[Place, int], done: set[Place], timeout: float
) -> Iterator[tuple[Place, Any]]:
    """Yield messages from these offsets on, of partitions that are not `done`: at their end, or found to be enough."""
    client.assign([TopicPartition(*place, offset) for place, offset in offsets.items()])
    left = set(offsets)
    deadline = time.monotonic() + timeout
    while left and time.monotonic() < deadline:
        for message in client.consume(_PIECE, 0.05):
            place = message.topic() or "", message.partition() or 0
            if (error := message.error()) is not None:
                if error.name() == "_PARTITION_EOF":
                    done.add(place)
            elif place not in done:
                yield place, message
        if over := left & done:
            client.incremental_unassign([TopicPartition(*place) for place in over])
            left -= over


@contextmanager
def _client(consumer: conf.Consumer, group_id: str) -> Iterator[confluent_kafka.Consumer]:
    chosen = properties.for_consumer(consumer, conf.cluster(consumer.cluster), group_id).with_({
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
        "fetch.min.bytes": 1,
    })  # fmt: skip
    scrub = Scrubber(chosen)
    log = ClientLog("consumer", consumer.name, scrub)
    what, own = f"A client for consumer {consumer.name!r}", {"error_cb": lambda _error: None}
    client = make(confluent_kafka.Consumer, what, chosen, scrub, log, own)
    try:
        yield client
    finally:
        client.close()
