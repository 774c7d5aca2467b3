"""Sending messages on to their retry topics, and checking that they can be sent there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .. import conf, handlers, retry_topics
from ..conf.schema import CATEGORIES
from ..dead_letters.failures import MOST_EARLIER, Failure, storable
from ..dead_letters.publishing import Courier, Problem, producer_for
from ..exceptions import ConfigurationError
from ..gathering import Sent
from ..messages import Message

_ERROR_CHARACTERS = 500
_LATEST_MS = 4_102_444_800_000
"""The year 2100: what claims to have failed later is not believed."""


@dataclass(slots=True)
class Forwarded(Sent):
    """The record of a message in its retry topic; the message is settled when it is acknowledged."""

    failure: Failure
    """Why it is there."""


class Forwarder(Courier):
    """Sends the messages of one consumer to their retry topics; used by one thread."""

    def __init__(self, consumer: conf.Consumer) -> None:
        super().__init__()
        self.consumer = consumer

    def forward(self, message: Message, origin: str, failure: Failure, after: float) -> Forwarded:
        """Send a message that failed, first read from `origin`, to its next retry topic; it is due in `after` seconds.

        Nothing is raised: what cannot be sent yet is a delivery that failed, to be sent again.
        """
        topic = origin.removeprefix(conf.kafka().topic_prefix)
        said = [written(one) for one in (*failure.earlier, failure)][-MOST_EARLIER:]
        due = int((time.time() + after) * 1000)
        headers = retry_topics.headers_of(message, attempts=message.attempt, due_ms=due, failures=said)
        # With the time of sending: a topic deletes by it what is old.
        record = message.raw_value, message.raw_key, message.partition, headers, 0
        name = retry_topics.name_of(self.consumer, topic, message.attempt)
        delivery, send = self.carry(producer_for(self.consumer.cluster).name, name, record)
        return Forwarded(delivery, send, failure)


def written(failure: Failure) -> bytes:
    facts = {
        "at": int(failure.at.timestamp() * 1000),
        "category": failure.category,
        "error": failure.error_type,
        "message": failure.error_message[:_ERROR_CHARACTERS],
        "handler": failure.handler,
    }
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()


def read_failures(written: Sequence[bytes], attempts: int) -> list[Failure]:
    """Return the failed attempts of which the headers of a message tell that has `attempts` behind it.

    They have no traceback. What cannot be read is left out: it came from somebody else.
    """
    first = attempts - len(written) + 1
    found = [_read(text, attempt) for attempt, text in enumerate(written, first)]
    return [failure for failure in found if failure is not None]


def _read(text: bytes, attempt: int) -> Failure | None:
    try:
        facts: Any = json.loads(text)
        words = {name: facts[name] for name in ("category", "error", "message", "handler")}
        at = facts["at"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    right = all(isinstance(word, str) for word in words.values()) and type(at) is int and 0 <= at <= _LATEST_MS
    if not right:
        return None
    return Failure(
        error_type=storable(words["error"])[:300],
        error_message=storable(words["message"])[:_ERROR_CHARACTERS],
        traceback="",
        category=words["category"] if words["category"] in CATEGORIES else "handler",
        handler=storable(words["handler"])[:500],
        at=datetime.fromtimestamp(at / 1000, UTC),
        attempt=attempt,
    )


def problems(consumer: str | None = None) -> list[Problem]:
    """Return what keeps messages of a consumer (None: of all that are enabled) from their retry topics."""
    consumers = conf.kafka().consumers.values()
    mine = [one for one in consumers if one.name == consumer or (consumer is None and one.enabled)]
    return [problem for one in mine for problem in _of_consumer(one)]


def _of_consumer(consumer: conf.Consumer) -> Iterator[Problem]:
    topics = list(handlers.retry_topics(consumer.name).values())
    if not topics:
        return
    try:
        producer = producer_for(consumer.cluster)
    except ConfigurationError as error:
        yield "E040", f"The retry topics of consumer {consumer.name!r} have no producer: {error}", "Declare one."
    else:
        if producer.effective_acks == "0":
            sentence = f'Producer {producer.name!r} would send messages to retry topics with acks "0".'
            yield "E040", sentence, 'Nothing would confirm them, and they could be lost: give it acks "all".'
    prefix = conf.kafka().topic_prefix
    read = {
        conf.kafka().prefixed(topic)
        for one in conf.kafka().consumers.values()
        if one.cluster == consumer.cluster
        for topic in handlers.topics(one.name)
    }
    others = {
        name: (one.name, retry.origin)
        for one in conf.kafka().consumers.values()
        if one.cluster == consumer.cluster and one.name != consumer.name
        for name, retry in handlers.retry_topics(one.name).items()
    }
    for topic in topics:
        try:
            conf.topic_name(topic.name.removeprefix(prefix))
        except ConfigurationError as error:
            sentence = f"A retry topic of consumer {consumer.name!r} for {topic.origin!r} has an illegal name: {error}"
            yield "E041", sentence, "Shorten the group_id or the topic, and use letters, digits, '.', '_' and '-'."
            return
        if topic.name in read:
            sentence = f"{topic.name!r} is a retry topic of consumer {consumer.name!r}, and named as a topic as well."
            yield "E042", sentence, "Its messages would be handled out of their turn: do not name it."
        if (other := others.get(topic.name)) is not None and other[1] != topic.origin:
            sentence = f"{topic.name!r} is a retry topic of consumer {consumer.name!r}, and of {other[0]!r} as well."
            yield "E042", sentence, "Each would handle messages of the other: change a group_id or the name of a topic."
