"""Handling where offsets are committed with effects: every transaction that settles a message moves its claim."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.db import transaction

from .. import conf
from ..categories import UnknownCommit
from ..claims import Claimed
from ..dead_letters.recording import find
from ..deliveries import Delivery
from ..exceptions import BrokersUnreachable, DeliveryTimeout, PartitionLost
from ..execution import Execution, leave_foreign_transaction
from ..handlers import TopicHandlers
from ..messages import Message
from ..retries import Skip
from ..tallies import ConsumerTally
from .attempts import Attempt
from .giving_up import Letters
from .handling import HandlerThread
from .lane import Lane
from .lanes import Lanes
from .parking import HoldingThread
from .settling import Settler
from .slices import Slice
from .waiting import Waits

log = logging.getLogger(__name__)


class ClaimedExecution(Execution):
    """Runs handlers in transactions that move the claim of the partition."""

    after_unknown_commit = "its claim will tell whether it is handled"
    claim: Claimed
    """Of the partition whose messages run."""

    def callable_for(self, handlers: TopicHandlers) -> Callable[[Message], Any]:
        """Return what runs messages of one topic."""

        def run(message: Message) -> None:
            self.run(message, handlers, lambda: self.finish([message]))

        return run

    def finish(self, messages: list[Message]) -> None:
        """Send what handlers produced, and settle their messages; the last step before the COMMIT.

        After the COMMIT nobody would handle them again, so that records which a crash kept back would be lost.
        """
        gathered = self.gathered
        for reference in gathered.promised:
            if (promise := reference()) is not None:
                promise()
        for sent in gathered.sent:
            _await(sent.delivery)
        self.claim.settle([message.offset for message in messages])


def _await(delivery: Delivery) -> None:
    """Wait until a record is acknowledged, or its delivery timeout is over."""
    while True:
        try:
            delivery.result()
            return
        except BrokersUnreachable:
            raise
        except DeliveryTimeout:
            continue


class ClaimedLetters(Letters):
    """Stores dead letters in transactions that move the claim."""

    def __init__(self, consumer: conf.Consumer, group_id: str, tally: ConsumerTally, waits: Waits) -> None:
        super().__init__(consumer, group_id, tally, waits)
        # Before the next message is begun: its own transaction moves the claim past all before it.
        self._together = False

    def store(self, lane: Lane, piece: Slice, found: TopicHandlers) -> float | None:
        """Store the dead letters of a slice, unless that is done already."""
        claim = lane.partition.claim
        assert claim is not None
        if lane in claim.doubts:
            try:
                self._learn(lane, piece, found, claim)
            except PartitionLost:
                return None
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, it is asked again
                return self.waits.for_something(lane, f"its claim cannot be read ({type(error).__name__})")
        held = super().store(lane, piece, found)
        if held is not None:
            claim.doubts.add(lane)
        return held

    def _learn(self, lane: Lane, piece: Slice, found: TopicHandlers, claim: Claimed) -> None:
        """Find out whether the letter was stored when its COMMIT was not answered."""
        index, failure = piece.failed[0]
        message = Message(piece.messages[index], found.decoder, failure.attempt)
        letter = find(self.consumer, self.group_id, message) if claim.settled_of([message.offset]) else None
        claim.doubts.discard(lane)
        if letter is not None:
            self._stored(lane, piece, found, [(message, failure)], [letter])


class _Unsettled(Exception):
    """A message that is to be skipped is not settled, for so many seconds, or because its partition is lost."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__()
        self.seconds = seconds


