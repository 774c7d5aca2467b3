"""One transaction for many messages: without savepoints while all goes well, with some while failures are recent."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass, field
from itertools import chain
from math import isqrt
from typing import Any

from django.db import connections, transaction

from .. import deadlines, retries, tracing
from ..exceptions import PartitionLost, Skip
from ..execution import Execution, refuse_broken, refuse_coroutine
from ..gathering import Gathered, Sent, here
from ..handlers import TopicHandlers
from ..messages import Message, RawMessage
from ..signals import message_handled, message_handling
from .lane import Lane
from .slices import Slice

MOST = 500
"""Messages of one transaction at most."""
SECONDS = 0.5
"""No message is begun in a transaction that is older: what it has locked is waited for by others."""
_RARE = 1000
"""Failures that are this many messages apart are cheaper without savepoints."""


class Care:
    """How many messages apart failures are, and so after how many a savepoint pays; one for each thread."""

    __slots__ = ("_apart", "_since")

    def __init__(self) -> None:
        self._apart = self._since = _RARE

    def succeeded(self, messages: int) -> None:
        """Note that so many messages were committed."""
        self._since += messages

    def failed(self) -> None:
        """Note that one failed after them."""
        self._apart = (self._apart + min(self._since, _RARE // 2)) // 2
        self._since = 0

    def step(self) -> int | None:
        """Return how many messages to have between two savepoints; None: no savepoints.

        A savepoint costs two statements, a failure those of half the messages between two: the least is at the root.
        """
        apart = max(self._apart, self._since)
        return None if apart >= _RARE else max(1, isqrt(3 * apart))


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of messages that were run together. Those before `done` are committed."""

    done: int
    """The index in their slice of the first one that is not committed."""
    handled: list[Message] = field(default_factory=list)
    """Those that are, where somebody listens."""
    records: list[tuple[int, list[Sent]]] = field(default_factory=list)
    """What they produced: index of the message, and its records."""
    failed: Exception | None = None
    """What the message at `done` failed with."""
    sent: list[Sent] = field(default_factory=list)
    """What that one sent at once, before it asked to be skipped."""
    whole: Exception | None = None
    """What all of them failed with, when none of them is to blame: the end of their transaction."""
    tried: int = 0
    """The index up to which these were."""


