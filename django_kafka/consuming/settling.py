"""Settling what failed: what is decided about an attempt is done here, and here dead letters are stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from .. import categories, conf, retries
from ..dead_letters import holds, recording
from ..dead_letters.failures import Failure
from ..dead_letters.publishing import Published, Publisher, is_hopeless
from ..exceptions import DeliveryFailed, PartitionLost
from ..gathering import here
from ..handlers import TopicHandlers
from ..messages import Message
from ..models import DeadLetter as Letter
from ..retries import Again, DeadLetter, Retry, Skip, Wait
from ..tallies import ConsumerTally
from . import attempts
from .forwarding import Forwarded, Forwarder
from .lanes import Lane, Lanes
from .patience import Neighbours, Outage, is_of_database
from .slices import Slice, Tried

log = logging.getLogger(__name__)

_IN_A_ROW = 3
"""So many messages of a lane become dead letters one after another before the next ones are stored together."""
_TOGETHER = 200
"""Dead letters that are stored in one transaction at most."""
_SECONDS_TOGETHER = 0.5
"""None of them waits longer than this for the others."""


class Settler:
    """Settles what failed in the lanes of one handler thread. Raises `ConfigurationError` for paths it cannot use."""

    def __init__(self, consumer: conf.Consumer, group_id: str, tally: ConsumerTally, lanes: Lanes) -> None:
        self.consumer = consumer
        self.group_id = group_id
        self.tally = tally
        self.lanes = lanes
        self._publisher = Publisher(consumer, group_id)
        self.forwarder: Forwarder | None = Forwarder(consumer)
        """What sends messages to retry topics; None: they are tried again where they are."""
        self._usual = retries.policy_for(consumer, "")
        topics = [conf.kafka().prefixed(one) for one in consumer.topics]
        self._policies = {topic: retries.policy_for(consumer, topic) for topic in topics}
        self._together = not holds.keeps(consumer)

    def failed(self, lane: Lane, piece: Slice, found: TopicHandlers, index: int, error: Exception) -> float | None:
        """Do what is decided about a failed attempt; return how many seconds its lane must wait, or None: go on."""
        message = attempts.message_at(piece, found, index)
        policy = self._policies.get(found.topic, self._usual)
        verdict = retries.decide(error, message.attempt, policy, message)
        if not isinstance(verdict, Skip):
            _forget_produced()
        match verdict:
            case Again():
                return self._meet_again(lane)
            case Wait() if self._is_its_own_fault(lane, piece.messages[index].offset() or 0, error):
                self._give_up(lane, piece, found, index, message, error, DeadLetter("outage", expected=True))
            case Wait():
                return self._wait_out(lane, verdict)
            # A record of a message whose effects are committed is no attempt at it.
            case Retry() if policy.topics and self.forwarder is not None and index == piece.done:
                self._forward(lane, piece, found, message, error, verdict, policy.max_backoff)
            case Retry():
                return self._try_again(lane, piece, found, index, message, error, verdict)
            case Skip():
                self._skip(lane, piece, index, message, verdict)
            case DeadLetter() if self._surges(error, verdict):
                return self._hold(lane, piece, found, index, message, error, verdict)
            case DeadLetter():
                self._give_up(lane, piece, found, index, message, error, verdict)
        return None

    def _is_its_own_fault(self, lane: Lane, offset: int, error: Exception) -> bool:
        """Tell whether a message has met an outage for so long, while its neighbours succeeded, that it is to blame."""
        now, elsewhere = time.monotonic(), self.lanes.elsewhere.neighbours
        own = 0 if self.lanes.circuit is None else self.lanes.circuit.succeeded()
        succeeded = own + elsewhere.succeeded
        outage = lane.outage
        if outage is None or outage.offset != offset:
            lane.outage = Outage(offset, now, succeeded)
            return False
        outage.met_again(now, succeeded)
        patience = self.consumer.outage_patience
        if now - outage.since < patience or is_of_database(error):
            return False
        lanes = list(self.lanes)
        here = Neighbours(succeeded=own, lanes=len(lanes), waiting=sum(one.outage is not None for one in lanes))
        if not outage.is_its_own_fault(now, patience, here + elsewhere):
            return False
        lane.outage = None
        error.add_note(
            f"It was waited for {now - outage.since:.0f} s while other messages of the consumer succeeded: an outage "
            "that meets one message only is taken for that message's own fault."
        )
        return True

    def _surges(self, error: Exception, verdict: DeadLetter) -> bool:
        """Note that a message is given up; tell whether so many are that it has to wait instead."""
        if self.lanes.circuit is None or verdict.expected:
            return False
        return self.lanes.circuit.failed(type(retries.blamed(error)).__name__)

    def _meet_again(self, lane: Lane) -> float:
        """Let a lane try again after a database conflict: no attempt is used up."""
        self.tally.contentions += 1
        lane.waits += 1
        return 0.0 if lane.waits == 1 else retries.pause(lane.waits, first=0.005, longest=1.0)

    def _wait_out(self, lane: Lane, verdict: Wait) -> float:
        """Let a lane wait for an outage to end: no attempt is used up."""
        self.tally.outages[verdict.category] += 1
        return self._wait(lane, verdict.reason, verdict.after)

    def _wait(self, lane: Lane, reason: str, after: float | None = None) -> float:
        self.tally.waits += 1
        lane.waits += 1
        lane.reason = reason
        seconds = retries.pause(lane.waits) if after is None else after
        level = logging.WARNING if lane.waits == 1 else logging.INFO
        log.log(
            level, "consumer=%s topic=%s partition=%s waits %.1f s: %s",
            self.consumer.name, *lane.place, seconds, reason,
        )  # fmt: skip
        return seconds

    def _try_again(
        self,
        lane: Lane,
        piece: Slice,
        found: TopicHandlers,
        index: int,
        message: Message,
        error: Exception,
        verdict: Retry,
    ) -> float:
        """Remember the failed attempt, and let the lane wait for the next one."""
        self.tally.retries += 1
        if self.lanes.circuit is not None:
            self.lanes.circuit.stumbled()
        _tried, failure = self._remember(lane, piece, found, index, message, error, verdict.category)
        lane.reason = f"attempt {message.attempt} at its message failed ({failure.error_type})"
        log.info(
            "consumer=%s topic=%s partition=%s offset=%s attempt=%s failed error=%s handler=%s; again in %.1f s",
            self.consumer.name, message.topic, message.partition, message.offset, message.attempt,
            failure.error_type, failure.handler, verdict.after,
        )  # fmt: skip
        return verdict.after

    def _forward(
        self,
        lane: Lane,
        piece: Slice,
        found: TopicHandlers,
        message: Message,
        error: Exception,
        verdict: Retry,
        longest: float,
    ) -> None:
        """Send a message to its next retry topic, so that its lane goes on; until it is there it stays unsettled."""
        assert self.forwarder is not None
        self.tally.retries += 1
        self.tally.failures[verdict.category] += 1
        if self.lanes.circuit is not None:
            self.lanes.circuit.stumbled()
        failure = attempts.failure(found, message, error, verdict.category, attempts.earlier(piece, found, piece.done))
        after = min(verdict.after, longest)
        self._settle_arrived(piece)
        forwarded = self.forwarder.forward(message, found.topic, failure, after)
        piece.forward(forwarded)
        lane.waits = lane.failing = 0
        lane.outage = None
        log.info(
            "consumer=%s topic=%s partition=%s offset=%s attempt=%s failed error=%s handler=%s; to %s, due in %.1f s",
            self.consumer.name, message.topic, message.partition, message.offset, message.attempt,
            failure.error_type, failure.handler, forwarded.delivery.topic, after,
        )  # fmt: skip

    def _settle_arrived(self, piece: Slice) -> None:
        """Settle what is in its retry topic by now: a crash would repeat all that is unsettled in the slice."""
        while (
            piece.sent and isinstance(first := piece.sent[0][1], Forwarded) and first.delivery.state == "acknowledged"
        ):
            self.expect(first)
            piece.acknowledge()

    def expect(self, arrived: Forwarded) -> None:
        """Note that a message is in its retry topic, from where it may come back to this worker."""
        delivery = arrived.delivery
        self.lanes.expect((delivery.topic, delivery.partition or 0), delivery.offset or 0)

    def not_forwarded(self, lane: Lane, piece: Slice, index: int, record: Forwarded, error: Exception) -> float | None:
        """Let a lane wait because its message cannot be sent to a retry topic; give it up when it never can be."""
        name = record.delivery.topic
        if is_hopeless(error):
            failure, note = record.failure, f"There was no other attempt: it is too large for {name}."
            piece.fail(index, replace(failure, traceback=f"{failure.traceback}{note}\n"))
            lane.failing += 1
            return None
        nature = categories.of(error)
        self.tally.outages[nature.category] += 1
        advice = "; `python manage.py kafka_topics --create` makes it" if nature.category == "configuration" else ""
        return self._wait(lane, f"{name} does not take its message ({_code(error)}{advice})")

    def _hold(
        self,
        lane: Lane,
        piece: Slice,
        found: TopicHandlers,
        index: int,
        message: Message,
        error: Exception,
        verdict: DeadLetter,
    ) -> float:
        """Keep a message that is given up, and all others, until the circuit lets it begin once more."""
        self._remember(lane, piece, found, index, message, error, verdict.category)
        lane.reason = "its consumer's circuit is open"
        self.lanes.interrupt()
        return 0.0

    def _remember(
        self,
        lane: Lane,
        piece: Slice,
        found: TopicHandlers,
        index: int,
        message: Message,
        error: Exception,
        category: str,
    ) -> tuple[Tried, Failure]:
        """Remember a failed attempt of a message that will have another."""
        self.tally.failures[category] += 1
        tried = piece.tried_at(index)
        if tried is None:
            tried = piece.tried = Tried(index)
        tried.attempts += 1
        failure = attempts.failure(found, message, error, category)
        tried.failures.append(failure)
        # An attempt that fails by itself met no outage.
        lane.waits = 0
        lane.outage = None
        return tried, failure

    def _skip(self, lane: Lane, piece: Slice, index: int, message: Message, verdict: Skip) -> None:
        self.tally.skipped += 1
        log.info(
            "consumer=%s topic=%s partition=%s offset=%s skipped: %s",
            self.consumer.name, message.topic, message.partition, message.offset, verdict.reason,
        )  # fmt: skip
        if index < piece.done:
            # Of a record that its handler produced: nobody waits for it any longer.
            piece.forget_sent(index)
        else:
            gathered = here.now.gathered
            if gathered is not None and gathered.sent:
                # What went out at once is out.
                piece.await_later(gathered)
            _forget_produced()
            piece.done += 1
        lane.waits = 0
        lane.outage = None

    def _give_up(
        self,
        lane: Lane,
        piece: Slice,
        found: TopicHandlers,
        index: int,
        message: Message,
        error: Exception,
        verdict: DeadLetter,
    ) -> None:
        """Keep a dead letter to be stored; until it is, its message stays unsettled."""
        self.tally.failures[verdict.category] += 1
        before = attempts.earlier(piece, found, index)
        piece.fail(index, attempts.failure(found, message, error, verdict.category, before))
        lane.failing += 1
        lane.outage = None

    def condemn(self, lane: Lane, piece: Slice, found: TopicHandlers, error: Exception) -> None:
        """Give the next message up without running it."""
        message = attempts.message_at(piece, found, piece.done)
        self._give_up(lane, piece, found, piece.done, message, error, DeadLetter("handler", expected=True))

    def held(self, lane: Lane, reason: str) -> float:
        """Let a lane wait for something else than its message; return for how many seconds."""
        return self._wait(lane, reason)

    def due(self, lane: Lane, piece: Slice) -> bool:
        """Tell whether the letters of a slice must be stored before its next message is begun.

        Only while one message after another fails are they stored together: a letter that cannot be stored holds its
        lane, and who waits for a letter does not wait for more than a moment.
        """
        if not self._together or lane.failing < _IN_A_ROW:
            return True
        if lane.interrupted or piece.done in (len(piece.messages), lane.until):
            return True
        index, _failure = piece.failed[-1]
        if index != piece.done - 1 or len(piece.failed) >= _TOGETHER:
            return True
        return time.monotonic() - piece.failing_since >= _SECONDS_TOGETHER

    def store(self, lane: Lane, piece: Slice, found: TopicHandlers) -> float | None:
        """Store the dead letters of a slice; only then may the watermark pass their messages."""
        while piece.failed:
            some = [
                (Message(found.original(piece.messages[index]), found.decoder, failure.attempt), failure)
                for index, failure in piece.failed
            ]
            try:
                stored = recording.record_all(self.consumer, self.group_id, some, still_ours=lambda: still_ours(lane))
            except PartitionLost:
                return None
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever kept it from being written: the message is not settled
                return self._wait(lane, f"its dead letter could not be written ({type(error).__name__})")
            self._stored(lane, piece, found, some[: len(stored)], stored)
        return None

    def _stored(
        self,
        lane: Lane,
        piece: Slice,
        found: TopicHandlers,
        stored: list[tuple[Message, Failure]],
        letters: Sequence[Letter],
    ) -> None:
        self.tally.dead_lettered += len(stored)
        for message, failure in stored:
            log.warning(
                "consumer=%s topic=%s partition=%s offset=%s dead letter error=%s handler=%s attempts=%s",
                self.consumer.name, message.topic, message.partition, message.offset,
                failure.error_type, failure.handler, failure.attempt,
            )  # fmt: skip
        if lane.held_keys is not None:
            lane.held_keys.update({message.raw_key: 0 for message, _failure in stored if message.raw_key is not None})
        # What receivers of the signal produced is no part of the next message.
        _forget_produced()
        for (index, _failure), (message, _same), letter in zip(piece.failed, stored, letters, strict=False):
            if (published := self._publisher.publish(letter, message, found.topic)) is not None:
                piece.await_record(index, published)
        piece.forget_failed(len(stored))
        lane.waits = 0

    def unpublished(self, lane: Lane, piece: Slice, record: Published, error: Exception) -> float | None:
        """Let a lane wait because a stored letter cannot be sent to its topic; go on when it never can be."""
        if record.hopeless(error):
            self.tally.unpublished += 1
            log.error(
                "consumer=%s topic=%s partition=%s a dead letter is too large for %s; it is in the database only",
                self.consumer.name, *lane.place, record.delivery.topic,
            )  # fmt: skip
            piece.acknowledge()
            return None
        nature = categories.of(error)
        self.tally.outages[nature.category] += 1
        return self._wait(lane, f"{record.delivery.topic} does not take its dead letter ({_code(error)})")


def _code(error: BaseException) -> str:
    return error.code if isinstance(error, DeliveryFailed) else type(error).__name__


def _forget_produced() -> None:
    gathered = here.now.gathered
    if gathered is not None:
        gathered.clear()


def still_ours(lane: Lane) -> None:
    """Raise `PartitionLost` when the partition of a lane has a new owner."""
    if lane.lost:
        raise PartitionLost(f"{lane.place[0]}[{lane.place[1]}] has a new owner; its messages are handled there.")
