"""Handler threads: they execute the messages of a lane and settle each: handled, or stored as a dead letter."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from .. import conf, handlers, retries
from ..dead_letters import recording
from ..dead_letters.recording import Failure
from ..exceptions import DeliveryTimeout, NoHandler, PartitionLost
from ..execution import Connections, Execution
from ..gathering import here
from ..handlers import TopicHandlers
from ..messages import Message
from ..tallies import ConsumerTally
from .lanes import Lane, Lanes, Slice

log = logging.getLogger(__name__)

_SHORT_WAIT = 1.0
"""Seconds a thread stays with a lane whose records are not acknowledged yet, before it looks at other lanes."""
_LAST_WAIT = 5.0
"""Seconds for the same when the lane is about to leave; what is still open then is handled again by the next owner."""


class HandlerThread(threading.Thread):
    """Takes one lane at a time and works on its first slice."""

    def __init__(
        self,
        name: str,
        consumer: conf.Consumer,
        group_id: str,
        lanes: Lanes,
        tally: ConsumerTally,
        stop_worker: Callable[[BaseException], None],
    ) -> None:
        # A daemon, so that a second signal can end the process while a handler runs.
        super().__init__(name=name, daemon=True)
        self.consumer = consumer
        self.group_id = group_id
        self.lanes = lanes
        self.tally = tally
        self.stop_worker = stop_worker
        self.connections = Connections()

    def run_inline(self, lane: Lane) -> None:
        """Work on one lane in the calling thread, as tests do."""
        self._begin()
        try:
            self._work_on(lane)
        finally:
            here.end()

    def _begin(self) -> None:
        self.gathered = here.begin()
        self.execution = Execution(self.consumer, self.tally, self.gathered)

    def run(self) -> None:
        """Work until the lanes are closed."""
        try:
            self._begin()
            while not self.lanes.closed:
                if (lane := self.lanes.next(1.0)) is None:
                    self.connections.rest()
                else:
                    self._work_on(lane)
        except BaseException as error:  # noqa: BLE001  # a worker that handles nothing must not look alive
            self.stop_worker(error)
        finally:
            here.end()
            self.connections.close()

    def _work_on(self, lane: Lane) -> None:
        wait = None
        try:
            self.connections.tend()
            wait = self.work(lane, lane.slices[0])
        except BaseException as error:  # noqa: BLE001  # SystemExit and its like: stop, so that the message is read again
            lane.halted = True
            self.stop_worker(error)
        finally:
            self.lanes.give_back(lane, wait=wait)

    def work(self, lane: Lane, piece: Slice) -> float | None:
        """Execute and settle what is left of a slice; return how many seconds its lane must wait, or None."""
        found = handlers.for_topic(self.consumer.name, lane.place[0])
        call = self.execution.callable_for(found)
        self.gathered.clear()
        while True:
            if piece.failed is not None and (wait := self._store(lane, piece, found)) is not None:
                return wait
            if lane.halted or piece.done == len(piece.messages):
                break
            if (wait := self._execute(lane, piece, found, call)) is not None:
                return wait
        return self._confirm(lane, piece, found) if piece.sent else None

    def _execute(self, lane: Lane, piece: Slice, found: TopicHandlers, call: Callable[[Message], Any]) -> float | None:
        """Run messages until the slice ends, one fails, or the lane is halted."""
        decoder, gathered = found.decoder, self.gathered
        start = piece.done
        try:
            for raw in islice(piece.messages, start, None):
                if lane.halted:
                    break
                call(Message(raw, decoder))
                if gathered.sent:
                    self._await_later(piece)
                piece.done += 1
            lane.waits = 0
        except Exception as error:
            if retries.stops_worker(error):
                raise
            if piece.done > start:
                lane.waits = 0
            gathered.clear()
            return self._failed(lane, piece, found, piece.done, error)
        finally:
            self.tally.handled += piece.done - start
        return None

    def _await_later(self, piece: Slice) -> None:
        """Keep the message that was just executed unsettled until what it produced is acknowledged."""
        if piece.unsettled is None:
            piece.unsettled = piece.done
        piece.sent.extend((piece.done, sent) for sent in self.gathered.sent)
        self.gathered.clear()

    def _failed(self, lane: Lane, piece: Slice, found: TopicHandlers, index: int, error: Exception) -> float | None:
        match retries.decide(error):
            case retries.Again():
                self.tally.contentions += 1
                lane.waits += 1
                return 0.0 if lane.waits == 1 else retries.pause(lane.waits, first=0.005, longest=1.0)
            case retries.Wait(reason):
                return self._wait(lane, reason)
            case retries.DeadLetter(category):
                self.tally.failures[category] += 1
                message = Message(piece.messages[index], found.decoder)
                piece.failed = index, Failure.of(error, category=category, handler=_path(found, message))
        return None

    def _wait(self, lane: Lane, reason: str) -> float:
        self.tally.waits += 1
        lane.waits += 1
        lane.reason = reason
        seconds = retries.pause(lane.waits)
        level = logging.WARNING if lane.waits == 1 else logging.INFO
        log.log(
            level, "consumer=%s topic=%s partition=%s waits %.1f s: %s",
            self.consumer.name, *lane.place, seconds, reason,
        )  # fmt: skip
        return seconds

    def _store(self, lane: Lane, piece: Slice, found: TopicHandlers) -> float | None:
        """Store the pending dead letter; only then may the watermark pass its message."""
        assert piece.failed is not None
        index, failure = piece.failed
        message = Message(piece.messages[index], found.decoder)
        try:
            recording.record(self.consumer, self.group_id, message, failure, still_ours=lambda: _still_ours(lane))
        except PartitionLost:
            return None
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever kept it from being written: the message is not settled
            return self._wait(lane, f"its dead letter could not be written ({type(error).__name__})")
        self.tally.dead_lettered += 1
        log.warning(
            "consumer=%s topic=%s partition=%s offset=%s dead letter error=%s handler=%s",
            self.consumer.name, message.topic, message.partition, message.offset, failure.error_type, failure.handler,
        )  # fmt: skip
        # What receivers of the signal produced is no part of the next message.
        self.gathered.clear()
        piece.failed = None
        if index == piece.done:
            piece.done += 1
        piece.sent = [entry for entry in piece.sent if entry[0] != index]
        self._go_on(lane, piece)
        return None

    def _confirm(self, lane: Lane, piece: Slice, found: TopicHandlers) -> float | None:
        """Wait until the records that the slice produced are acknowledged; send again what an outage kept back."""
        deadline = time.monotonic() + (_LAST_WAIT if lane.halted else _SHORT_WAIT)
        while piece.sent and not lane.lost:
            index, sent = piece.sent[0]
            try:
                sent.delivery.result(max(0.0, deadline - time.monotonic()))
            except DeliveryTimeout:
                return 0.0
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # decided just below, as for any failed attempt
                wait = self._failed(lane, piece, found, index, error)
                if piece.failed is not None:
                    wait = self._store(lane, piece, found)
                else:
                    sent.again()
                if wait is not None:
                    return wait
            else:
                piece.sent.pop(0)
                self._go_on(lane, piece)
        return None

    def _go_on(self, lane: Lane, piece: Slice) -> None:
        """Note that the lane's wait is over, and which message now is the first that waits for its records."""
        piece.unsettled = piece.sent[0][0] if piece.sent else None
        lane.waits = 0


def _still_ours(lane: Lane) -> None:
    if lane.lost:
        raise PartitionLost(f"{lane.place[0]}[{lane.place[1]}] has a new owner; its messages are handled there.")


def _path(found: TopicHandlers, message: Message) -> str:
    try:
        return found.match(message).path
    except (NoHandler, UnicodeError):
        return ""