class Joint:
    """The transaction of the next messages of a slice. When one of them fails, it is begun anew without that one."""

    def __init__(self, execution: Execution, lane: Lane, piece: Slice, found: TopicHandlers, care: Care) -> None:
        self._execution = execution
        self._lane = lane
        self._piece = piece
        self._found = found
        self._care = care
        self._start = self._stop = piece.done
        self._failed: tuple[int, Exception] | None = None
        self._sent: list[Sent] = []
        self._observed = bool(message_handling.receivers or message_handled.receivers)
        self._begin()

    def _begin(self) -> None:
        self._through = self._limited = self._bounded = False
        self._kept: list[tuple[int, Gathered]] = []
        self._handled: list[Message] = []
        self._gathered = here.begin()
        # When it cannot even be begun, as while the database is down, nothing before that is to be tried once more.
        self._at = self._start

    @property
    def promised(self) -> list[weakref.ref[Any]]:
        """What is sent on commit."""
        return list(chain.from_iterable(gathered.promised for _index, gathered in self._kept))

    def clear(self) -> None:
        """Forget what they produced, as after a rollback."""
        self._kept = []
        self._gathered.clear()

    def forget_promised(self) -> None:
        """Forget what a rollback took back; what the last message sent at once is out, and it is not run again."""
        self._kept = []
        self._gathered.forget_promised()

    def run(self, stop: int) -> Outcome:
        """Run and commit the messages before index `stop`, or as many as are good, in time, and not interrupted.

        What they produce is gathered apart: have the thread gather anew after it.
        """
        if not self._execution.traced:
            return self._transact(stop)
        consumer, messages = self._execution.consumer, self._piece.messages
        with tracing.handling_together(consumer, messages[self._start : stop]):
            outcome = self._transact(stop)
            whose = messages[outcome.done : outcome.done + 1] if outcome.failed else messages[self._start : stop]
            tracing.failed(outcome.failed or outcome.whole, consumer, whose)
            return outcome

    def message_now(self) -> RawMessage | None:
        """Return the message that runs."""
        return self._piece.messages[self._at]

    def _transact(self, stop: int) -> Outcome:
        self._stop = stop
        first = Message(self._piece.messages[self._start], self._found.decoder)
        while True:
            try:
                self._execution.transact(self._handle, self._end, first, self)
            except Exception as error:
                if retries.stops_worker(error):
                    raise
                if self._through:
                    lost = isinstance(error, PartitionLost) and self._lane.partition.lost
                    return Outcome(done=self._start, whole=None if lost else error, tried=self._stop)
                self._blame(error)
                if self._stop > self._start:
                    self._begin()
                    continue
            return self._outcome()

    def _outcome(self) -> Outcome:
        self._care.succeeded(self._stop - self._start)
        records = [(index, gathered.sent) for index, gathered in self._kept if gathered.sent]
        outcome = Outcome(done=self._stop, handled=self._handled, records=records)
        # Not when something else ended the transaction before that message.
        if self._failed is not None and self._failed[0] == self._stop:
            self._care.failed()
            outcome.failed, outcome.sent = self._failed[1], self._sent
        # Its traceback leads to frames that have this object: the circle would be kept until it is collected.
        self._failed = None
        return outcome

    def _blame(self, error: Exception) -> None:
        """Note which message failed: the one that was run last. Those before it are to be run without it."""
        self._failed, self._stop = (self._at, error), self._at
        self._sent = self._gathered.sent if isinstance(error, Skip) else []

    def _handle(self) -> None:
        again, self._deadline = self._failed is not None, time.monotonic() + SECONDS
        step, index = None if again else self._care.step(), self._start
        while index < self._stop:
            end = self._stop if step is None else min(index + step, self._stop)
            index = self._run(index, end, again) if step is None else self._group(index, end)
            if index < end:
                break
        self._stop = index
        self._through = True

    def _group(self, first: int, end: int) -> int:
        """Run messages between two savepoints, again without the one that fails; return the index after the last."""
        kept, handled = len(self._kept), len(self._handled)
        again = False
        connection: Any = connections[self._execution.database]
        ours = connection.connection
        while True:
            self._at = first
            try:
                with transaction.atomic(using=self._execution.database):
                    return self._run(first, end, again)
            except Exception as error:
                if retries.stops_worker(error):
                    raise
                closed = connection.closed_in_transaction or connection.connection is not ours
                if closed or connection.needs_rollback or not connection.commit_on_exit or end == first:
                    # There is no way back to the savepoint, or none could be made although nothing was to be run.
                    raise
                del self._kept[kept:], self._handled[handled:]
                self._gathered.forget_promised()
                self._blame(error)
                self._gathered = here.begin()
                self._bounded, connection.rollback_exc = self._limited, None
                end, again = self._at, True

    def _run(self, index: int, end: int, again: bool) -> int:
        """Run messages; return the index after the last one, which is before `end` when it is time to commit."""
        lane, found, messages = self._lane, self._found, self._piece.messages
        connection: Any = connections[self._execution.database]
        decoder, name = found.decoder, self._execution.consumer.name
        while index < end:
            # What is run again has been in time, and would be begun again and again if it were interrupted.
            if lane.halted if again else lane.interrupted or time.monotonic() > self._deadline:
                break
            self._at = index
            message = Message(messages[index], decoder)
            handler = found.match(message)
            if self._observed:
                message_handling.send_robust(name, message=message)
                self._handled.append(message)
            if handler.timeout is not None:
                self._limited = self._bounded = True
            elif self._bounded:
                self._lift(connection)
            refuse_coroutine(handler.call(message))
            refuse_broken(connection)
            if self._gathered.sent or self._gathered.promised:
                self._kept.append((index, self._gathered))
                self._gathered = here.begin()
            index += 1
        return index

    def _lift(self, connection: Any) -> None:
        deadlines.lift(connection)
        self._bounded = False

    def _end(self) -> None:
        self._lane.still_ours()
        ending = self._execution.ending
        if ending is None or self._stop == self._start:
            return
        if self._bounded:
            self._lift(connections[self._execution.database])
        # Whose record is refused is to blame, though all have run.
        self._through = False
        for do in (ending.send, ending.confirm):
            for index, gathered in self._kept:
                self._at = index
                do(gathered)
        self._through = True
        ending.settle([raw.offset() or 0 for raw in self._piece.messages[self._start : self._stop]])
