"""Handlers that are `async def`: which ones they are, what they ask of their consumer, and one run of one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from asgiref.sync import async_to_sync

from . import conf
from .exceptions import ConfigurationError, HandlerCancelled
from .messages import Message
from .registry import registrations

Coroutine = Callable[[Message], Awaitable[Any]]
"""A handler that is `async def`, as a callable of one message."""


def is_coroutine(function: object) -> bool:
    """Tell whether calling a handler returns something to be awaited: it is `async def`, or has such a `__call__`."""
    return any(inspect.iscoroutinefunction(one) for one in (function, type(function).__call__))


async def attempt(call: Coroutine, message: Message) -> BaseException | None:
    """Run a handler on a message and return what it raises.

    Whatever it is: an event loop treats some errors as its own. One that cancels itself has failed like others.
    """
    try:
        await call(message)
    except asyncio.CancelledError as error:
        return cancelled(error)
    except BaseException as error:  # noqa: BLE001  # who runs it decides
        return error
    return None


def cancelled(error: asyncio.CancelledError) -> HandlerCancelled:
    """Return the failure of a handler that was cancelled."""
    failure = HandlerCancelled("The handler was cancelled, by itself or by what it awaited.")
    failure.__cause__ = error
    return failure


def in_a_thread(call: Coroutine) -> Callable[[Message], None]:
    """Return what runs a handler to its end from a thread, on an event loop of its own, as replays and tests do."""

    def run(message: Message) -> None:
        try:
            error = async_to_sync(attempt)(call, message)
        except asyncio.CancelledError as late:  # by itself, just before it came back
            error = cancelled(late)
        if error is not None:
            raise error

    return run


def refuse_transaction(consumer: conf.Consumer, path: str) -> None:
    """Raise `ConfigurationError` when an `async def` handler would have to run in a transaction."""
    if sentence := _of_transaction(consumer, path):
        raise ConfigurationError(" ".join(sentence))


def _of_transaction(consumer: conf.Consumer, path: str) -> tuple[str, str] | None:
    if consumer.transaction == "none":
        return None
    place = f'KAFKA["consumers"]["{consumer.name}"]'
    if consumer.guarantee == "effect_once":
        sentence = f'The handler {path!r} is `async def`, and {place}["guarantee"] is "effect_once".'
        return sentence, 'That commits offsets in the transaction of a handler: make it a plain "def".'
    sentence = f'The handler {path!r} is `async def`, and {place}["transaction"] is {consumer.transaction!r}.'
    return sentence, 'Django has no transactions in coroutines: set "transaction": "none".'


def _of_mixture(consumer: conf.Consumer, kinds: dict[bool, str]) -> tuple[str, str]:
    sentence = (
        f"Of the handlers of consumer {consumer.name!r} {kinds[True]!r} is `async def`, and {kinds[False]!r} is not."
    )
    return sentence, "Make them alike, or give them a consumer each: one runs on an event loop, the other in threads."


def _kinds(consumer: str) -> dict[bool, str]:
    """Return the path of one handler of each kind that a consumer has; those that lead nowhere are left out."""
    found: dict[bool, str] = {}
    for registration in registrations(consumer):
        try:
            function = registration.resolve()
        except Exception:  # noqa: BLE001  # a module may fail in any way; another check says so
            continue
        found.setdefault(is_coroutine(function), registration.path)
    return found


def on_an_event_loop(consumer: str) -> bool:
    """Tell whether the handlers of a consumer are `async def`. Raises `ConfigurationError` when only some are."""
    kinds = _kinds(consumer)
    if len(kinds) > 1:
        raise ConfigurationError(" ".join(_of_mixture(conf.consumer(consumer), kinds)))
    return True in kinds


def problems() -> Iterator[tuple[str, str, str]]:
    """Yield (check id, sentence, hint) for handlers that are `async def` where they cannot be."""
    for consumer in conf.kafka().consumers.values():
        kinds = _kinds(consumer.name)
        if len(kinds) > 1:
            yield "E025", *_of_mixture(consumer, kinds)
        elif True in kinds and (found := _of_transaction(consumer, kinds[True])):
            yield "E024", *found
