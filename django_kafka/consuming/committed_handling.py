"""Handling where messages are committed before: no attempt is made that could repeat an effect."""

from __future__ import annotations

from collections.abc import Callable

from .. import categories, conf, retries
from ..categories import UnknownCommit
from ..exceptions import Skip
from ..execution import Execution
from ..gathering import here
from ..handlers import TopicHandlers
from ..retries import DeadLetter
from ..tallies import ConsumerTally
from .attempts import Attempt
from .handling import HandlerThread
from .lane import Lane
from .lanes import Lanes
from .settling import Settler
from .slices import Slice


class CommittedSettler(Settler):
    """Gives up where an effect may be there already: after a COMMIT without answer, or without a transaction."""

    def failed(self, lane: Lane, piece: Slice, found: TopicHandlers, index: int, error: Exception) -> float | None:
        """Do what is decided about a failed attempt, unless its effects may have stayed."""
        stayed = self.consumer.transaction == "none" or isinstance(error, UnknownCommit)
        # A record of a message that is handled is no attempt at it.
        if not stayed or index < piece.done or isinstance(error, Skip):
            return super().failed(lane, piece, found, index, error)
        attempt = Attempt(lane, piece, found, index, error)
        category = categories.of(retries.blamed(error), categories.own()).category
        if self._surges(error, DeadLetter(category)):
            self.lanes.interrupt()
        here.forget()
        self.letters.keep(attempt, category)
        return None


class CommittedExecution(Execution):
    """Runs handlers of messages that are committed."""

    after_unknown_commit = "it may be handled, and becomes a dead letter"


class CommittedThread(HandlerThread):
    """Works on lanes whose messages are committed."""

    def __init__(
        self,
        name: str,
        consumer: conf.Consumer,
        group_id: str,
        lanes: Lanes,
        tally: ConsumerTally,
        stop_worker: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name, consumer, group_id, lanes, tally, stop_worker)
        self.settler = CommittedSettler(consumer, group_id, tally, lanes)

    def _begin(self) -> None:
        super()._begin()
        self.execution = CommittedExecution(self.consumer, self.tally, self.gathered)
