"""Retry topics: what they are called, and what the headers of a message say that waits in one.

A message whose n-th attempt failed waits in `<group>.<topic>.retry.<n>`. It keeps its key, value and headers; after
these come ours, which begin with "lynx-kafka-retry-topic" and say where it was and when its next attempt is due.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from . import conf
from .messages import Message, RawMessage, header_pairs

OURS: Final = "lynx-kafka-retry-"
"""What the names of our headers begin with."""

_TOPIC, _FAILURE = f"{OURS}topic", f"{OURS}failure"
_DIGITS = re.compile(rb"[0-9]{1,19}")
_LARGEST_INT, _LARGEST_LONG = 2**31 - 1, 2**63 - 1

Pairs = list[tuple[str, "bytes | None"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryTopic:
    """One of the topics in which messages of another one wait for their next attempt."""

    name: str
    """As Kafka knows it, prefix included."""
    origin: str
    """The topic that its messages came from first, as Kafka knows it."""
    number: int
    """How many attempts have failed of a message in it."""
    longest: float
    """No message waits longer in it: seconds."""
    family: frozenset[str]
    """That topic and all of its retry topics."""

    def returned(self, raw: RawMessage) -> Returned:
        """Return a message of this topic as what it was when it first came."""
        return Returned(raw, self)


def of_topic(consumer: conf.Consumer, topic: str, own: conf.ConsumerTopic | None) -> list[RetryTopic]:
    """Return the retry topics of a consumer for `topic`, named without prefix; none unless its retries use them.

    `own` is what settings say of that topic.
    """
    retry = (own and own.retry) or consumer.retry
    if retry.mode != "topics" or (own is not None and own.imports):
        return []
    origin = conf.kafka().prefixed(topic)
    names = [name_of(consumer, topic, number) for number in range(1, retry.max_retries + 1)]
    family = frozenset([origin, *names])
    return [
        RetryTopic(name=name, origin=origin, number=number, longest=retry.max_backoff, family=family)
        for number, name in enumerate(names, 1)
    ]


def name_of(consumer: conf.Consumer, topic: str, number: int) -> str:
    """Return what the retry topic after so many attempts is called, as Kafka knows it; `topic` without prefix."""
    return conf.kafka().prefixed(f"{consumer.group_id}.{topic}.retry.{number}")


def headers_of(message: Message, *, attempts: int, due_ms: int, failures: Sequence[bytes] = ()) -> Pairs:
    """Return the headers with which a message is sent to the retry topic after so many attempts."""
    facts = {
        _TOPIC: message.topic,
        f"{OURS}partition": message.partition,
        f"{OURS}offset": message.offset,
        f"{OURS}timestamp": message.timestamp_ms,
        f"{OURS}attempts": attempts,
        f"{OURS}due": due_ms,
    }
    ours = [(name, str(fact).encode()) for name, fact in facts.items() if fact is not None]
    return [*message.headers, *ours, *((_FAILURE, failure) for failure in failures)]


class Returned:
    """A message of a retry topic, read like the message that it was.

    Whoever may write to the topic writes what he likes. What is not written as ours is, is a message of its own: it has
    the coordinates that it has, all of its headers, no attempt behind it, and does not wait.
    """

    __slots__ = (
        "_due", "_headers", "_longest", "_offset", "_partition", "_raw", "_timestamp", "_topic", "attempts", "failures",
    )  # fmt: skip

    attempts: int
    """How many have failed."""
    failures: tuple[bytes, ...]
    """What is said of them, in their order; of many only the last ones."""

    def __init__(self, raw: RawMessage, retry: RetryTopic) -> None:
        self._raw = raw
        self._longest = retry.longest
        pairs = header_pairs(raw)
        others, facts, failures = _sort(pairs)
        topic = (facts.get("topic") or b"").decode("ascii", "replace")
        partition = _number(facts.get("partition"), _LARGEST_INT)
        offset = _number(facts.get("offset"), _LARGEST_LONG)
        timestamp = _time(facts.get("timestamp"))
        due = _number(facts.get("due"), _LARGEST_LONG)
        told = None not in (partition, offset, due) and ("timestamp" in facts) == (timestamp is not None)
        if told and topic in retry.family and _number(facts.get("attempts"), _LARGEST_INT) == retry.number:
            self._topic, self._partition, self._offset = topic, partition, offset
            self._timestamp = (0, -1) if timestamp is None else (1, timestamp)
            self._headers, self._due = others, due
            self.attempts = retry.number
            self.failures = failures if len(failures) <= retry.number else ()
        else:
            self._topic, self._partition, self._offset = raw.topic() or "", raw.partition(), raw.offset()
            self._timestamp = raw.timestamp()
            self._headers, self._due = pairs, None
            self.attempts, self.failures = 0, ()

    def topic(self) -> str:
        """Return the topic it came from."""
        return self._topic

    def partition(self) -> int | None:
        """Return the partition it came from."""
        return self._partition

    def offset(self) -> int | None:
        """Return its offset there."""
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        """Return its kind (0: none) and milliseconds since the epoch."""
        return self._timestamp

    def key(self) -> bytes | None:
        """Return its key."""
        return self._raw.key()

    def value(self) -> bytes | None:
        """Return its value."""
        return self._raw.value()

    def headers(self) -> Pairs:
        """Return its headers without ours."""
        return self._headers

    def seconds_left(self, now: float) -> float:
        """Return how long it has to wait, `now` being in seconds since the epoch.

        Never longer than `max_backoff`, from now and from the time at which it was sent here, whatever its header says.
        """
        if self._due is None:
            return 0.0
        left = min(self._due / 1000 - now, self._longest)
        kind, sent_at = self._raw.timestamp()
        if kind:
            left = min(left, sent_at / 1000 + self._longest - now)
        return max(0.0, left)


def _sort(pairs: Pairs) -> tuple[Pairs, dict[str, bytes], tuple[bytes, ...]]:
    """Return the headers of others, our facts, and what is said of failures; no facts when one is there twice.

    Ours are the last ones that begin with the topic: a message may have been read from a retry topic and sent again.
    """
    begin = max((index for index, (name, _value) in enumerate(pairs) if name == _TOPIC), default=len(pairs))
    others = pairs[:begin]
    facts: dict[str, bytes] = {}
    failures: list[bytes] = []
    for name, value in pairs[begin:]:
        if not name.startswith(OURS):
            others.append((name, value))
        elif name == _FAILURE:
            failures.append(value or b"")
        elif name.removeprefix(OURS) in facts:
            return pairs, {}, ()
        else:
            facts[name.removeprefix(OURS)] = value or b""
    return others, facts, tuple(failures)


def _time(text: bytes | None) -> int | None:
    """Return milliseconds since the epoch, which may be before it: Kafka takes such records."""
    number = _number(text and text.removeprefix(b"-"), _LARGEST_LONG)
    return -number if number is not None and text is not None and text.startswith(b"-") else number


def _number(text: bytes | None, most: int) -> int | None:
    if text is None or _DIGITS.fullmatch(text) is None or int(text) > most:
        return None
    return int(text)
