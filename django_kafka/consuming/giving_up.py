"""Messages that are given up: until their dead letters are stored they stay unsettled."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .. import categories, conf, correlation, logs
from ..dead_letters import holds, recording
from ..dead_letters.failures import Failure
from ..dead_letters.publishing import Published, Publisher, is_hopeless
from ..exceptions import PartitionLost
from ..gathering import here
from ..handlers import TopicHandlers
from ..messages import Message
from ..models import DeadLetter
from ..tallies import ConsumerTally
from .attempts import Attempt
from .lane import Lane
from .slices import Slice
from .waiting import Waits, code_of

log = logs.of(__name__)

_IN_A_ROW = 3
"""So many messages of a lane become dead letters one after another before the next ones are stored together."""
_TOGETHER = 200
"""Dead letters that are stored in one transaction at most."""
_SECONDS_TOGETHER = 0.5
"""None of them waits longer than this for the others."""


class Letters:
    """Keeps and stores the dead letters of one handler thread."""

    several = True
    """Whether letters may wait to be stored with others."""

    def __init__(self, consumer: conf.Consumer, group_id: str, tally: ConsumerTally, waits: Waits) -> None:
        self.consumer = consumer
        self.group_id = group_id
        self.tally = tally
        self.waits = waits
        self._publisher = Publisher(consumer, group_id)
        self._together = self.several and not holds.keeps(consumer)

    def keep(self, attempt: Attempt, category: str) -> None:
        """Keep the dead letter of an attempt's message to be stored; until it is, the message stays unsettled."""
        self.tally.of_topic(attempt.lane.place[0]).failures[category] += 1
        attempt.piece.fail(attempt.index, attempt.failure(category, attempt.earlier()))
        attempt.lane.failing += 1
        attempt.lane.outage = None

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
        """Store the dead letters of a slice; only then may the watermark pass their messages.

        Returns how many seconds the lane must wait because they could not be stored, or None.
        """
        while piece.failed:
            some = [
                (Message(found.original(piece.messages[index]), found.decoder, failure.attempt), failure)
                for index, failure in piece.failed
            ]
            try:
                stored = recording.record_all(
                    self.consumer, self.group_id, some, still_ours=lane.still_ours, finish=lane.partition.finish
                )
            except PartitionLost:
                return None
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever kept it from being written: the message is not settled
                reason = f"its dead letter could not be written ({type(error).__name__})"
                return self.waits.for_something(lane, reason)
            self._stored(lane, piece, found, some[: len(stored)], stored)
        return None

    def _stored(
        self,
        lane: Lane,
        piece: Slice,
        found: TopicHandlers,
        stored: list[tuple[Message, Failure]],
        letters: Sequence[DeadLetter],
    ) -> None:
        topic, count = self.tally.of_topic(lane.place[0]), len(stored)
        topic.dead_lettered += count
        self._tell(stored)
        if (keys := lane.partition.held_keys) is not None:
            keys.update({message.raw_key: 0 for message, _failure in stored if message.raw_key is not None})
        # What receivers of the signal produced is no part of the next message.
        here.forget()
        for (index, _failure), (message, _same), letter in zip(piece.failed, stored, letters, strict=False):
            if (published := self._publisher.publish(letter, message, found.topic)) is not None:
                piece.await_record(index, published)
        piece.forget_failed(len(stored))
        lane.waits = 0

    def _tell(self, stored: list[tuple[Message, Failure]]) -> None:
        if len(stored) == 1:
            ((message, failure),) = stored
            with correlation.about(message):
                log.warning(
                    "consumer=%s topic=%s partition=%s offset=%s dead letter error=%s handler=%s attempts=%s",
                    self.consumer.name, message.topic, message.partition, message.offset,
                    failure.error_type, failure.handler, failure.attempt,
                )  # fmt: skip
            return
        # Of a retry topic they may have come from several partitions.
        kinds: dict[tuple[str, int, str, str], list[int]] = {}
        for message, failure in stored:
            kind = message.topic, message.partition, failure.error_type, failure.handler
            kinds.setdefault(kind, []).append(message.offset)
        for (topic, partition, error, handler), offsets in kinds.items():
            log.warning(
                "consumer=%s topic=%s partition=%s offsets=%s..%s %s dead letters error=%s handler=%s",
                self.consumer.name, topic, partition, min(offsets), max(offsets), len(offsets), error, handler,
            )  # fmt: skip

    def unpublished(self, lane: Lane, piece: Slice, record: Published, error: Exception) -> float | None:
        """Let a lane wait because a stored letter cannot be sent to its topic; go on when it never can be."""
        if is_hopeless(error):
            self.tally.unpublished += 1
            log.error(
                "consumer=%s topic=%s partition=%s a dead letter is too large for %s; it is in the database only",
                self.consumer.name, *lane.place, record.delivery.topic,
            )  # fmt: skip
            piece.acknowledge()
            return None
        category = categories.of(error).category
        reason = f"{record.delivery.topic} does not take its dead letter ({code_of(error)})"
        return self.waits.for_an_outage(lane, category, reason)
