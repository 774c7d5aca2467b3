"""What a handler takes, by its parameters and their annotations: its message, the event in that, or both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from . import conf
from .events import Converter, Unfit, typed
from .exceptions import ConfigurationError, WrongEvent
from .messages import Message, Messages
from .registry import HandlerFunction, batch_of, registrations

_EMPTY = inspect.Parameter.empty
_LISTS = (list, Sequence, Collection, Iterable)
_OURS = {"Message": Message, "Messages": Messages}
"""Names that annotations may have without an import that runs, since most import them for the type checker only."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a handler takes."""

    event: bool = False
    """Whether it takes the decoded value; of a list of messages those of all."""
    message: bool = True
    """Whether it takes the message, or the messages."""
    converter: Converter | None = None
    """What makes the event of a decoded value; None: it is taken as it is."""

    def adapted(self, function: HandlerFunction) -> Callable[[Message], Any]:
        """Return `function` as a callable of one message."""
        if not self.event:
            return function
        if self.converter is None:
            return partial(_with_event, function)
        return partial(_with_typed if self.message else _on_typed, function, self.converter)

    def adapted_to_list(self, function: HandlerFunction) -> Callable[[Messages], Any]:
        """Return `function` as a callable of a list of messages."""
        return partial(_with_list, function, self) if self.event else function


def taken(function: HandlerFunction, path: str, *, lists: bool = False) -> Taken:
    """Return what a handler takes. Raises `ConfigurationError`, which names it by its path."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return Taken()
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    open_ended = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    required = [one for one in positional if one.default is _EMPTY]
    keyword_only = [one for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is _EMPTY]
    if keyword_only or len(required) > 2 or not (positional or open_ended):
        forms = "(messages), (events) or (events, messages)" if lists else "(message), (event) or (event, message)"
        raise ConfigurationError(f"The handler {path!r} must take {forms}.")
    if not positional:
        return Taken()
    first = positional[0]
    with_message = len(required) == 2
    place = f"The handler {path!r} says that its `{first.name}` is {_written(first)}"
    kind = _annotation(function, first, place)
    try:
        return _of_list(kind, with_message) if lists else _of_one(kind, with_message)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}. {error}") from error


def _of_one(kind: Any, with_message: bool) -> Taken:
    if not with_message and (kind is _EMPTY or _is_of(kind, Message)):
        return Taken()
    return Taken(True, with_message, None if kind is _EMPTY else typed(kind))


def _of_list(kind: Any, with_messages: bool) -> Taken:
    if kind in (_EMPTY, Any) or _is_of(kind, Messages):
        return Taken(with_messages)
    item = next(iter(get_args(kind)), Any)
    if (get_origin(kind) or kind) not in _LISTS:
        raise ConfigurationError("It takes lists (batch=True), so that its events are a list of something.")
    if not with_messages and (item is Any or _is_of(item, Message)):
        return Taken()
    return Taken(True, with_messages, typed(item))


def _is_of(kind: Any, ours: type) -> bool:
    """Tell whether an annotation is of our messages: their class, one below it, or `object` and the like.

    A function that serves both kinds of handlers may say so: `Message | list[Message]`.
    """
    if get_origin(kind) in (Union, UnionType):
        ours_too = (NoneType, Message, Messages)
        return all(one in ours_too or _is_list_of_messages(one) for one in get_args(kind))
    return kind is Any or (isinstance(kind, type) and (kind in ours.__mro__ or ours in kind.__mro__))


def _is_list_of_messages(kind: Any) -> bool:
    return get_origin(kind) in _LISTS and all(_is_of(one, Message) for one in get_args(kind))


def _written(parameter: inspect.Parameter) -> str:
    found = parameter.annotation
    return repr(found) if isinstance(found, str) else getattr(found, "__qualname__", str(found))


def _annotation(function: HandlerFunction, parameter: inspect.Parameter, place: str) -> Any:
    """Return the annotation of a parameter as a type, not as the text that it may be."""
    if parameter.annotation is _EMPTY:
        return _EMPTY
    written = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        # What the module of the function has goes first.
        found = get_type_hints(written, globalns=dict(_OURS), localns=_names(function), include_extras=True)
    except Exception as error:  # an annotation may be any expression
        more = ""
        if isinstance(error, NameError):
            more = " Import it for the running program, too, not only `if TYPE_CHECKING`."
        raise ConfigurationError(f"{place}, which leads nowhere: {type(error).__name__}: {error}.{more}") from error
    return found[parameter.name]


def _names(function: Any) -> dict[str, Any]:
    """Return the names of the module that a handler was written in; it may be an object that can be called."""
    plain = inspect.unwrap(getattr(function, "func", function))
    for one in (plain, type(plain).__call__):
        if isinstance(found := getattr(inspect.unwrap(one), "__globals__", None), dict):
            return found
    return {}


def event_of(converter: Converter, message: Message) -> Any:
    """Return the event in a message; raise `WrongEvent`, or what its serializer raises."""
    return _load(converter, message.value, message)


def _load(converter: Converter, value: Any, message: Message) -> Any:
    try:
        return converter.load(value)
    except Unfit as unfit:
        fault = "it is a tombstone, or null" if value is None and not unfit.path else str(unfit)
    place = message.topic, message.partition, message.offset
    raise WrongEvent(
        f"The value of {message.topic}[{message.partition}]@{message.offset} is no {converter.name}: {fault}.",
        place=place,
    )


def _with_event(function: HandlerFunction, message: Message) -> Any:
    return function(message.value, message)


def _with_typed(function: HandlerFunction, converter: Converter, message: Message) -> Any:
    return function(event_of(converter, message), message)


def _on_typed(function: HandlerFunction, converter: Converter, message: Message) -> Any:
    return function(event_of(converter, message))


def _with_list(function: HandlerFunction, takes: Taken, messages: Messages) -> Any:
    events, converter = messages.values(), takes.converter
    if converter is not None:
        load = converter.load
        try:
            events = [load(value) for value in events]
        except Unfit:
            # Which one it is.
            events = [_load(converter, value, message) for value, message in zip(events, messages, strict=True)]
    return function(events, messages) if takes.message else function(events)


def problems() -> Iterator[tuple[str, str, str]]:
    """Yield (check id, sentence, hint) for handlers that cannot be given what they say that they take."""
    found = dict[str, None]()
    for consumer in conf.kafka().consumers.values():
        for registration in registrations(consumer.name):
            try:
                function = registration.resolve()
            except Exception:  # noqa: BLE001  # a module may fail in any way; another check says so
                continue
            if not callable(function):
                continue
            try:
                taken(function, registration.path, lists=batch_of(function) is not None)
            except ConfigurationError as error:
                found[str(error)] = None
    for sentence in found:
        yield "E026", sentence, "docs/events.md tells what a handler may take."
