"""Attempts that failed: at which message, which in number, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .. import retries
from ..dead_letters.failures import MOST_EARLIER, Failure
from ..exceptions import NoHandler
from ..handlers import TopicHandlers
from ..messages import Message
from .forwarding import read_failures
from .slices import Slice


def message_at(piece: Slice, found: TopicHandlers, index: int) -> Message:
    """Return a message with the number of the attempt that is made at it."""
    tried = piece.tried_at(index)
    attempt = tried.attempts + 1 if tried else 1
    if found.retry is None:
        return Message(piece.messages[index], found.decoder, attempt)
    returned = found.retry.returned(piece.messages[index])
    return Message(returned, found.decoder, returned.attempts + attempt)


def earlier(piece: Slice, found: TopicHandlers, index: int) -> Sequence[Failure]:
    """Return the failed attempts at a message before the last one; of many only the last ones."""
    tried = piece.tried_at(index)
    failures = list(tried.failures) if tried else []
    if found.retry is not None:
        returned = found.retry.returned(piece.messages[index])
        failures = [*read_failures(returned.failures, returned.attempts), *failures][-MOST_EARLIER:]
    return failures


def failure(
    found: TopicHandlers, message: Message, error: BaseException, category: str, before: Iterable[Failure] = ()
) -> Failure:
    """Return what is kept of a failed attempt, and of those before it."""
    return Failure.of(
        retries.blamed(error),
        category=category,
        handler=_path(found, message),
        attempt=message.attempt,
        earlier=before,
    )


def _path(found: TopicHandlers, message: Message) -> str:
    try:
        return found.match(message).path
    except (NoHandler, UnicodeError):
        return ""
