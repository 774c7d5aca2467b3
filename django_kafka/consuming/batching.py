"""Several messages of a lane at a time: in one transaction, or given to a handler as a list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..exceptions import PartitionLost, Skip
from ..execution import Execution
from ..gathering import here
from ..handlers import Handler, TopicHandlers
from ..messages import Message, RawMessage
from ..signals import handler_failed, message_handled
from .attempts import Undivided
from .lane import Lane
from .lists import Lists, tell_handled
from .slices import Slice
from .together import MOST, Care, Joint, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """The next messages of a slice that may be run in one go."""

    until: int
    """The index before which they are."""
    several: bool = False
    """Whether they are run together; else each by itself."""
    handler: Handler | None = None
    """The handler of lists that gets them; None: each has its own call."""


class Batching:
    """Runs what comes together, for one handler thread."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._consumer = execution.consumer.name
        self._most = execution.consumer.max_poll_records
        self.together = execution.consumer.transaction == "batch"
        """Whether messages share transactions."""
        self._care = Care()
        self._lists = Lists(execution)
        self._now: Callable[[], RawMessage | None] | None = None

    def message_now(self, piece: Slice) -> RawMessage | None:
        """Return the message of a slice that runs; None while a list does."""
        # Each read once: a thread that a handler left behind may ask while this one goes on.
        now, done = self._now, piece.done
        if now is not None:
            return now()
        return piece.messages[done] if done < len(piece.messages) else None

    def next(self, lane: Lane, piece: Slice, found: TopicHandlers, end: int | None) -> Portion:
        """Return what may be run in one go of a slice, before index `end`."""
        start = piece.done
        # First, and only then the messages are looked at: from now on none is set apart.
        lane.several = True
        if lane.interrupted:
            lane.several = False
            return Portion(until=start)
        stop = len(piece.messages) if end is None else min(end, len(piece.messages))
        if piece.suspect > start:
            stop = min(stop, start + max(1, (piece.suspect - start) // 2))
        if piece.known:
            offsets = (piece.messages[index].offset() for index in range(start, stop))
            stop = next((index for index, offset in enumerate(offsets, start) if offset in piece.known), stop)
        handler = found.default if found.default is not None and found.default.call_all is not None else None
        if found.conditional and found.lists:
            handler, stop = self._run_of_one(piece, found, stop)
        if handler is not None:
            # What is dealt to a lane may have gathered from many fetches.
            stop = min(stop, start + min(handler.most or self._most, self._most))
        elif self.together:
            stop = min(stop, start + MOST)
        lane.several = stop - start > 1 and (handler is not None or self.together)
        return Portion(until=stop, several=lane.several, handler=handler)

    def _run_of_one(self, piece: Slice, found: TopicHandlers, stop: int) -> tuple[Handler | None, int]:
        """Return the handler of lists that the next messages are for, None: for others; and where that ends."""
        first = self._of_lists(piece, found, piece.done)
        until = piece.done + 1
        while until < stop and self._of_lists(piece, found, until) is first:
            until += 1
        return first, until

    @staticmethod
    def _of_lists(piece: Slice, found: TopicHandlers, index: int) -> Handler | None:
        try:
            handler = found.match(Message(piece.messages[index], found.decoder))
        except Exception:  # noqa: BLE001  # a condition may raise anything
            # It is met again when the message runs, by itself.
            return None
        return handler if handler.call_all is not None else None

    def run(self, lane: Lane, piece: Slice, found: TopicHandlers, portion: Portion) -> None:
        """Run several messages, and be done with those that are good.

        Raises what the next message of the slice failed with, or `Undivided`.
        """
        try:
            self._run(lane, piece, found, portion)
        finally:
            self._now = None

    def _run(self, lane: Lane, piece: Slice, found: TopicHandlers, portion: Portion) -> None:
        tally = self._execution.tally
        if portion.handler is not None:
            tally.together.add(portion.until - piece.done)
            self._now = _several
            self._lists.run(lane, piece, found, portion.handler, portion.until)
            return
        joint = Joint(self._execution, lane, piece, found, self._care)
        self._now = joint.message_now
        try:
            outcome = joint.run(portion.until)
        finally:
            here.into(self._execution.gathered)
        if outcome.whole is not None:
            self._not_committed(piece, found, outcome.whole, outcome.tried)
        if (count := outcome.done - piece.done) > 0:
            tally.together.add(count)
        self._settle(piece, outcome)
        if outcome.failed is not None:
            # Alone when it is run again, so that it holds up no others, and it is clear whose fault it is.
            piece.suspect = max(piece.suspect, piece.done + 1)
            self._execution.gathered.sent = outcome.sent
            self.tell_failed(piece, found, outcome.failed)
            try:
                raise outcome.failed
            finally:
                del outcome

    def _not_committed(self, piece: Slice, found: TopicHandlers, error: Exception, until: int) -> None:
        if until - piece.done <= 1:
            self.tell_failed(piece, found, error)
            raise error
        raise Undivided(error, until) from None

    def _settle(self, piece: Slice, outcome: Outcome) -> None:
        records = outcome.records
        if message_handled.receivers and outcome.handled:
            told = tell_handled(self._consumer, outcome.handled, self._execution.gathered)
            records = sorted(
                [*records, *((piece.done + number, sent) for number, sent in told)], key=lambda entry: entry[0]
            )
        for index, sent in records:
            piece.await_all(index, sent)
        piece.done = outcome.done

    def tell_failed(self, piece: Slice, found: TopicHandlers, error: Exception) -> None:
        """Send the signal for the next message."""
        if handler_failed.receivers and not isinstance(error, Skip | PartitionLost):
            message = Message(piece.messages[piece.done], found.decoder)
            handler_failed.send_robust(self._consumer, message=message, error=error)


def _several() -> None:
    """Return no message, because a handler has many."""
