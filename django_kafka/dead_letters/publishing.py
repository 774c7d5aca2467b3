"""Dead-letter topics: what is stored as a dead letter goes to a topic too, as it was, with headers that say why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .. import conf, handlers, logs, subscriptions
from ..deliveries import Delivery
from ..exceptions import ConfigurationError, DeliveryFailed, RecordTooLarge
from ..gathering import Sent
from ..messages import Message
from ..models import DeadLetter
from ..producer import Route
from ..producers import producers
from ..producing import outlet, send_now
from ..records import Wire
from .foreign import OURS

log = logs.of(__name__)

_ERROR_CHARACTERS = 1000
_REMEMBER = 300.0
"""Seconds for which the number of partitions of a topic is taken to stay as it is."""
_REFUSED_FOR = 1.0
"""Seconds for which letters are not even tried after one could not be sent."""
_ASK_AT_MOST = 5.0
"""Seconds for which brokers are asked for it."""


def topic_for(consumer: conf.Consumer, topic: str) -> str | None:
    """Return the dead-letter topic for messages of `topic`, both as Kafka knows them; None when there is none."""
    settings = conf.kafka()
    if settings.dead_letters.topic is None:
        return None
    own = topic.removeprefix(settings.topic_prefix)
    names = {"topic": own, "group": consumer.group_id, "consumer": consumer.name}
    return settings.prefixed(settings.dead_letters.topic.format(**names))


def producer_for(cluster: str) -> conf.Producer:
    """Return the producer for records that are about messages of a cluster: the default one if it sends there.

    Raises `ConfigurationError` when no enabled producer does.
    """
    settings = conf.kafka()
    found = {one.name: one for one in settings.producers.values() if one.enabled and one.cluster == cluster}
    if not found:
        raise ConfigurationError(f'No enabled producer in KAFKA["producers"] sends to cluster {cluster!r}.')
    return found.get(settings.default_producer or "") or next(iter(found.values()))


def _chosen(consumer: conf.Consumer) -> conf.Producer:
    named = conf.kafka().dead_letters.producer
    return producer_for(consumer.cluster) if named is None else conf.producer(named)


@dataclass(slots=True)
class Published(Sent):
    """The record of a dead letter in its topic; the message is settled when it is acknowledged."""


def is_hopeless(error: BaseException) -> bool:
    """Tell whether a record that failed can never be sent as it is."""
    return isinstance(error, RecordTooLarge) or (
        isinstance(error, DeliveryFailed) and error.category == "serialization"
    )


class Courier:
    """Sends records that are about messages, so that they can be waited for and sent again; used by one thread."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}
        self._refused: tuple[Exception | None, float] = None, 0.0

    def carry(self, name: str, topic: str, record: Wire) -> tuple[Delivery, Callable[[], Delivery]]:
        """Send a record with the producer called `name`; return its delivery, and what sends it again.

        Nothing is raised: what cannot be sent yet is a delivery that failed. The partition of the record is that of its
        message.
        """
        producer = producers[name]

        def send() -> Delivery:
            return self._send(producers[name].route_to(topic), record)

        refusal, until = self._refused
        if refusal is None or time.monotonic() >= until:
            try:
                return send(), send
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # the delivery says it to whoever waits for it
                # The others that go out together need not wait as long as this one.
                refusal, self._refused = error, (error, time.monotonic() + _REFUSED_FOR)
        delivery = producer.route_to(topic).promise()
        delivery.fail(refusal)
        return delivery, send

    def _send(self, route: Route, record: Wire) -> Delivery:
        value, key, origin, headers, timestamp = record
        return send_now(route, (value, key, self._partition(route, key, origin), headers, timestamp))

    def _partition(self, route: Route, key: bytes | None, origin: int) -> int:
        """Return the same partition where there is one of that number, so that order holds; else -1: by key."""
        if outlet.current is not None:
            return origin
        count, until = self._counts.get(route.topic, (0, 0.0))
        if time.monotonic() >= until:
            producer = route.producer
            count = producer.client.partitions(route.topic, min(producer.connection_timeout, _ASK_AT_MOST))
            self._counts[route.topic] = count, time.monotonic() + _REMEMBER
        if origin < count:
            return origin
        return -1 if key is not None else origin % max(1, count)


class Publisher(Courier):
    """Sends the dead letters of one consumer to their topics; used by one thread."""

    def __init__(self, consumer: conf.Consumer, group_id: str) -> None:
        super().__init__()
        self.consumer = consumer
        self.group_id = group_id

    def publish(self, letter: DeadLetter, message: Message, origin: str | None = None) -> Published | None:
        """Send the letter of `message`, which is stored already, and return what to wait for; None: nothing.

        Nothing is raised: what cannot be sent yet is a delivery that failed, to be sent again. `origin` is the topic
        whose dead-letter topic gets it; None: that of the message.
        """
        topic = topic_for(self.consumer, origin or message.topic)
        if topic is None or _came_back(letter, message):
            return None
        record = _record_of(self.consumer, self.group_id, letter, message)
        return Published(*self.carry(_chosen(self.consumer).name, topic, record))


def _came_back(letter: DeadLetter, message: Message) -> bool:
    """Tell whether the message is a replay of the letter, which readers of the topic have seen."""
    return (letter.topic, letter.partition, letter.offset) != (message.topic, message.partition, message.offset)


