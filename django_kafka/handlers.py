"""Which callable a message goes to, resolved and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from django.core.signals import setting_changed

from . import conditions, conf, coroutines, deadlines, envelopes, serializers, subscriptions, upcasters
from .conditions import Condition
from .coroutines import Coroutine, on_an_event_loop
from .envelopes.opening import OpeningDecoder
from .events import Converter
from .exceptions import BatchFailed, ConfigurationError, NoHandler
from .messages import Message, Messages, RawMessage
from .registry import (
    HandlerFunction,
    Registration,
    batch_of,
    forget,
    kafka_handler,
    on_change,
    problems,
    registrations,
    subscribe,
)
from .retry_topics import RetryTopic, of_topic
from .signatures import taken
from .upcasters import UpcastingDecoder, Versions, upcaster

__all__ = [
    "Handler",
    "HandlerFunction",
    "TopicHandlers",
    "for_topic",
    "forget",
    "kafka_handler",
    "limited",
    "named",
    "on_an_event_loop",
    "problems",
    "reads",
    "registrations",
    "resolve_all",
    "retry_topics",
    "subscribe",
    "topics",
    "upcaster",
]


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler that is resolved and checked."""

    path: str
    """Its dotted path."""
    call: Callable[[Message], Any]
    """Runs it on a message, held to its time limit; what it returns is ignored."""
    timeout: float | None = None
    """How many seconds it may run; None: for ever."""
    coroutine: Coroutine | None = None
    """The same to be awaited, when it is `async def`; `call` runs that on an event loop of its own."""
    call_all: Callable[[Messages], Any] | None = None
    """Runs it on a list; None: it takes one message. `call` gives it a list of one."""
    most: int | None = None
    """How many messages its list has at most; None: as many as came together."""
    dry_run: bool = False
    """Whether it may run in a transaction that is rolled back."""
    event: Converter | None = None
    """What makes an event of the type that it wants of a decoded value; None: it takes any value."""


@dataclass(frozen=True, slots=True)
class TopicHandlers:
    """All handlers of one consumer for one topic, and how its messages are read."""

    topic: str
    """The topic as Kafka knows it, prefix included."""
    decoder: serializers.TopicDecoder
    """Reads keys and values."""
    conditional: tuple[tuple[Condition, Handler], ...]
    """Conditions and handlers; the first that holds wins."""
    default: Handler | None
    """Takes what no condition matches."""
    imports: str | None = None
    """The format of its messages when they are imported as dead letters; None: they are handled."""
    retry: RetryTopic | None = None
    """The retry topic whose messages these are, of the topic named above; None: they are read from that itself."""
    lists: bool = field(init=False)
    """Whether one of them takes lists."""

    def __post_init__(self) -> None:
        mine = [handler for _wanted, handler in self.conditional] + ([self.default] if self.default else [])
        object.__setattr__(self, "lists", any(one.call_all is not None for one in mine))

    def original(self, raw: RawMessage) -> RawMessage:
        """Return what a message was when it first came."""
        return raw if self.retry is None else self.retry.returned(raw)

    def match(self, message: Message) -> Handler:
        """Return the handler for `message`.

        Raises `NoHandler`, and what a condition raises: `DecodeError` when its value cannot be read.
        """
        for wants, handler in self.conditional:
            if wants(message):
                return handler
        # Who handles other versions of it does not expect this one where everything else goes.
        if isinstance(self.decoder, UpcastingDecoder) and (reason := self.decoder.refusal(message)):
            raise NoHandler(f"No handler of this consumer takes this message of {self.topic!r}: {reason}.")
        if self.default is None:
            reason = "none of their conditions holds" if self.conditional else "there is none"
            raise NoHandler(f"No handler of this consumer takes this message of {self.topic!r}: {reason}.")
        return self.default


def topics(consumer: str) -> list[str]:
    """Return the topics that a consumer names, without prefix: those of settings and of its handlers.

    Those that its patterns fit come on top; `subscriptions` tells which.
    """
    return subscriptions.named(consumer)


def retry_topics(consumer: str) -> dict[str, RetryTopic]:
    """Return the retry topics that a consumer subscribes to, by name, with prefix."""
    settings = conf.consumer(consumer)
    if not conf.through_topics(settings):
        return {}
    prefixed = conf.kafka().prefixed
    own = {topic: subscriptions.settings_of(settings, prefixed(topic)) for topic in topics(consumer)}
    return {one.name: one for topic in own for one in of_topic(settings, topic, own[topic])}


