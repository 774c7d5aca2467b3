"""Attempts that failed: at which message, which in number, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .. import retries
from ..dead_letters.failures import MOST_EARLIER, Failure
from ..handlers import TopicHandlers
from ..messages import Message
from .forwarding import read_failures
from .lane import Lane
from .slices import Slice


@dataclass(slots=True)
class Attempt:
    """An attempt that failed."""

    lane: Lane
    piece: Slice
    found: TopicHandlers
    index: int
    """The place of its message in the slice."""
    error: Exception
    message: Message = field(init=False)
    """The message, with the number of this attempt."""

    def __post_init__(self) -> None:
        tried = self.piece.tried_at(self.index)
        number = tried.attempts + 1 if tried else 1
        raw = self.piece.messages[self.index]
        if self.found.retry is None:
            self.message = Message(raw, self.found.decoder, number)
        else:
            returned = self.found.retry.returned(raw)
            self.message = Message(returned, self.found.decoder, returned.attempts + number)

    def earlier(self) -> Sequence[Failure]:
        """Return the failed attempts at the message before this one; of many only the last ones."""
        tried = self.piece.tried_at(self.index)
        failures = list(tried.failures) if tried else []
        if self.found.retry is not None:
            returned = self.found.retry.returned(self.piece.messages[self.index])
            failures = [*read_failures(returned.failures, returned.attempts), *failures][-MOST_EARLIER:]
        return failures

    def failure(self, category: str, before: Iterable[Failure] = ()) -> Failure:
        """Return what is kept of it, and of those before it."""
        return Failure.of(
            retries.blamed(self.error),
            category=category,
            handler=self._path(),
            message=self.message,
            attempt=self.message.attempt,
            earlier=before,
        )

    def _path(self) -> str:
        try:
            return self.found.match(self.message).path
        except Exception:  # noqa: BLE001  # a condition may raise anything
            return ""


class Undivided(Exception):
    """Messages failed together, and nobody knows yet which of them is to blame."""

    def __init__(self, error: Exception, until: int) -> None:
        super().__init__(f"{type(error).__name__} up to index {until}")
        self.error = error
        """What they failed with."""
        self.until = until
        """The index in their slice before which they were."""
