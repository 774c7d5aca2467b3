"""Handling where messages are committed before: no attempt is made that could repeat an effect."""

from __future__ import annotations

from .. import categories, retries
from ..categories import UnknownCommit
from ..exceptions import Skip
from ..execution import Execution
from ..gathering import here
from ..handlers import TopicHandlers
from ..retries import DeadLetter
from ..signals import handler_failed
from .attempts import Attempt
from .handling import HandlerThread
from .lane import Lane
from .settling import Settler
from .slices import Slice


class CommittedSettler(Settler):
    """Gives up where an effect may be there already: after a COMMIT without answer, or without a transaction."""

    def failed(self, lane: Lane, piece: Slice, found: TopicHandlers, index: int, error: Exception) -> float | None:
        """Do what is decided about a failed attempt, unless its effects may have stayed."""
        # A record of a message that is handled is no attempt at it.
        if not self._stayed(error) or index < piece.done or isinstance(error, Skip):
            return super().failed(lane, piece, found, index, error)
        self._give_up(Attempt(lane, piece, found, index, error))
        return None

    def failed_together(
        self, lane: Lane, piece: Slice, found: TopicHandlers, error: Exception, until: int
    ) -> float | None:
        """Have messages that failed together tried by halves, unless the effects of some may have stayed."""
        if not self._stayed(error):
            return super().failed_together(lane, piece, found, error, until)
        first = piece.done
        for index in range(first, until):
            attempt = Attempt(lane, piece, found, index, error)
            if handler_failed.receivers:
                handler_failed.send_robust(self.consumer.name, message=attempt.message, error=error)
            # A COMMIT without answer is one thing that went wrong, and no handler's fault.
            self._give_up(attempt, surges=index == first or not isinstance(error, UnknownCommit))
        return None

    def _stayed(self, error: Exception) -> bool:
        return self.consumer.transaction == "none" or isinstance(error, UnknownCommit)

    def _give_up(self, attempt: Attempt, *, surges: bool = True) -> None:
        category = categories.of(retries.blamed(attempt.error), categories.own()).category
        if surges and self._surges(attempt.error, DeadLetter(category)):
            self.lanes.interrupt()
        here.forget()
        self.letters.keep(attempt, category)


class CommittedExecution(Execution):
    """Runs handlers of messages that are committed."""

    after_unknown_commit = "it may be handled, and becomes a dead letter"
    repeats = False


class CommittedThread(HandlerThread):
    """Works on lanes whose messages are committed."""

    execution_kind, settler_kind = CommittedExecution, CommittedSettler
