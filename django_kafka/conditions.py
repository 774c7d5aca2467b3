"""What a message has to be for a handler to get it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django.utils.module_loading import import_string

from . import conf, coroutines
from .exceptions import ConfigurationError
from .messages import Message
from .registry import Registration, registrations
from .upcasters import UpcastingDecoder, field_of

Condition = Callable[[Message], Any]
"""Tells whether a handler wants a message; it may raise what reading that raises."""


def of(registration: Registration, decoder: UpcastingDecoder | None) -> Condition:
    """Return the condition of a handler that has one; `decoder` knows types, where it asks for one.

    Raises `ConfigurationError` for a predicate that cannot be used.
    """
    wanted = registration.wanted
    found: list[Condition] = []
    if wanted.header:
        found.append(_headers({name: value.encode() for name, value in wanted.header}))
    if wanted.type:
        assert decoder is not None
        found.append(_kind(decoder, wanted.type, wanted.version))
    if wanted.fields:
        found.append(_fields(dict(wanted.fields)))
    if wanted.when:
        found.append(_predicate(registration))
    return found[0] if len(found) == 1 else lambda message: all(one(message) for one in found)


def _headers(wanted: Mapping[str, bytes]) -> Condition:
    pairs = tuple(wanted.items())
    return lambda message: all(message.header(name) == value for name, value in pairs)


def _kind(decoder: UpcastingDecoder, name: str, version: int | None) -> Condition:
    def is_it(message: Message) -> bool:
        kind = decoder.kind(message)
        if kind.type != name:
            return False
        target = decoder.versions.target(kind)
        # One for any version has what those for certain versions do not take.
        return target == version

    return is_it


def _fields(wanted: Mapping[str, Any]) -> Condition:
    pairs = tuple(wanted.items())
    return lambda message: all(_same(field_of(message.value, path), value) for path, value in pairs)


def _same(found: Any, wanted: Any) -> bool:
    # True is 1 to Python.
    return bool(found == wanted and isinstance(found, bool) == isinstance(wanted, bool))


def problems() -> Iterator[tuple[str, str, str]]:
    """Yield (check id, sentence, hint) for predicates that cannot be used."""
    found = dict[str, None]()
    for consumer in conf.kafka().consumers.values():
        # Those that settings name are imported by another check, which says where they stand.
        named = {rule.when for topic in consumer.topics.values() for rule in topic.dispatch}
        for registration in registrations(consumer.name):
            wanted = registration.wanted
            if not wanted.when or (wanted.when in named and not _is_coroutine(registration)):
                continue
            try:
                _predicate(registration)
            except ConfigurationError as error:
                found[str(error)] = None
    for sentence in found:
        yield "E029", sentence, "It takes a message and returns whether its handler wants it."


def _is_coroutine(registration: Registration) -> bool:
    try:
        return coroutines.is_coroutine(registration.wanted.predicate or import_string(registration.wanted.when))
    except Exception:  # noqa: BLE001  # a module may fail in any way
        return False


def _predicate(registration: Registration) -> Condition:
    path, found = registration.wanted.when, registration.wanted.predicate
    if found is None:
        try:
            found = import_string(path)
        except Exception as error:  # a module may fail in any way
            raise ConfigurationError(
                f"The condition {path!r} of the handler {registration.path!r} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
    if not callable(found) or coroutines.is_coroutine(found):
        raise ConfigurationError(
            f"The condition {path!r} of the handler {registration.path!r} must be a function that takes a message."
        )
    return found
