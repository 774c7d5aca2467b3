"""Handlers that take lists: one call for many messages, and what they say of those that failed."""

from __future__ import annotations

from collections.abc import Sequence

from .. import retries, tracing
from ..exceptions import BatchFailed, DecodeError, PartitionLost
from ..execution import Execution, refuse_coroutine
from ..gathering import Gathered, Sent
from ..handlers import Handler, TopicHandlers, named
from ..messages import Message, Messages, RawMessage
from ..signals import message_handled, message_handling
from .attempts import Undivided
from .lane import Lane
from .slices import Slice


class Lists:
    """Gives messages to handlers of lists, for one handler thread."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._consumer = execution.consumer.name

    def run(self, lane: Lane, piece: Slice, found: TopicHandlers, handler: Handler, until: int) -> None:
        """Run a handler on the messages before index `until`, and be done with them, or know which ones failed.

        Raises `Undivided` when nobody says which one it was.
        """
        raws = piece.messages[piece.done : until]
        messages = Messages(raws, found.decoder)
        if message_handling.receivers:
            for message in messages:
                message_handling.send_robust(self._consumer, message=message)
        try:
            self._attempt(lane, handler, messages, raws)
        except Exception as error:
            if retries.stops_worker(error):
                raise
            if isinstance(error, PartitionLost) and lane.partition.lost:
                return
            self._failed(piece, messages, error, until)
            return
        self._keep_records(piece, piece.done, messages)
        self._tell(piece, messages, range(len(messages)))
        piece.done = until

    def _attempt(self, lane: Lane, handler: Handler, messages: Messages, raws: Sequence[RawMessage]) -> None:
        if not self._execution.traced:
            self._call(lane, handler, messages)
            return
        with tracing.handling_together(self._execution.consumer, raws, handler.path):
            self._call(lane, handler, messages)

    def _call(self, lane: Lane, handler: Handler, messages: Messages) -> None:
        call = handler.call_all
        assert call is not None

        def handle() -> None:
            refuse_coroutine(call(messages))

        def end() -> None:
            lane.still_ours()
            if (ending := self._execution.ending) is not None:
                ending.finish([message.offset for message in messages], self._execution.gathered)

        if self._execution.in_transaction:
            self._execution.transact(handle, end, messages[0], self._execution.gathered)
        else:
            handle()

    def _failed(self, piece: Slice, messages: Messages, error: Exception, until: int) -> None:
        """Note what is said of single messages; raise `Undivided` when nothing is."""
        gathered = self._execution.gathered
        if isinstance(error, BatchFailed):
            try:
                failures = named(error, messages)
            except ValueError as wrong:
                gathered.clear()
                raise Undivided(wrong, until) from None
            for one in failures.values():
                if retries.stops_worker(one):
                    raise one
            piece.known = {messages[index].offset: one for index, one in failures.items()}
            if not self._execution.in_transaction:
                self._keep_the_others(piece, messages, failures)
            return
        gathered.clear()
        # Without a transaction the others may have left effects.
        again = self._execution.in_transaction or self._execution.repeats
        if isinstance(error, DecodeError) and error.place is not None and again:
            for message in messages:
                if (message.topic, message.partition, message.offset) == error.place:
                    piece.known = {message.offset: error}
                    return
        raise Undivided(error, until) from None

    def _keep_the_others(self, piece: Slice, messages: Messages, failures: dict[int, Exception]) -> None:
        """Without a transaction nothing was rolled back: what the handler did not name is handled."""
        good = [index for index in range(len(messages)) if index not in failures]
        piece.known.update((messages[index].offset, None) for index in good)
        if good:
            self._keep_records(piece, piece.done + good[0], messages)
            self._tell(piece, messages, good)
        else:
            self._execution.gathered.clear()

    def _keep_records(self, piece: Slice, index: int, messages: Messages) -> None:
        gathered = self._execution.gathered
        if gathered.sent and len(messages) > 1:
            first, last = messages[0].offset, messages[-1].offset
            for sent in gathered.sent:
                sent.note = (
                    f"The record was produced by a call for {len(messages)} messages, at offsets {first} to {last}."
                )
        piece.await_all(index, gathered.sent)
        gathered.clear()

    def _tell(self, piece: Slice, messages: Messages, which: Sequence[int]) -> None:
        if not message_handled.receivers:
            return
        told = tell_handled(self._consumer, [messages[index] for index in which], self._execution.gathered)
        for number, sent in told:
            piece.await_all(piece.done + which[number], sent)


def tell_handled(consumer: str, messages: Sequence[Message], gathered: Gathered) -> list[tuple[int, list[Sent]]]:
    """Send the signal for each message; return what receivers sent: the number of the message, and its records."""
    told = []
    for number, message in enumerate(messages):
        message_handled.send_robust(consumer, message=message)
        if gathered.sent:
            told.append((number, gathered.sent))
        gathered.clear()
    return told