class ClaimedSettler(Settler):
    """Settles what failed in transactions that move the claim."""

    def __init__(self, consumer: conf.Consumer, group_id: str, tally: ConsumerTally, lanes: Lanes) -> None:
        super().__init__(consumer, group_id, tally, lanes)
        self.letters = ClaimedLetters(consumer, group_id, tally, self.waits)

    def failed(self, lane: Lane, piece: Slice, found: TopicHandlers, index: int, error: Exception) -> float | None:
        """Do what is decided about a failed attempt, unless another worker has the partition."""
        claim = lane.partition.claim
        assert claim is not None
        if isinstance(error, PartitionLost) and claim.fenced:
            log.warning(
                "consumer=%s topic=%s partition=%s offset=%s is rolled back: another worker has claimed its "
                "partition, or its offset was set anew",
                self.consumer.name, *lane.place, piece.messages[index].offset(),
            )  # fmt: skip
            return None
        if isinstance(error, UnknownCommit):
            claim.doubts.add(lane)
        try:
            return super().failed(lane, piece, found, index, error)
        except _Unsettled as unsettled:
            return unsettled.seconds

    def _skip(self, attempt: Attempt, verdict: Skip) -> None:
        claim, lane = attempt.lane.partition.claim, attempt.lane
        assert claim is not None
        if attempt.index == attempt.piece.done:
            try:
                leave_foreign_transaction(claim.database)
                with transaction.atomic(using=claim.database):
                    claim.settle([attempt.message.offset])
                    lane.still_ours()
            except PartitionLost:
                raise _Unsettled(None) from None
            except MemoryError:
                raise
            except Exception as error:
                claim.doubts.add(lane)
                reason = f"its message, which is skipped, could not be settled ({type(error).__name__})"
                raise _Unsettled(self.waits.for_something(lane, reason)) from error
        super()._skip(attempt, verdict)


class ClaimedThread(HandlerThread):
    """Works on lanes whose partitions are claimed."""

    execution: ClaimedExecution

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
        self.settler = ClaimedSettler(consumer, group_id, tally, lanes)

    def _begin(self) -> None:
        super()._begin()
        self.execution = ClaimedExecution(self.consumer, self.tally, self.gathered)

    def _execute(
        self,
        lane: Lane,
        piece: Slice,
        found: TopicHandlers,
        call: Callable[[Message], Any],
        end: int | None = None,
    ) -> float | None:
        """Run messages under the claim of their partition; none when it is lost, or settled already."""
        claim = lane.partition.claim
        assert claim is not None
        if lane in claim.doubts and (wait := self._learn(lane, piece, claim)) is not None:
            return wait
        if claim.fenced:
            lane.halted = lane.interrupted = True
            return None
        self.execution.claim = claim
        return super()._execute(lane, piece, found, call, end)

    def _learn(self, lane: Lane, piece: Slice, claim: Claimed) -> float | None:
        """Find out whether the next message was settled when its COMMIT was not answered."""
        offset = piece.messages[piece.done].offset() or 0
        settled: set[int] = set()
        try:
            # It is fenced when it was lost, which is seen just after this.
            with suppress(PartitionLost):
                settled = claim.settled_of([offset])
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it is asked again
            return self.settler.waits.for_something(lane, f"its claim cannot be read ({type(error).__name__})")
        claim.doubts.discard(lane)
        log.info(
            "consumer=%s topic=%s partition=%s offset=%s whose COMMIT was not answered is %s",
            self.consumer.name, *lane.place, offset, "handled" if settled else "not handled",
        )  # fmt: skip
        if settled:
            self._count(lane, piece)
            piece.done += 1
            lane.waits = lane.failing = 0
            lane.outage = None
        return None

    def _count(self, lane: Lane, piece: Slice) -> None:
        """Count the next message, which turned out to be settled."""
        self.succeeded += 1
        self.tally.handled += 1


class ClaimedHoldingThread(ClaimedThread, HoldingThread):
    """The same, where keys may be held."""

    def _count(self, lane: Lane, piece: Slice) -> None:
        keys, key = lane.partition.held_keys, piece.messages[piece.done].key()
        if keys and key in keys:
            keys[key] += 1
            self.tally.parked += 1
        else:
            super()._count(lane, piece)

    def _park(self, lane: Lane, piece: Slice, found: TopicHandlers, call: Callable[[Message], Any]) -> float | None:
        wait = super()._park(lane, piece, found, call)
        if wait is not None and not lane.full and lane.partition.claim is not None:
            lane.partition.claim.doubts.add(lane)
        return wait
