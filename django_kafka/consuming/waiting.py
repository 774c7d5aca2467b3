"""Waiting: for how long a lane does, and what is told of it."""

from __future__ import annotations

import logging

from .. import logs, retries
from ..exceptions import DeliveryFailed
from ..tallies import ConsumerTally
from .lane import Lane

log = logs.of(__name__)


class Waits:
    """Has the lanes of one handler thread wait. Each call returns for how many seconds."""

    def __init__(self, consumer: str, tally: ConsumerTally) -> None:
        self.consumer = consumer
        self.tally = tally

    def for_something(self, lane: Lane, reason: str, after: float | None = None) -> float:
        """Let a lane wait, longer each time unless `after` says for how many seconds; no attempt is used up."""
        self.tally.waits += 1
        lane.waits += 1
        lane.reason = reason
        seconds = retries.pause(lane.waits) if after is None else after
        level = logging.WARNING if lane.waits == 1 else logging.INFO
        log.log(
            level, "consumer=%s topic=%s partition=%s waits %.1f s: %s",
            self.consumer, *lane.place, seconds, reason,
        )  # fmt: skip
        return seconds

    def for_an_outage(self, lane: Lane, category: str, reason: str, after: float | None = None) -> float:
        """Let a lane wait for an outage to end."""
        self.tally.of_topic(lane.place[0]).outages[category] += 1
        return self.for_something(lane, reason, after)

    def for_others(self, lane: Lane) -> float:
        """Let a lane try again after a database conflict."""
        self.tally.contentions += 1
        lane.waits += 1
        return 0.0 if lane.waits == 1 else retries.pause(lane.waits, first=0.005, longest=1.0)


def code_of(error: BaseException) -> str:
    """Return what names an error in a sentence about a record that could not be sent."""
    return error.code if isinstance(error, DeliveryFailed) else type(error).__name__
