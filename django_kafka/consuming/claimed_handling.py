"""Handling where offsets are committed with effects: every transaction that settles a message moves its claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from django.db import transaction

from .. import conf, logs, tracing
from ..categories import UnknownCommit
from ..claims import Claimed
from ..dead_letters.recording import find
from ..deliveries import Delivery
from ..exceptions import BrokersUnreachable, DeliveryTimeout, PartitionLost
from ..execution import Execution, leave_foreign_transaction
from ..gathering import Gathered
from ..handlers import TopicHandlers
from ..messages import Message, RawMessage
from ..retries import Skip
from ..tallies import ConsumerTally
from .attempts import Attempt
from .giving_up import Letters
from .handling import HandlerThread
from .lane import Lane
from .parking import HoldingThread
from .settling import Settler
from .slices import Slice

log = logs.of(__name__)


class ClaimedEnding:
    """Ends transactions under the claim of a partition.

    Records are acknowledged before the COMMIT: after it nobody would handle their messages again, so that what a crash
    kept back would be lost.
    """

    claim: Claimed
    """Of the partition whose messages run."""

    def send(self, gathered: Gathered) -> None:
        """Send at once what was to be sent on commit."""
        for reference in gathered.promised:
            if (promise := reference()) is not None:
                promise()

    def confirm(self, gathered: Gathered) -> None:
        """Wait until all that was sent is acknowledged."""
        for sent in gathered.sent:
            _await(sent.delivery)

    def settle(self, offsets: Sequence[int]) -> None:
        """Move the claim past these messages. Raises `PartitionLost`."""
        self.claim.settle(offsets)

    def finish(self, offsets: Sequence[int], gathered: Gathered) -> None:
        """Do all three, for messages that produced it together."""
        self.send(gathered)
        self.confirm(gathered)
        self.settle(offsets)


class ClaimedExecution(Execution):
    """Runs handlers in transactions that move the claim of the partition."""

    after_unknown_commit = "its claim will tell whether it is handled"

    def __init__(self, consumer: conf.Consumer, tally: ConsumerTally, gathered: Gathered) -> None:
        super().__init__(consumer, tally, gathered)
        self.ending: ClaimedEnding = ClaimedEnding()

    def callable_for(self, handlers: TopicHandlers) -> Callable[[Message], Any]:
        """Return what runs messages of one topic."""
        ending, gathered = self.ending, self.gathered
        self.traced = tracing.on()

        def run(message: Message) -> None:
            self.run(message, handlers, lambda: ending.finish([message.offset], gathered))

        return run


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

    # Before the next message is begun: its own transaction moves the claim past all before it.
    several = False

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

    letters_kind = ClaimedLetters

    def failed(self, lane: Lane, piece: Slice, found: TopicHandlers, index: int, error: Exception) -> float | None:
        """Do what is decided about a failed attempt, unless another worker has the partition."""
        if self._overtaken(lane, piece.messages[index], error):
            return None
        try:
            return super().failed(lane, piece, found, index, error)
        except _Unsettled as unsettled:
            return unsettled.seconds

    def failed_together(
        self, lane: Lane, piece: Slice, found: TopicHandlers, error: Exception, until: int
    ) -> float | None:
        """Have messages that failed together tried by halves, unless another worker has the partition."""
        if self._overtaken(lane, piece.messages[piece.done], error):
            return None
        return super().failed_together(lane, piece, found, error, until)

    def _overtaken(self, lane: Lane, first: RawMessage, error: Exception) -> bool:
        """Tell whether the claim is somebody else's; note it when only the claim can tell what became of a COMMIT."""
        claim = lane.partition.claim
        assert claim is not None
        if isinstance(error, PartitionLost) and claim.fenced:
            log.warning(
                "consumer=%s topic=%s partition=%s offset=%s is rolled back: another worker has claimed its "
                "partition, or its offset was set anew",
                self.consumer.name, *lane.place, first.offset(),
            )  # fmt: skip
            return True
        if isinstance(error, UnknownCommit):
            claim.doubts.add(lane)
        return False

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

    execution_kind, settler_kind = ClaimedExecution, ClaimedSettler
    execution: ClaimedExecution

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
        if lane in claim.doubts:
            return self._learn(lane, piece, claim)
        if claim.fenced:
            lane.halted = lane.interrupted = True
            return None
        self.execution.ending.claim = claim
        return super()._execute(lane, piece, found, call, end)

    def _learn(self, lane: Lane, piece: Slice, claim: Claimed) -> float | None:
        """Find out whether the next messages were settled when their COMMIT was not answered."""
        # Those that failed together are tried by halves up to there; else it was one.
        until = max(piece.done + 1, piece.suspect)
        offsets = [raw.offset() or 0 for raw in piece.messages[piece.done : until]]
        settled: set[int] = set()
        try:
            # It is fenced when it was lost, which is seen just after this.
            with suppress(PartitionLost):
                settled = claim.settled_of(offsets)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it is asked again
            return self.settler.waits.for_something(lane, f"its claim cannot be read ({type(error).__name__})")
        claim.doubts.discard(lane)
        log.info(
            "consumer=%s topic=%s partition=%s offset=%s%s whose COMMIT was not answered is %s",
            self.consumer.name, *lane.place, offsets[0], f" and {len(offsets) - 1} more" if len(offsets) > 1 else "",
            "handled" if settled else "not handled",
        )  # fmt: skip
        for offset in offsets:
            if offset not in settled:
                break
            self._count(lane, piece)
            piece.done += 1
            lane.waits = lane.failing = 0
            lane.outage = None
        return None

    def _count(self, lane: Lane, piece: Slice) -> None:
        """Count the next message, which turned out to be settled."""
        self.succeeded += 1
        self.tally.of_topic(lane.place[0]).handled += 1


class ClaimedHoldingThread(ClaimedThread, HoldingThread):
    """The same, where keys may be held."""

    def _count(self, lane: Lane, piece: Slice) -> None:
        keys, key = lane.partition.held_keys, piece.messages[piece.done].key()
        if keys and key in keys:
            keys[key] += 1
            self.tally.of_topic(lane.place[0]).parked += 1
        else:
            super()._count(lane, piece)

    def _park(self, lane: Lane, piece: Slice, found: TopicHandlers, call: Callable[[Message], Any]) -> float | None:
        wait = super()._park(lane, piece, found, call)
        if wait is not None and not lane.full and lane.partition.claim is not None:
            lane.partition.claim.doubts.add(lane)
        return wait
