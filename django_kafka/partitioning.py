"""Which topic and partition a record goes to, where settings or callers ask for something else than "by key".

"key" is the client's own business and comes by nothing here: murmur2 of the key, as Java's producers have it, and
records without a key to one partition for a moment and then to the next.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from string import Formatter
from typing import Any

from django.db.models import Model
from django.utils.module_loading import import_string

from . import conf
from .exceptions import ConfigurationError, KafkaError, UnknownName, Unroutable

WORDS = ("key", "round_robin", "sticky")
"""What settings and callers may name; else a dotted path in settings, a function from callers."""

_LOOK_AGAIN = 60.0
"""Seconds after which brokers are asked anew how many partitions a topic has: it may have got more."""
_ASK_AGAIN = 10.0
"""The same after they did not answer, while the number is known from before."""
_ASK_BRIEFLY = 2.0
"""Seconds that the second and later questions may take."""
_SHORTEST = 0.01
"""Seconds that one partition is kept at least by "sticky": as long as the client does for records without a key."""

Headers = Iterable[tuple[str, "bytes | str | None"]]


class Target:
    """What a routing function is told about where its record is bound for."""

    __slots__ = ("_count", "name")

    def __init__(self, name: str, count: Callable[[], int]) -> None:
        self.name = name
        """The topic without prefix, as settings or the caller named it."""
        self._count = count

    @property
    def partitions(self) -> int:
        """How many partitions it has; brokers are asked at first, and every minute. Raises `DeliveryFailed`."""
        return self._count()


Function = Callable[[Any, Target], "int | str | None"]
"""Takes a `Record` and a `Target`; returns a partition, the name of another topic, or None: by key."""


class Unknown(Exception):
    """How many partitions a topic has is not known here, and this thread must not wait until it is."""

    def __init__(self, topic: str) -> None:
        super().__init__(topic)
        self.topic = topic


class Partitions:
    """How many partitions topics have, as one producer's brokers say."""

    def __init__(self, ask: Callable[[str, float], int], timeout: float) -> None:
        """`ask` takes a topic as Kafka knows it, and seconds; `timeout` is how many the first question may take."""
        self._ask = ask
        self._timeout = timeout
        self._known: dict[str, tuple[int, float]] = {}
        self._asking = threading.Lock()

    def of(self, topic: str, *, wait: bool = True) -> int:
        """Return how many; raise what `ask` raises when that was never known, `Unknown` instead of waiting."""
        count, until = self._known.get(topic, (0, 0.0))
        if time.monotonic() < until:
            return count
        if not wait:
            raise Unknown(topic)
        return self.learn(topic)

    def learn(self, topic: str) -> int:
        """Ask, and return how many."""
        count, _until = self._known.get(topic, (0, 0.0))
        # Where the number is known from before, one thread asks and the others need not wait for it.
        if not self._asking.acquire(blocking=not count):
            return count
        try:
            count, until = self._known.get(topic, (0, 0.0))
            if time.monotonic() >= until:
                count, until = self._answer(topic, count)
                self._known[topic] = count, until
            return count
        finally:
            self._asking.release()

    def _answer(self, topic: str, before: int) -> tuple[int, float]:
        try:
            found = self._ask(topic, min(_ASK_BRIEFLY, self._timeout) if before else self._timeout)
        except KafkaError:
            if not before:
                raise
            return before, time.monotonic() + _ASK_AGAIN
        return found, time.monotonic() + _LOOK_AGAIN


class RoundRobin:
    """Each record to the next partition, whatever its key."""

    def __init__(self) -> None:
        self._turns: Iterator[int] = itertools.count(random.randrange(1 << 16))

    def __call__(self, partitions: int, size: int) -> int:
        return next(self._turns) % partitions