def reads(consumer: str, topic: str) -> bool:
    """Tell whether a consumer reads a topic, named with its prefix: by its name, by a pattern, or for its retries."""
    return bool(subscriptions.ways(consumer, topic)) or topic in retry_topics(consumer)


_MOST_MADE = 4096
"""Topics whose handlers are kept: there are no more of settings, but topics of any name may come to fit a pattern."""
_made: dict[tuple[str, str], TopicHandlers] = {}


def for_topic(consumer: str, topic: str) -> TopicHandlers:
    """Return the resolved handlers of `consumer` for `topic`, named with its prefix; resolved once.

    A retry topic has those of the topic whose messages wait in it.

    Raises `ConfigurationError` for a handler that cannot be used.
    """
    try:
        return _made[consumer, topic]
    except KeyError:
        made = _resolve(consumer, topic)
        if len(_made) >= _MOST_MADE:
            _made.clear()
        _made[consumer, topic] = made
        return made


def decoder_for(consumer: str, topic: str) -> serializers.TopicDecoder:
    """Return what reads `topic`, named with its prefix, for `consumer`; it needs no handler to be in order."""
    settings = conf.consumer(consumer)
    retry = retry_topics(consumer).get(topic)
    origin = topic if retry is None else retry.origin
    return _decoder(settings, subscriptions.settings_of(settings, origin), origin)


def _decoder(settings: conf.Consumer, own: conf.ConsumerTopic | None, origin: str) -> serializers.TopicDecoder:
    key = serializers.of_part(settings, own, origin, "key")
    if (envelope := envelopes.of(settings, own, origin)) is not None:
        return OpeningDecoder(key, envelope, settings.max_payload)
    return serializers.TopicDecoder(key, serializers.of_part(settings, own, origin, "value"), settings.max_payload)


def _resolve(consumer: str, topic: str) -> TopicHandlers:
    if (retry := retry_topics(consumer).get(topic)) is not None:
        return replace(for_topic(consumer, retry.origin), retry=retry)
    return _resolve_by(consumer, topic, subscriptions.ways(consumer, topic))


def _resolve_by(consumer: str, topic: str, ways: Sequence[str]) -> TopicHandlers:
    """Return the handlers of a topic that is read by `ways`: its name, or patterns, each before those behind it."""
    settings = conf.consumer(consumer)
    own = next((settings.topics[way] for way in ways if way in settings.topics), None)
    decoder = _decoder(settings, own, topic)
    if own is not None and own.imports:
        return TopicHandlers(topic, decoder, (), None, own.imports)
    mine = list(_in_turn(consumer, ways))
    # A function that is registered with a limit and named in settings as well keeps it.
    registered = [one for one in registrations(consumer) if one.topic in ways]
    limits = {one.path: one.timeout for one in registered if one.timeout is not None}
    may_be_tried = {one.path for one in registered if one.dry_run}

    def usable(one: Registration) -> Handler:
        found = _usable(one, (own and own.timeout) or limits.get(one.path) or settings.timeout, settings)
        return replace(found, dry_run=True) if one.path in may_be_tried else found

    upcasting = None
    if any(one.wanted.type for one in mine):
        type_in = (own and own.type_in) or settings.type_in
        version_in = (own and own.version_in) or settings.version_in
        known = upcasters.known(mine)
        decoder = upcasting = UpcastingDecoder(decoder, Versions(type_in, version_in, known))
    conditional = tuple((conditions.of(one, upcasting), usable(one)) for one in mine if one.wanted)
    default = next((usable(one) for one in mine if not one.wanted), None)
    return TopicHandlers(topic, decoder, conditional, default)


def _in_turn(consumer: str, ways: Sequence[str]) -> Iterator[Registration]:
    """Yield what is asked for a message, one after the other; the last one may take whatever comes."""
    every = registrations(consumer)
    for way in ways:
        mine = [one for one in every if one.topic == way]
        yield from (one for one in mine if one.wanted)
        if (default := next((one for one in mine if not one.wanted), None)) is not None:
            yield default
            return