def _record_of(consumer: conf.Consumer, group_id: str, letter: DeadLetter, message: Message) -> Wire:
    timestamp = message.timestamp_ms
    facts = {
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": timestamp,
        "group": group_id,
        "consumer": consumer.name,
        "handler": letter.handler or None,
        "category": letter.category,
        "error-type": letter.error_type,
        "error-message": letter.error_message[:_ERROR_CHARACTERS],
        "attempts": letter.attempts,
    }
    ours = [(f"{OURS}{name}", str(fact).encode()) for name, fact in facts.items() if fact is not None]
    at = timestamp if timestamp is not None and timestamp > 0 else 0
    return message.raw_value, message.raw_key, message.partition, [*message.headers, *ours], at


Problem = tuple[str, str, str]
"""Check id, sentence and hint."""
_Way = tuple[conf.Consumer, str, str]
"""A consumer, a topic that it handles, and the topic that its dead letters go to, as Kafka knows them."""


def problems(consumer: str | None = None) -> list[Problem]:
    """Return what keeps the dead letters of a consumer (None: of all that are enabled) from their topics."""
    settings = conf.kafka()
    if settings.dead_letters.topic is None:
        return []
    ways = list(_ways())
    mine = [way for way in ways if way[0].name == consumer or (consumer is None and way[0].enabled)]
    by_pattern = (one for one in settings.consumers.values() if subscriptions.patterns(one.name))
    who = {way[0].name: way[0] for way in mine}
    who |= {one.name: one for one in by_pattern if one.name == consumer or (consumer is None and one.enabled)}
    found = [problem for one in who.values() for problem in _of_producer(one)]
    found += [problem for way in mine for problem in _of_name(*way)]
    return found or [problem for way in mine for problem in _of_circle(way, ways)]


def _ways() -> Iterator[_Way]:
    settings = conf.kafka()
    for consumer in settings.consumers.values():
        for topic in handlers.topics(consumer.name):
            # What is imported never becomes a dead letter of ours.
            if topic not in consumer.topics or consumer.topics[topic].imports is None:
                origin = settings.prefixed(topic)
                yield consumer, origin, topic_for(consumer, origin) or ""


def _of_producer(consumer: conf.Consumer) -> Iterator[Problem]:
    settings = conf.kafka()
    letters, path = settings.dead_letters, 'KAFKA["dead_letters"]["producer"]'
    if letters.producer is not None and letters.producer not in settings.producers:
        sentence = f"{path} is {letters.producer!r}; KAFKA has the producers: {', '.join(settings.producers)}."
        yield "E030", sentence, "Mend the name, or leave it out."
        return
    try:
        chosen = _chosen(consumer)
    except ConfigurationError as error:
        yield "E030", f"The dead letters of consumer {consumer.name!r} have no producer: {error}", "Declare one."
        return
    if not chosen.enabled:
        yield "E030", f"{path} is {chosen.name!r}, which is switched off.", "Name another one, or switch it on."
    elif chosen.effective_acks == "0":
        sentence = f'Producer {chosen.name!r} would send dead letters to their topic with acks "0".'
        yield "E030", sentence, f'Nothing would confirm them: name another one in {path}, or give it acks "all".'


def _of_name(consumer: conf.Consumer, topic: str, target: str) -> Iterator[Problem]:
    try:
        conf.topic_name(target.removeprefix(conf.kafka().topic_prefix))
    except ConfigurationError as error:
        sentence = f"The dead letters of consumer {consumer.name!r} for {topic!r} would go to an illegal topic: {error}"
        yield "E031", sentence, 'Shorten KAFKA["dead_letters"]["topic"].'


def goal_of(consumer: conf.Consumer) -> str:
    """Return the cluster that the dead letters of a consumer go to."""
    settings = conf.kafka()
    named = settings.producers.get(settings.dead_letters.producer or "")
    return named.cluster if named else consumer.cluster


def letters_producer(consumer: conf.Consumer) -> conf.Producer | None:
    """Return the producer that sends the dead letters of a consumer to their topic; None when there is none."""
    try:
        return _chosen(consumer)
    except ConfigurationError:
        return None


def retry_producer(cluster: str) -> conf.Producer | None:
    """Return the producer that sends to the retry topics of a cluster; None when there is none."""
    try:
        return producer_for(cluster)
    except ConfigurationError:
        return None


def _of_circle(way: _Way, ways: list[_Way]) -> Iterator[Problem]:
    """Tell whether what fails in a topic comes back to it as a dead letter."""
    consumer, topic, target = way
    start = consumer.cluster, topic
    reached: set[tuple[str, str]] = set()
    new = {(goal_of(consumer), target)}
    while new:
        reached |= new
        ahead = {(_chosen(other).cluster, goal) for other, origin, goal in ways if (other.cluster, origin) in reached}
        new = ahead - reached
    if start in reached:
        sentence = (
            f"The dead letters of consumer {consumer.name!r} for {topic!r} go to {target!r} and come back from there: "
            "a message that always fails would go round for ever."
        )
        yield "E032", sentence, 'Put {topic} into KAFKA["dead_letters"]["topic"], or do not handle that topic.'


def doubled() -> list[Problem]:
    """Return a warning for each topic that is imported and has dead letters of this project in it."""
    settings = conf.kafka()
    found: list[Problem] = []
    if settings.dead_letters.topic is None:
        return found
    targets = {(goal_of(one), target) for one, _topic, target in _ways()}
    for consumer in settings.consumers.values():
        for name, topic in consumer.topics.items():
            if topic.imports and (consumer.cluster, settings.prefixed(name)) in targets:
                sentence = f"Consumer {consumer.name!r} imports {name!r}, where dead letters of this project go."
                found.append(("W030", sentence, "Each of them would be there twice: leave it out."))
    return found
