"""Which callable a message goes to: registered by decorator, by `subscribe`, or named in settings."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from . import conf, deadlines, serializers
from .exceptions import ConfigurationError, NoHandler, NotAvailable
from .messages import Message, RawMessage
from .retry_topics import RetryTopic, of_topic

HandlerFunction = Callable[..., Any]
F = TypeVar("F", bound=HandlerFunction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One handler and the messages it wants."""

    consumer: str
    """The consumer's name."""
    topic: str
    """The topic, without prefix."""
    header: tuple[tuple[str, str], ...] = ()
    """Headers that the message must have, with these values; none matches every message of the topic."""
    path: str
    """The dotted path of the callable: what is shown, stored and looked up; never taken from a message or a form."""
    timeout: float | None = field(default=None, compare=False)
    """How many seconds it may run, by its own registration; None: as the consumer has it."""
    function: HandlerFunction | None = field(default=None, compare=False)
    """The callable, when it was registered as such."""

    def resolve(self) -> HandlerFunction:
        """Return the callable; raise `ConfigurationError` when the path leads nowhere."""
        if self.function is not None:
            return self.function
        try:
            found: HandlerFunction = import_string(self.path)
        except ImportError as error:
            raise ConfigurationError(
                f"The handler {self.path!r} of consumer {self.consumer!r} cannot be imported: {error}"
            ) from error
        return found


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler that is resolved and checked."""

    path: str
    """Its dotted path."""
    call: Callable[[Message], Any]
    """Runs it on a message, held to its time limit; what it returns is ignored."""
    timeout: float | None = None
    """How many seconds it may run; None: for ever."""


@dataclass(frozen=True, slots=True)
class TopicHandlers:
    """All handlers of one consumer for one topic, and how its messages are read."""

    topic: str
    """The topic as Kafka knows it, prefix included."""
    decoder: serializers.TopicDecoder
    """Reads keys and values."""
    conditional: tuple[tuple[tuple[tuple[str, bytes], ...], Handler], ...]
    """Headers and handler; the first match wins."""
    default: Handler | None
    """Takes what no condition matches."""
    imports: str | None = None
    """The format of its messages when they are imported as dead letters; None: they are handled."""
    retry: RetryTopic | None = None
    """The retry topic whose messages these are, of the topic named above; None: they are read from that itself."""

    def original(self, raw: RawMessage) -> RawMessage:
        """Return what a message was when it first came."""
        return raw if self.retry is None else self.retry.returned(raw)

    def match(self, message: Message) -> Handler:
        """Return the handler for `message`; raise `NoHandler`."""
        for wanted, handler in self.conditional:
            if all(message.header(name) == value for name, value in wanted):
                return handler
        if self.default is None:
            raise NoHandler(
                f"No handler of this consumer takes this message of {self.topic!r}: none of its headers matches."
            )
        return self.default


_registered: list[Registration] = []
_changed = threading.Lock()


def kafka_handler(
    *,
    topics: str | Iterable[str],
    consumer: str | None = None,
    header: Mapping[str, str] | None = None,
    batch: bool = False,
    timeout: float | str | timedelta | None = None,
) -> Callable[[F], F]:
    """Register the decorated function for `topics` of `consumer` (None: the default one).

    With `header` it takes only messages that have these headers. `timeout` is how long it may run: seconds, "30s", or
    a timedelta; None: as the consumer has it; a "timeout" of the topic in settings goes before it. The function takes
    a `Message`, or its decoded value and the `Message`. Put handlers into `<app>/kafka_handlers.py`, which is imported
    when Django starts.
    """
    if batch:
        raise NotAvailable("Handlers that take a list (batch=True) are not available in this version.")
    limit = None if timeout is None else conf.parse_duration(timeout, "timeout", least=0.001)

    def register(function: F) -> F:
        _register(consumer, topics, function, header, limit)
        return function

    return register


def subscribe(topics: str | Iterable[str], handler: HandlerFunction | str, *, consumer: str | None = None) -> None:
    """Register `handler`, a callable or a dotted path, for `topics` of `consumer` (None: the default one)."""
    _register(consumer, topics, handler, None)


def _register(
    consumer: str | None,
    topics: str | Iterable[str],
    handler: HandlerFunction | str,
    header: Mapping[str, str] | None,
    timeout: float | None = None,
) -> None:
    path = _path(handler)
    with _changed:
        for topic in [topics] if isinstance(topics, str) else topics:
            registration = Registration(
                consumer=consumer or "",
                topic=conf.topic_name(topic),
                header=tuple(sorted((header or {}).items())),
                path=path,
                timeout=timeout,
                function=None if isinstance(handler, str) else handler,
            )
            if not any(_same(registration, one) for one in _registered):
                _registered.append(registration)
        _made.clear()


def _same(one: Registration, other: Registration) -> bool:
    # A module that is imported again registers its functions again. Lambdas and inner functions share one path.
    return one == other and (one.function is other.function or "<" not in one.path)


def _path(handler: HandlerFunction | str) -> str:
    if isinstance(handler, str):
        return handler
    try:
        return f"{handler.__module__}.{handler.__qualname__}"
    except AttributeError:
        raise ConfigurationError(
            f"The handler {handler!r} has no name that a dead letter could be replayed by; register a function."
        ) from None


def forget(function: HandlerFunction | str) -> None:
    """Take a handler out of the registry again, as tests do."""
    path = _path(function)
    with _changed:
        _registered[:] = [one for one in _registered if one.path != path]
        _made.clear()


def registrations(consumer: str) -> list[Registration]:
    """Return what settings and decorators register for one consumer, settings first."""
    settings = conf.consumer(consumer)
    found = []
    for topic in settings.topics.values():
        if topic.imports:
            continue
        for rule in topic.dispatch:
            header = tuple(sorted(rule.header.items()))
            found.append(Registration(consumer=consumer, topic=topic.name, header=header, path=rule.handler))
        if path := topic.handler or settings.handler:
            found.append(Registration(consumer=consumer, topic=topic.name, path=path))
    default = conf.kafka().default_consumer
    found += [one for one in _registered if (one.consumer or default) == consumer]
    return found


def topics(consumer: str) -> list[str]:
    """Return the topics that a consumer subscribes to, without prefix: those of settings and of its handlers."""
    named = list(conf.consumer(consumer).topics)
    return named + [one for one in dict.fromkeys(entry.topic for entry in registrations(consumer)) if one not in named]


def retry_topics(consumer: str) -> dict[str, RetryTopic]:
    """Return the retry topics that a consumer subscribes to, by name, with prefix."""
    settings = conf.consumer(consumer)
    if not _uses_retry_topics(settings):
        return {}
    return {one.name: one for topic in topics(consumer) for one in of_topic(settings, topic)}


def _uses_retry_topics(settings: conf.Consumer) -> bool:
    own = (one.retry for one in settings.topics.values())
    return any(retry is not None and retry.mode == "topics" for retry in (settings.retry, *own))


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
        _made[consumer, topic] = made
        return made


def decoder_for(consumer: str, topic: str) -> serializers.TopicDecoder:
    """Return what reads `topic`, named with its prefix, for `consumer`; it needs no handler to be in order."""
    settings, own = _settings_of(consumer, topic)
    return serializers.TopicDecoder(
        (own and own.key_serializer) or settings.key_serializer, (own and own.serializer) or settings.serializer
    )


def _settings_of(consumer: str, topic: str) -> tuple[conf.Consumer, conf.ConsumerTopic | None]:
    settings = conf.consumer(consumer)
    retry = retry_topics(consumer).get(topic)
    origin = topic if retry is None else retry.origin
    return settings, next((one for one in settings.topics.values() if conf.kafka().prefixed(one.name) == origin), None)


def _resolve(consumer: str, topic: str) -> TopicHandlers:
    if (retry := retry_topics(consumer).get(topic)) is not None:
        return replace(for_topic(consumer, retry.origin), retry=retry)
    settings, own = _settings_of(consumer, topic)
    if own is not None and own.imports:
        return TopicHandlers(topic, decoder_for(consumer, topic), (), None, own.imports)
    mine = [one for one in registrations(consumer) if conf.kafka().prefixed(one.topic) == topic]
    # A function that is registered with a limit and named in settings as well keeps it.
    limits = {one.path: one.timeout for one in mine if one.timeout is not None}

    def usable(one: Registration) -> Handler:
        return _usable(one, (own and own.timeout) or limits.get(one.path) or settings.timeout, settings)

    decoder = decoder_for(consumer, topic)
    conditional = tuple(
        (tuple((name, value.encode()) for name, value in one.header), usable(one)) for one in mine if one.header
    )
    default = next((usable(one) for one in mine if not one.header), None)
    return TopicHandlers(topic, decoder, conditional, default)


def _usable(registration: Registration, limit: float | None, consumer: conf.Consumer) -> Handler:
    function = registration.resolve()
    if not callable(function):
        raise ConfigurationError(
            f"The handler {registration.path!r} is {type(function).__name__}; it must be callable."
        )
    # An object may have a coroutine for its call.
    if any(inspect.iscoroutinefunction(one) for one in (function, type(function).__call__)):
        raise NotAvailable(f"The handler {registration.path!r} is `async def`, which this version does not run.")
    path = registration.path
    call = _adapt(function, path)
    if limit is not None:
        call = deadlines.limited(call, limit=limit, handler=path, consumer=consumer.name, database=consumer.database)
    return Handler(path, call, limit)


def _adapt(function: HandlerFunction, path: str) -> Callable[[Message], Any]:
    """Return a callable of one message, for a function of (message) or of (event, message)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return function
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    open_ended = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    required = [one for one in positional if one.default is one.empty]
    keyword_only = [one for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    if keyword_only or len(required) > 2 or not (positional or open_ended):
        raise ConfigurationError(f"The handler {path!r} must take (message) or (event, message).")
    return partial(_with_event, function) if len(required) == 2 else function


def _with_event(function: HandlerFunction, message: Message) -> Any:
    return function(message.value, message)


def resolve_all(consumer: str) -> None:
    """Resolve every handler of `consumer`, so that a wrong one is an error now and not at its first message."""
    if not registrations(consumer) and not any(one.imports for one in conf.consumer(consumer).topics.values()):
        raise ConfigurationError(
            f'Consumer {consumer!r} has no handler: name one in KAFKA["consumers"][{consumer!r}], or register one with '
            "@kafka_handler in an app's kafka_handlers.py."
        )
    for topic in topics(consumer):
        for_topic(consumer, conf.kafka().prefixed(topic))


def limited(consumer: str) -> bool:
    """Tell whether a handler of `consumer` has a time limit."""
    made = [for_topic(consumer, conf.kafka().prefixed(topic)) for topic in topics(consumer)]
    handlers = [handler for one in made for handler in (one.default, *(pair[1] for pair in one.conditional))]
    return any(handler is not None and handler.timeout is not None for handler in handlers)


def problems() -> list[tuple[str, str, str]]:
    """Return (check id, sentence, hint) for what is wrong in the registry."""
    found = []
    consumers = conf.kafka().consumers
    for one in _registered:
        name = one.consumer or conf.kafka().default_consumer
        if name is None or name not in consumers:
            wanted = one.consumer or "default"
            sentence = f"The handler {one.path!r} is registered for consumer {wanted!r}, which KAFKA does not have."
            found.append(("E020", sentence, f"It has: {', '.join(consumers) or 'none'}."))
    for consumer, settings in consumers.items():
        importing = {topic.name for topic in settings.topics.values() if topic.imports}
        for one in registrations(consumer):
            if one.topic in importing:
                sentence = f"Consumer {consumer!r} imports {one.topic!r}; its handler {one.path!r} would never run."
                found.append(("E033", sentence, "Take one of the two away."))
        taken: dict[tuple[str, tuple[tuple[str, str], ...]], Registration] = {}
        for one in registrations(consumer):
            first = taken.setdefault((one.topic, one.header), one)
            other = first.path
            if other != one.path or ("<" in other and first.function is not one.function):
                what = f"{one.topic!r}" + (f" with {dict(one.header)}" if one.header else "")
                sentence = f"Consumer {consumer!r} has two handlers for {what}: {other!r} and {one.path!r}."
                found.append(
                    (
                        "E021",
                        sentence,
                        "A message goes to one handler; a second consumer with a group of its own gets it too.",
                    )
                )
    return found


def _forget_resolved(*, setting: str, **_event: Any) -> None:
    if setting == "KAFKA":
        _made.clear()


setting_changed.connect(_forget_resolved)
