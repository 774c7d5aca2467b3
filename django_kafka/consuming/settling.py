"""Settling what failed: what is decided about an attempt is done here."""

from __future__ import annotations

import time
from dataclasses import replace

from .. import categories, conf, correlation, logs, retries, subscriptions
from ..dead_letters.failures import Failure
from ..dead_letters.publishing import is_hopeless
from ..gathering import here
from ..handlers import TopicHandlers
from ..retries import Again, DeadLetter, Retry, Skip, Wait
from ..tallies import ConsumerTally
from .attempts import Attempt
from .forwarding import Forwarded, Forwarder
from .giving_up import Letters
from .lane import Lane
from .lanes import Lanes
from .patience import Neighbours, Outage, is_of_database
from .slices import Slice, Tried
from .waiting import Waits, code_of

log = logs.of(__name__)


class Settler:
    """Settles what failed in the lanes of one handler thread. Raises `ConfigurationError` for paths it cannot use."""

    letters_kind: type[Letters] = Letters

    def __init__(self, consumer: conf.Consumer, group_id: str, tally: ConsumerTally, lanes: Lanes) -> None:
        self.consumer = consumer
        self.group_id = group_id
        self.tally = tally
        self.lanes = lanes
        self.waits = Waits(consumer.name, tally)
        self.letters = self.letters_kind(consumer, group_id, tally, self.waits)
        self.forwarder: Forwarder | None = Forwarder(consumer)
        """What sends messages to retry topics; None: they are tried again where they are."""
        self._usual = retries.policy_of(consumer, None)
        self._policies = {name: retries.policy_of(consumer, own) for name, own in consumer.topics.items()}

    def failed(self, lane: Lane, piece: Slice, found: TopicHandlers, index: int, error: Exception) -> float | None:
        """Do what is decided about a failed attempt; return how many seconds its lane must wait, or None: go on."""
        attempt = Attempt(lane, piece, found, index, error)
        with correlation.about(attempt.message):
            return self._settle(attempt, error)

    def _settle(self, attempt: Attempt, error: Exception) -> float | None:
        lane, piece, found, index = attempt.lane, attempt.piece, attempt.found, attempt.index
        policy = self._policy(found.topic)
        verdict = retries.decide(error, attempt.message.attempt, policy, attempt.message)
        if not isinstance(verdict, Skip):
            here.forget()
            met, message = retries.blamed(error), attempt.message
            self.tally.last_error = (
                f"{type(met).__module__}.{type(met).__qualname__} at {message.topic}[{message.partition}]"
                f"@{message.offset}"
            )
        match verdict:
            case Again():
                return self.waits.for_others(lane)
            case Wait() if self._is_its_own_fault(attempt):
                self.letters.keep(attempt, "outage")
            case Wait():
                piece.forget_named()
                return self.waits.for_an_outage(lane, verdict.category, verdict.reason, verdict.after)
            # A record of a message whose effects are committed is no attempt at it.
            case Retry() if policy.topics and self.forwarder is not None and index == piece.done:
                self._forward(self.forwarder, attempt, verdict, policy.max_backoff)
            case Retry():
                return self._try_again(attempt, verdict)
            case Skip():
                self._skip(attempt, verdict)
            case DeadLetter() if self._surges(error, verdict):
                return self._hold(attempt, verdict)
            case DeadLetter():
                self.letters.keep(attempt, verdict.category)
        return None

    def _policy(self, topic: str) -> retries.Policy:
        own = subscriptions.settings_of(self.consumer, topic)
        return self._usual if own is None else self._policies[own.name]

    def failed_together(
        self, lane: Lane, piece: Slice, found: TopicHandlers, error: Exception, until: int
    ) -> float | None:
        """Have messages that failed together before index `until` tried by halves, until those to blame are alone.

        Returns how many seconds their lane must wait first, as for an outage, or None. No attempt is used up.
        """
        piece.suspect = until
        here.forget()
        # What the project decides, it decides about one message.
        policy = replace(self._policy(found.topic), judge=None)
        match retries.decide(error, policy=policy):
            case Again():
                return self.waits.for_others(lane)
            case Wait() as verdict:
                if lane.outage is None:
                    own = 0 if self.lanes.circuit is None else self.lanes.circuit.succeeded()
                    succeeded = own + self.lanes.elsewhere.neighbours.succeeded
                    lane.outage = Outage(piece.messages[piece.done].offset() or 0, time.monotonic(), succeeded)
                return self.waits.for_an_outage(lane, verdict.category, verdict.reason, verdict.after)
        log.info(
            "consumer=%s topic=%s partition=%s %s messages from offset=%s failed together error=%s; tried by halves",
            self.consumer.name, *lane.place, until - piece.done, piece.messages[piece.done].offset(),
            type(error).__name__,
        )  # fmt: skip
        return None

    def condemn(self, lane: Lane, piece: Slice, found: TopicHandlers, error: Exception) -> None:
        """Give the next message up without running it."""
        self.letters.keep(Attempt(lane, piece, found, piece.done, error), "handler")

    def _is_its_own_fault(self, attempt: Attempt) -> bool:
        """Tell whether a message has met an outage for so long, while its neighbours succeeded, that it is to blame."""
        now, elsewhere = time.monotonic(), self.lanes.elsewhere.neighbours
        own = 0 if self.lanes.circuit is None else self.lanes.circuit.succeeded()
        succeeded = own + elsewhere.succeeded
        outage, offset = attempt.lane.outage, attempt.message.offset
        if outage is None or outage.offset != offset:
            attempt.lane.outage = Outage(offset, now, succeeded)
            return False
        outage.met_again(now, succeeded)
        patience = self.consumer.outage_patience
        if now - outage.since < patience or is_of_database(attempt.error):
            return False
        here = Neighbours(succeeded=own, lanes=self.lanes.width(), waiting=self.lanes.waiting())
        if not outage.is_its_own_fault(now, patience, here + elsewhere):
            return False
        attempt.lane.outage = None
        attempt.error.add_note(
            f"It was waited for {now - outage.since:.0f} s while other messages of the consumer succeeded: an outage "
            "that meets one message only is taken for that message's own fault."
        )
        return True

    def _surges(self, error: Exception, verdict: DeadLetter) -> bool:
        """Note that a message is given up; tell whether so many are that it has to wait instead."""
        if self.lanes.circuit is None or verdict.expected:
            return False
        return self.lanes.circuit.failed(type(retries.blamed(error)).__name__)

    def _try_again(self, attempt: Attempt, verdict: Retry) -> float:
        """Remember the failed attempt, and let the lane wait for the next one."""
        self.tally.of_topic(attempt.lane.place[0]).retries += 1
        if self.lanes.circuit is not None:
            self.lanes.circuit.stumbled()
        failure, message = self._remember(attempt, verdict.category), attempt.message
        attempt.lane.reason = f"attempt {message.attempt} at its message failed ({failure.error_type})"
        log.info(
            "consumer=%s topic=%s partition=%s offset=%s attempt=%s failed error=%s handler=%s; again in %.1f s",
            self.consumer.name, message.topic, message.partition, message.offset, message.attempt,
            failure.error_type, failure.handler, verdict.after,
        )  # fmt: skip
        return verdict.after

    def _hold(self, attempt: Attempt, verdict: DeadLetter) -> float:
        """Keep a message that is given up, and all others, until the circuit lets it begin once more."""
        self._remember(attempt, verdict.category)
        attempt.lane.reason = "its consumer's circuit is open"
        attempt.piece.forget_named()
        self.lanes.interrupt()
        return 0.0

    def _remember(self, attempt: Attempt, category: str) -> Failure:
        """Remember a failed attempt of a message that will have another."""
        self.tally.of_topic(attempt.lane.place[0]).failures[category] += 1
        piece = attempt.piece
        tried = piece.tried_at(attempt.index)
        if tried is None:
            tried = piece.tried = Tried(attempt.index)
        tried.attempts += 1
        failure = attempt.failure(category)
        tried.failures.append(failure)
        # An attempt that fails by itself met no outage.
        attempt.lane.waits = 0
        attempt.lane.outage = None
        return failure

    def _skip(self, attempt: Attempt, verdict: Skip) -> None:
        self.tally.of_topic(attempt.lane.place[0]).skipped += 1
        message, piece = attempt.message, attempt.piece
        log.info(
            "consumer=%s topic=%s partition=%s offset=%s skipped: %s",
            self.consumer.name, message.topic, message.partition, message.offset, verdict.reason,
        )  # fmt: skip
        if attempt.index < piece.done:
            # Of a record that its handler produced: nobody waits for it any longer.
            piece.forget_sent(attempt.index)
        else:
            gathered = here.now.gathered
            if gathered is not None and gathered.sent:
                # What went out at once is out.
                piece.await_later(gathered)
            here.forget()
            piece.done += 1
        attempt.lane.waits = 0
        attempt.lane.outage = None

    def _forward(self, forwarder: Forwarder, attempt: Attempt, verdict: Retry, longest: float) -> None:
        """Send a message to its next retry topic, so that its lane goes on; until it is there it stays unsettled."""
        topic = self.tally.of_topic(attempt.lane.place[0])
        topic.retries += 1
        topic.failures[verdict.category] += 1
        if self.lanes.circuit is not None:
            self.lanes.circuit.stumbled()
        message, piece, lane = attempt.message, attempt.piece, attempt.lane
        failure = attempt.failure(verdict.category, attempt.earlier())
        after = min(verdict.after, longest)
        self._settle_arrived(piece)
        forwarded = forwarder.forward(message, attempt.found.topic, failure, after)
        piece.forward(forwarded)
        topic.forwarded += 1
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
        category = categories.of(error).category
        advice = "; `python manage.py kafka_topics --create` makes it" if category == "configuration" else ""
        reason = f"{name} does not take its message ({code_of(error)}{advice})"
        return self.waits.for_an_outage(lane, category, reason)
