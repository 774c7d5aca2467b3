"""Handler threads: they execute the messages of a lane, one after another; what fails is settled in `settling`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from .. import correlation, handlers, retries
from ..dead_letters.publishing import Published
from ..exceptions import DeliveryTimeout
from ..execution import Connections, Execution, refuse_coroutine
from ..gathering import here
from ..handlers import TopicHandlers
from ..messages import Message, RawMessage, header_pairs
from ..retry_topics import RetryTopic
from .attempts import Undivided
from .batching import Batching, Portion
from .deaths import Hold
from .forwarding import Forwarded
from .lane import Lane
from .lane_threads import LaneThread
from .slices import Slice
from .taking import take_in
from .timing import Stopwatch, take_ages

SHORT_WAIT = 1.0
"""Seconds a thread stays with a lane whose records are not acknowledged yet, before it looks at other lanes."""
LAST_WAIT = 5.0
"""Seconds for the same when the lane is about to leave; what is still open then is handled again by the next owner."""
_LONG_REST = 1.0
"""Seconds until a message is due from which on no more is fetched behind it."""


class HandlerThread(LaneThread):
    """Takes one lane at a time and works on its first slice."""

    execution_kind: type[Execution] = Execution

    def _prepare(self) -> None:
        self.connections = Connections()
        self._stopwatch = Stopwatch()
        self._slice: tuple[Slice, int] | None = None
        """The slice that it works on, and how many of it were done before."""

    def succeeded_now(self) -> int:
        """Return how many messages have succeeded in it, counted up to this moment; for other threads."""
        now = self._slice
        return self.succeeded if now is None else self.succeeded + now[0].done - now[1]

    def run_inline(self, lane: Lane) -> None:
        """Work on one lane in the calling thread, as tests do."""
        self._begin()
        try:
            self._work_on(lane)
        finally:
            here.end()
            correlation.follow(None)

    def _begin(self) -> None:
        self.gathered = here.begin()
        self.execution = self.execution_kind(self.consumer, self.tally, self.gathered)
        self.batching = Batching(self.execution)
        correlation.follow(self)

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """The headers of the message whose handler runs, for who asks for its correlation id."""
        now = self._slice
        raw = None if now is None else self.batching.message_now(now[0])
        return [] if raw is None else header_pairs(raw)

    def run(self) -> None:
        """Work until the lanes are closed."""
        try:
            self._begin()
            circuit = self.lanes.circuit
            while not self.lanes.closed:
                lane = self.lanes.next(1.0)
                if circuit is not None and circuit.news:
                    circuit.tell()
                if lane is None:
                    self.connections.rest()
                else:
                    self._work_on(lane)
                if circuit is not None and circuit.limited:
                    circuit.look()
                if circuit is not None and circuit.news:
                    circuit.tell()
        except BaseException as error:  # noqa: BLE001  # a worker that handles nothing must not look alive
            self.stop_worker(error)
        finally:
            here.end()
            self.connections.close()

    def _work_on(self, lane: Lane, succeeded: int = 0) -> None:
        """Work on a lane and give it back; so many of its messages have succeeded since it was taken."""
        wait = None
        before, piece = self.succeeded, lane.slices[0]
        try:
            self.connections.tend()
            wait = self.work(lane, piece)
        except BaseException as error:  # noqa: BLE001  # SystemExit and its like: stop, so that the message is read again
            lane.halted = lane.interrupted = True
            if self.lanes.tenures is not None:
                self.lanes.tenures.killed_by(lane.partition)
            self.stop_worker(error)
        finally:
            try:
                take_ages(self.tally.of_topic(lane.place[0]), piece)
            finally:
                if lane.permit is not None and self.lanes.circuit is not None:
                    self.lanes.circuit.answer(lane.permit, succeeded + self.succeeded - before)
                self.lanes.give_back(lane, wait=wait)

    def work(self, lane: Lane, piece: Slice) -> float | None:
        """Execute and settle what is left of a slice; return how many seconds its lane must wait, or None."""
        found = handlers.for_topic(self.consumer.name, lane.place[0])
        if found.imports is not None:
            return take_in(self.settler, lane, piece, found)
        call = self.execution.callable_for(found)
        self.gathered.clear()
        wait = None
        if lane.permit is not None:
            lane.until = piece.done + lane.permit.most
        if lane.single and not lane.wary:
            lane.until = piece.done + 1
        while True:
            # The letters first, also of a lane that waits for the message after them.
            if piece.failed and (wait is not None or lane.wary or self.settler.letters.due(lane, piece)):
                held = self.settler.letters.store(lane, piece, found)
                wait = wait if held is None else max(held, wait or 0.0)
            if wait is not None:
                return wait
            if lane.interrupted or piece.done in (len(piece.messages), lane.until):
                break
            if found.retry is not None and (left := until_due(lane, piece, found.retry)) is not None:
                # Nothing that is done with has to wait until then for being settled.
                if piece.failed and (held := self.settler.letters.store(lane, piece, found)) is not None:
                    return held
                if piece.sent:
                    break
                return left
            if piece.known and piece.messages[piece.done].offset() in piece.known:
                wait = self._recall(lane, piece, found)
                continue
            execute = self._execute_warily if lane.wary else self._execute
            wait = execute(lane, piece, found, call)
        return self._confirm(lane, piece, found) if piece.sent else None

    def _execute_warily(
        self, lane: Lane, piece: Slice, found: TopicHandlers, call: Callable[[Message], Any]
    ) -> float | None:
        """Do the same while the former worker of the partition may have died of a message."""
        tenures, partition = self.lanes.tenures, lane.partition
        assert tenures is not None
        wait = None
        try:
            until = tenures.before(partition, piece)
            if until == piece.done:
                self.settler.condemn(lane, piece, found, tenures.verdict(partition))
                return None
            if until is None and lane.single:
                lane.until = piece.done + 1
            wait = self._execute(lane, piece, found, call, until)
            tenures.after(partition, piece)
        except Hold as hold:
            lane.reason = hold.reason
            held = self.settler.waits.for_something(lane, hold.reason) if hold.seconds is None else hold.seconds
            return max(wait or 0.0, held)
        return wait

    def _execute(
        self,
        lane: Lane,
        piece: Slice,
        found: TopicHandlers,
        call: Callable[[Message], Any],
        end: int | None = None,
    ) -> float | None:
        """Run messages until the slice ends or the one at index `end` is next, one fails, or the lane is halted."""
        decoder, gathered, start = found.decoder, self.gathered, piece.done
        messages, attempt, portion = self._due(lane, piece, found, end)
        topic = self.tally.of_topic(lane.place[0])
        call = self._stopwatch.begin(topic, piece, call)
        failed: Exception | None = None
        self._slice = piece, start
        try:
            if portion is not None:
                self.batching.run(lane, piece, found, portion)
            for raw in messages:
                if lane.interrupted:
                    break
                if (returned := call(Message(raw, decoder, attempt))) is not None:
                    refuse_coroutine(returned)
                if gathered.sent:
                    piece.await_later(gathered)
                piece.done += 1
        except Exception as error:
            if retries.stops_worker(error):
                raise
            failed = error
        finally:
            done = piece.done - start
            self._slice, lane.several = None, False
            self.succeeded += done
            topic.handled += done
            self._stopwatch.end(done, failed is not None, together=portion is not None)
        if failed is None or piece.done > start:
            lane.waits = lane.failing = 0
            lane.outage = None
        if failed is None:
            return None
        try:
            return self._settle_failed(lane, piece, found, failed)
        finally:
            # Its traceback leads to this frame: the circle would keep what the handler held until it is collected.
            del failed

    def _due(
        self, lane: Lane, piece: Slice, found: TopicHandlers, end: int | None
    ) -> tuple[Iterable[RawMessage], int, Portion | None]:
        """Return the messages to run one by one, which attempt that is, and those that run together instead."""
        start, attempt = piece.done, 1
        tried = piece.tried_at(start)
        if piece.failed or tried is not None:
            # By itself while letters wait to be stored with others, and when it is not its first attempt.
            end, attempt = start + 1, tried.attempts + 1 if tried else 1
        if lane.until is not None:
            end = lane.until if end is None else min(end, lane.until)
        if found.retry is not None:
            # One by one: each has to be due.
            returned = found.retry.returned(piece.messages[start])
            return (returned,), attempt + returned.attempts, None
        if found.lists or self.batching.together:
            portion = self.batching.next(lane, piece, found, end)
            if portion.several:
                return (), attempt, portion
            end = portion.until
        return islice(piece.messages, start, end), attempt, None

    def _settle_failed(self, lane: Lane, piece: Slice, found: TopicHandlers, error: Exception) -> float | None:
        """Settle that the next message failed, or several that ran together."""
        if not isinstance(error, Undivided):
            return self.settler.failed(lane, piece, found, piece.done, error)
        wait = self.settler.failed_together(lane, piece, found, error.error, error.until)
        if wait is not None:
            self.batching.tell_failed(piece, found, error.error)
        return wait

    def _recall(self, lane: Lane, piece: Slice, found: TopicHandlers) -> float | None:
        """Be done with the next message as its handler of lists said."""
        offset = piece.messages[piece.done].offset() or 0
        error = piece.known.pop(offset)
        if error is not None:
            # Alone when it is tried again.
            piece.suspect = max(piece.suspect, piece.done + 1)
            self.batching.tell_failed(piece, found, error)
            return self.settler.failed(lane, piece, found, piece.done, error)
        piece.done += 1
        self.succeeded += 1
        self.tally.of_topic(lane.place[0]).handled += 1
        return None

    def _confirm(self, lane: Lane, piece: Slice, found: TopicHandlers) -> float | None:
        """Wait until the records that the slice produced are acknowledged; send again what was kept back."""
        deadline = time.monotonic() + (LAST_WAIT if lane.halted else SHORT_WAIT)
        while piece.sent and not lane.partition.lost:
            index, sent = piece.sent[0]
            if piece.resend:
                piece.resend = False
                sent.again()
            if not sent.delivery.done():
                take_ages(self.tally.of_topic(lane.place[0]), piece)
            try:
                sent.delivery.result(max(0.0, deadline - time.monotonic()))
            except DeliveryTimeout:
                return 0.0
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # decided just below, as for any failed attempt
                if isinstance(sent, Published):
                    wait = self.settler.letters.unpublished(lane, piece, sent, error)
                elif isinstance(sent, Forwarded):
                    wait = self.settler.not_forwarded(lane, piece, index, sent, error)
                else:
                    if sent.note and sent.note not in getattr(error, "__notes__", ()):
                        error.add_note(sent.note)
                    wait = self.settler.failed(lane, piece, found, index, error)
                if wait is not None:
                    # Only the record is sent again: what its handler did is committed.
                    piece.resend = True
                elif piece.failed:
                    wait = self.settler.letters.store(lane, piece, found)
                if wait is not None:
                    return wait
            else:
                if isinstance(sent, Forwarded):
                    self.settler.expect(sent)
                piece.acknowledge()
                lane.waits = 0
                lane.outage = None
        return None


def until_due(lane: Lane, piece: Slice, retry: RetryTopic) -> float | None:
    """Return how many seconds the next message of a retry topic has to wait; None: it is due."""
    index = piece.done
    if piece.due is None or piece.due[0] != index:
        piece.due = index, time.monotonic() + retry.returned(piece.messages[index]).seconds_left(time.time())
    left = piece.due[1] - time.monotonic()
    if left <= 0:
        lane.resting = False
        return None
    lane.resting = left >= _LONG_REST
    lane.reason = "its next message is not due yet"
    return left
