"""Which handlers there are: registered by decorator, by `subscribe`, or named in settings."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from django.utils.module_loading import import_string

from . import conf
from .exceptions import ConfigurationError
from .messages import Message

HandlerFunction = Callable[..., Any]
Predicate = Callable[[Message], Any]
F = TypeVar("F", bound=HandlerFunction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which messages of a topic a handler wants: those for which all of this holds; without any of it, every one."""

    header: tuple[tuple[str, str], ...] = ()
    """Headers and their values."""
    fields: tuple[tuple[str, str | int | bool], ...] = ()
    """Paths of fields of the value, and what they have to be."""
    type: str = ""
    """What the message is, where settings say that it stands."""
    version: int | None = None
    """The version of that type that the handler knows; None: whatever others do not take."""
    when: str = ""
    """The dotted path of a predicate."""
    predicate: Predicate | None = field(default=None, compare=False)
    """The same, when it was given as a function."""

    def __bool__(self) -> bool:
        return bool(self.header or self.fields or self.type or self.when)

    def __str__(self) -> str:
        parts = {"header": dict(self.header), "field": dict(self.fields), "type": self.type, "version": self.version}
        return ", ".join(f"{name} {part}" for name, part in {**parts, "when": self.when}.items() if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One handler and the messages it wants."""

    consumer: str
    """The consumer's name."""
    topic: str
    """The topic, or a pattern of topics, without prefix."""
    wanted: Wanted = Wanted()
    """Which messages of that."""
    path: str
    """The dotted path of the callable: what is shown, stored and looked up; never taken from a message or a form."""
    timeout: float | None = field(default=None, compare=False)
    """How many seconds it may run, by its own registration; None: as the consumer has it."""
    batch: bool = field(default=False, compare=False)
    """Whether it was registered as one that takes lists."""
    dry_run: bool = field(default=False, compare=False)
    """Whether it may run in a transaction that is rolled back: it has effects there and nowhere else."""
    batch_size: int | None = field(default=None, compare=False)
    """How many messages such a list has at most; None: as many as came together."""
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


_registered: list[Registration] = []
_changed = threading.Lock()
on_change: list[Callable[[], object]] = []
"""Called when a handler was registered or forgotten."""


def kafka_handler(
    *,
    topics: str | Iterable[str],
    consumer: str | None = None,
    header: Mapping[str, str] | None = None,
    field: Mapping[str, str | int | bool] | None = None,
    type: str = "",
    version: int | None = None,
    when: Predicate | str | None = None,
    batch: bool = False,
    batch_size: int | None = None,
    timeout: float | str | timedelta | None = None,
    dry_run: bool = False,
) -> Callable[[F], F]:
    """Register the decorated function for `topics` of `consumer` (None: the default one): names, and "^…" patterns.

    With `header` it takes only messages that have these headers, with `field` those whose values have these fields, by
    paths with dots, with `type` those that say that they are this, in whichever `version` an upcaster brings to that
    which is named here, and with `when` those for which a function of a message, or one at a dotted path, is true: it
    may be asked several times. `timeout` is how long it may run: seconds, "30s", or
    a timedelta; None: as the consumer has it; a "timeout" of the topic in settings goes before it. The function takes
    a `Message`, or its decoded value and the `Message`; with `batch` it takes a list of messages of one partition, of
    `batch_size` at most. `dry_run` says that all its effects are in its transaction or are records that it produces, so
    that people may try it on a dead letter without any of them taking place. Put handlers into
    `<app>/kafka_handlers.py`, which is imported when Django starts.
    """
    if batch_size is not None:
        if not batch:
            raise ConfigurationError(f"batch_size is {batch_size!r}, but only a handler with batch=True takes a list.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigurationError(f"batch_size is {batch_size!r}; allowed: None, or a number of messages from 1.")
    wanted = _wanted(header, field, type, version, when)
    limit = None if timeout is None else conf.parse_duration(timeout, "timeout", least=0.001)

    def register(function: F) -> F:
        _register(consumer, topics, function, wanted, limit, batch=batch, batch_size=batch_size, dry_run=dry_run)
        return function

    return register


def subscribe(topics: str | Iterable[str], handler: HandlerFunction | str, *, consumer: str | None = None) -> None:
    """Register `handler`, a callable or a dotted path, for `topics` of `consumer` (None: the default one)."""
    _register(consumer, topics, handler, Wanted())


def _register(
    consumer: str | None,
    topics: str | Iterable[str],
    handler: HandlerFunction | str,
    wanted: Wanted,
    timeout: float | None = None,
    *,
    batch: bool = False,
    batch_size: int | None = None,
    dry_run: bool = False,
) -> None:
    path = _path(handler)
    with _changed:
        for topic in [topics] if isinstance(topics, str) else topics:
            registration = Registration(
                consumer=consumer or "",
                topic=conf.subscription_name(topic),
                wanted=wanted,
                path=path,
                timeout=timeout,
                batch=batch,
                batch_size=batch_size,
                dry_run=dry_run,
                function=None if isinstance(handler, str) else handler,
            )
            if not any(_same(registration, one) for one in _registered):
                _registered.append(registration)
        changed()


def changed() -> None:
    """Tell whoever has resolved something that it is to be resolved anew."""
    for tell in on_change:
        tell()


def _wanted(
    header: Mapping[str, str] | None,
    fields: Mapping[str, str | int | bool] | None,
    type: str,
    version: int | None,
    when: Predicate | str | None,
) -> Wanted:
    if version is not None:
        if not type:
            raise ConfigurationError(f"version is {version!r}, but there is no type: say of what.")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ConfigurationError(f"version is {version!r}; allowed: None, or a whole number from 1.")
    if not isinstance(type, str):
        raise ConfigurationError(f"type is of type {_kind(type)}; allowed: the name of a type.")
    _check_pairs("header", header, "names of headers and their texts", str)
    _check_pairs("field", fields, "paths of fields and texts, whole numbers, True or False", str, int)
    return Wanted(
        header=tuple(sorted((header or {}).items())),
        fields=tuple(sorted((fields or {}).items())),
        type=type,
        version=version,
        when="" if when is None else _path(when),
        predicate=when if callable(when) else None,
    )


def _check_pairs(name: str, given: Any, allowed: str, *kinds: builtins.type) -> None:
    """Raise `ConfigurationError` for what a decorator was given that no message could be compared with."""
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{name} is of type {_kind(given)}; allowed: a dict of {allowed}.")
    for key, value in given.items():
        if not (isinstance(key, str) and isinstance(value, kinds)):
            kind = _kind(value) if isinstance(key, str) else _kind(key)
            raise ConfigurationError(f"{name} has {key!r} with something of type {kind}; allowed: {allowed}.")


def _kind(value: object) -> str:
    return builtins.type(value).__name__


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
        changed()


def registrations(consumer: str) -> list[Registration]:
    """Return what settings and decorators register for one consumer, settings first."""
    settings = conf.consumer(consumer)
    found = []
    for topic in settings.topics.values():
        if topic.imports:
            continue
        for rule in topic.dispatch:
            wanted = _wanted(rule.header, rule.fields, rule.type, rule.version, rule.when or None)
            found.append(
                Registration(
                    consumer=consumer, topic=topic.name, wanted=wanted, path=rule.handler, dry_run=rule.dry_run
                )
            )
        if path := topic.handler or settings.handler:
            found.append(Registration(consumer=consumer, topic=topic.name, path=path, dry_run=topic.dry_run))
    default = conf.kafka().default_consumer
    found += [one for one in _registered if (one.consumer or default) == consumer]
    return found


def batch_of(function: HandlerFunction) -> Registration | None:
    """Return where a function is registered as one that takes lists, whoever calls it; None: it takes a message."""
    return next((one for one in _registered if one.batch and one.function is function), None)


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
        taken: dict[tuple[str, Wanted], Registration] = {}
        for one in registrations(consumer):
            first = taken.setdefault((one.topic, one.wanted), one)
            other = first.path
            if other != one.path or ("<" in other and first.function is not one.function):
                what = f"{one.topic!r}" + (f" with {one.wanted}" if one.wanted else "")
                sentence = f"Consumer {consumer!r} has two handlers for {what}: {other!r} and {one.path!r}."
                found.append(
                    (
                        "E021",
                        sentence,
                        "A message goes to one handler; a second consumer with a group of its own gets it too.",
                    )
                )
    return found
