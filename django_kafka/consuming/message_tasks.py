"""Messages as tasks of an event loop: what runs one, in which context, and what became of it."""

from __future__ import annotations

import asyncio
import sys
from contextvars import Context
from typing import Any

from .. import conf, coroutines, correlation, tracing
from ..coroutines import Coroutine
from ..exceptions import Skip
from ..gathering import Gathered, gathered_by_context
from ..handlers import Handler, TopicHandlers
from ..messages import Message
from ..signals import handler_failed, message_handled, message_handling
from .slices import Slice

# Until its first wait a message runs at once, without a round of the loop.
_AT_ONCE: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}


def message_of(piece: Slice, found: TopicHandlers) -> Message:
    """Return the next message of a slice, with the number of this attempt."""
    index = piece.done
    raw, number = piece.messages[index], 1
    if piece.tried is not None and (tried := piece.tried_at(index)) is not None:
        number += tried.attempts
    if found.retry is None:
        return Message(raw, found.decoder, number)
    returned = found.retry.returned(raw)
    return Message(returned, found.decoder, returned.attempts + number)


def callable_for(consumer: str, found: TopicHandlers) -> Coroutine:
    """Return what runs messages of one topic, as short as listeners allow; as `Execution.callable_for` does."""
    traced = tracing.on()
    observed = message_handling.receivers or message_handled.receivers or handler_failed.receivers
    if not (observed or traced or found.conditional or found.default is None):
        assert found.default.coroutine is not None
        return found.default.coroutine

    async def run(message: Message) -> None:
        handler = found.match(message)
        if traced:
            with tracing.handling(conf.consumer(consumer), message, handler.path):
                await attempt(message, handler)
        else:
            await attempt(message, handler)

    async def attempt(message: Message, handler: Handler) -> None:
        assert handler.coroutine is not None
        if message_handling.receivers:
            await message_handling.asend_robust(consumer, message=message)
        try:
            await handler.coroutine(message)
        except Exception as error:
            if handler_failed.receivers and not isinstance(error, Skip):
                await handler_failed.asend_robust(consumer, message=message, error=error)
            raise
        if message_handled.receivers:
            await message_handled.asend_robust(consumer, message=message)

    return run


def begin(
    loop: asyncio.AbstractEventLoop, call: Coroutine, message: Message, gathered: Gathered, base: Context
) -> asyncio.Task[BaseException | None]:
    """Run a message in a task and in a copy of `base`; what it produces is gathered there."""
    context = base.copy()
    context.run(_enter, message, gathered)
    return asyncio.Task(coroutines.attempt(call, message), loop=loop, context=context, **_AT_ONCE)


def _enter(message: Message, gathered: Gathered) -> None:
    gathered_by_context.set(gathered)
    correlation.follow(message)


def result_of(task: asyncio.Task[BaseException | None]) -> BaseException | None:
    """Return what the message of a task that is done failed with."""
    try:
        return task.result()
    except asyncio.CancelledError as error:  # a handler cancelled its task and came back
        return coroutines.cancelled(error)