class Sticky:
    """Records to one partition, whatever their keys, until a batch of `most` bytes is full or `seconds` are over."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, max(seconds, _SHORTEST)
        self._lock = threading.Lock()
        self._partition = -1
        self._bytes, self._until = 0, 0.0

    def __call__(self, partitions: int, size: int) -> int:
        with self._lock:
            now = time.monotonic()
            if self._partition < 0 or self._bytes + size > self._most or now >= self._until:
                others = [one for one in range(partitions) if one != self._partition] or [0]
                self._partition, self._bytes, self._until = random.choice(others), 0, now + self._seconds
            self._bytes += size
            return self._partition


Turns = Callable[[int, int], int]
"""Takes the number of partitions and the bytes of a record; returns its partition."""


class Router:
    """The routing of one producer: how its settings choose topics and partitions, and what is known for that."""

    def __init__(self, settings: conf.Producer, ask: Callable[[str, float], int], timeout: float) -> None:
        self._settings = settings
        self.partitions = Partitions(ask, timeout)
        self._turns: dict[tuple[str, str], Turns] = {}
        self.needed = settings.has_topic_template or any(
            one not in (None, "key") for one in (settings.routing, *(own.routing for own in settings.topics.values()))
        )
        """Whether records of this producer have to come here at all."""

    def topic_of(self, value: Any, headers: Headers) -> str | None:
        """Return the topic, without prefix, of a record that names none; None where the producer has none.

        Raises `Unroutable` when its template asks for something that the record does not have.
        """
        template = self._settings.topic
        if template is None or not self._settings.has_topic_template:
            return template
        return filled(template, value, headers, f"Producer {self._settings.name!r}")

    def strategy(self, topic: str, asked: str | Function | None) -> str | Function:
        """Return a word, or a function, for records of a topic without prefix; `asked` is what the caller says.

        Raises `UnknownName` for another word, `ConfigurationError` for a path that leads nowhere.
        """
        if asked is not None:
            if callable(asked) or asked in WORDS:
                return asked
            raise UnknownName(f"No routing {asked!r}; there are {', '.join(WORDS)}, or a function of yours.")
        own = self._settings.topics.get(topic)
        word = (own and own.routing) or self._settings.routing
        return word if word in WORDS else _imported(word)

    def turn(self, word: str, topic: str, size: int, *, wait: bool = True) -> int | None:
        """Return the partition of a record of `size` bytes for a topic as Kafka knows it; None: by key."""
        if word == "key":
            return None
        count = self.partitions.of(topic, wait=wait)
        if (turns := self._turns.get((word, topic))) is None:
            turns = self._turns.setdefault((word, topic), self._made(word))
        return turns(count, size)

    def _made(self, word: str) -> Turns:
        own = self._settings
        return RoundRobin() if word == "round_robin" else Sticky(own.batch_size, own.batch_timeout)


@cache
def _imported(path: str) -> Function:
    try:
        found = import_string(path)
    except ImportError as error:
        raise ConfigurationError(f"The routing {path!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigurationError(f"The routing {path!r} is {type(found).__name__}; it must be callable.")
    function: Function = found
    return function


def filled(template: str, value: Any, headers: Headers, whose: str) -> str:
    """Return the topic that a template makes of a record. Raises `Unroutable`, which names what is missing."""
    parts = []
    for text, place, _kind, _conversion in Formatter().parse(template):
        parts.append(text)
        if place is not None:
            found = _PLACES[place](value, headers)
            if not isinstance(found, str) or not found:
                kind = type(value).__name__
                raise Unroutable(
                    f"{whose} sends to the topic {template!r}, and this record, whose value is {kind}, has no {place}: "
                    f"{_MEANING[place]}. Name its topic."
                )
            parts.append(found)
    try:
        return conf.topic_name("".join(parts))
    except ConfigurationError as error:
        raise Unroutable(f"{whose} sends to the topic {template!r}, which makes {''.join(parts)!r}: {error}") from error


def _app(value: Any, _headers: Headers) -> str | None:
    return value._meta.app_label if isinstance(value, Model) else None


def _model(value: Any, _headers: Headers) -> str | None:
    return value._meta.model_name if isinstance(value, Model) else None


def _type(value: Any, headers: Headers) -> Any:
    found = next((content for name, content in headers if name == "type" and content), None)
    if found is not None:
        return found if isinstance(found, str) else found.decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return value.get("type")
    # What is a value of Python's own has a type that says nothing.
    return None if type(value).__module__ == "builtins" else type(value).__name__


def _tenant(_value: Any, _headers: Headers) -> Any:
    path = conf.kafka().tenant
    return None if path is None else _imported(path)()  # type: ignore[call-arg]


_PLACES: dict[str, Callable[[Any, Headers], Any]] = {"app": _app, "model": _model, "type": _type, "tenant": _tenant}
_MEANING = {
    "app": "its value is no Django model",
    "model": "its value is no Django model",
    "type": 'it has no header "type", no "type" in its value, and its value is of no class of yours',
    "tenant": 'KAFKA["tenant"] is not set, or told of none',
}