def _every(consumer: str) -> Iterator[TopicHandlers]:
    """Yield the handlers of each topic that a consumer names, and of each pattern alone."""
    prefixed = conf.kafka().prefixed
    yield from (for_topic(consumer, prefixed(topic)) for topic in topics(consumer))
    yield from (_resolve_by(consumer, prefixed(one.text), [one.text]) for one in subscriptions.patterns(consumer))


def _usable(registration: Registration, limit: float | None, consumer: conf.Consumer) -> Handler:
    function = registration.resolve()
    if not callable(function):
        raise ConfigurationError(
            f"The handler {registration.path!r} is {type(function).__name__}; it must be callable."
        )
    path, batch = registration.path, batch_of(function)
    takes = taken(function, path, lists=batch is not None)
    if coroutines.is_coroutine(function):
        coroutines.refuse_transaction(consumer, path)
        if batch is not None:
            raise ConfigurationError(f"The handler {path!r} is `async def`; it cannot take lists (batch=True).")
        coroutine: Coroutine = takes.adapted(function)
        if limit is not None:
            coroutine = deadlines.limited_coroutine(coroutine, limit=limit, handler=path, consumer=consumer.name)
        return Handler(path, coroutines.in_a_thread(coroutine), limit, coroutine, event=takes.converter)
    if batch is not None:
        call_all = takes.adapted_to_list(function)
        made = _of_lists(call_all, path, registration.batch_size or batch.batch_size, limit, consumer)
        return replace(made, event=takes.converter)
    call = takes.adapted(function)
    if limit is not None:
        call = deadlines.limited(
            call, limit=limit, handler=path, consumer=consumer.name, database=consumer.database,
            shared=consumer.transaction == "batch",
        )  # fmt: skip
    return Handler(path, call, limit, event=takes.converter)


def _of_lists(
    function: Callable[[Messages], Any], path: str, most: int | None, limit: float | None, consumer: conf.Consumer
) -> Handler:
    if limit is None:
        return Handler(path, partial(_alone, function), call_all=function, most=most)
    name, database = consumer.name, consumer.database
    return Handler(
        path,
        deadlines.limited(partial(_alone, function), limit=limit, handler=path, consumer=name, database=database),
        limit,
        call_all=deadlines.limited_list(function, limit=limit, handler=path, consumer=name, database=database),
        most=most,
    )


def _alone(function: Callable[[Messages], Any], message: Message) -> Any:
    """Run a handler of lists on one message: what it says of that is what it raises."""
    try:
        return function(Messages.alone(message))
    except BatchFailed as failed:
        (error,) = named(failed, [message]).values()
    # Not where it was caught: it would be taken for an error that came of the other.
    raise error


def named(failed: BatchFailed, messages: Sequence[Message]) -> dict[int, Exception]:
    """Return the errors that a handler named, by the index of the message in its list.

    Raises `ValueError` when it names what it was not given.
    """
    places = {id(message): index for index, message in enumerate(messages)}
    found = {}
    for message, error in failed.failures.items():
        if (index := places.get(id(message))) is None:
            raise ValueError(f"The handler raised BatchFailed for {message!r}, which is not in the list it was given.")
        found[index] = error
    return dict(sorted(found.items()))


def resolve_all(consumer: str) -> None:
    """Resolve every handler of `consumer`, so that a wrong one is an error now and not at its first message."""
    if not registrations(consumer) and not any(one.imports for one in conf.consumer(consumer).topics.values()):
        raise ConfigurationError(
            f'Consumer {consumer!r} has no handler: name one in KAFKA["consumers"][{consumer!r}], or register one with '
            "@kafka_handler in an app's kafka_handlers.py."
        )
    for made in _every(consumer):
        if made.decoder.encrypts:
            envelopes.encryption.check_keys()
        opening = made.decoder._decoder if isinstance(made.decoder, UpcastingDecoder) else made.decoder
        if isinstance(opening, OpeningDecoder) and opening.envelope.claim_check:
            envelopes.claim_check.storage_of(opening.envelope.claim_check.storage)
    on_an_event_loop(consumer)


def limited(consumer: str) -> bool:
    """Tell whether a handler of `consumer` has a time limit."""
    found = [handler for one in _every(consumer) for handler in (one.default, *(pair[1] for pair in one.conditional))]
    return any(handler is not None and handler.timeout is not None for handler in found)


def _forget_resolved(*, setting: str, **_event: Any) -> None:
    if setting == "KAFKA":
        _made.clear()


setting_changed.connect(_forget_resolved)
on_change.append(_made.clear)
