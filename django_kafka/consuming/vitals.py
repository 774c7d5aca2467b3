"""Whether a worker lives and is ready: what orchestrators are told, and heartbeats write down.

Not alive is only what a restart helps. Waiting for an outage is not: orchestrators that kill for it would make it
worse, and a message that was with three killed workers becomes a dead letter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from .. import conf, deadlines
from .circuits import Standing

_STUCK_AFTER = 2
"""Times its limit that a handler may take."""
_UNSETTLED_AFTER = 2
"""Times `max.poll.interval.ms` that a group may take to give it a place: so long it may wait for a slow member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """How a worker is."""

    state: str
    """starting, joining, unsettled, running, waiting, paused, stopping or stuck."""
    not_live: str = ""
    """Why only a restart helps; "" when it would not."""
    not_ready: str = ""
    """Why it does not do its work now; "" when it does."""


class Polling(Protocol):
    """A poller as this sees it."""

    polled: float
    max_poll_interval: float

    @property
    def unsteady(self) -> float:
        """For how many seconds it has had no settled place in its group."""

    @property
    def away(self) -> bool:
        """Whether brokers are out of reach."""


def vitals(
    consumer: str, poller: Polling, *, polls: bool, stopping: bool, waits_for: str, circuit: Standing, paused: str = ""
) -> Vitals:
    """Tell how a worker is.

    `polls`: whether its poll loop runs; `waits_for`: what an outage keeps it from; `paused`: by whom it is paused.
    """
    if stopping:
        return Vitals(state="stopping", not_ready="It is stopping.")
    not_live = _not_live(consumer, poller, polls, waiting=bool(waits_for) or poller.away)
    if not_live:
        return Vitals(state="stuck", not_live=not_live, not_ready=not_live)
    if poller.away:
        return Vitals(state="waiting", not_ready="Its brokers are out of reach; it goes on when they answer.")
    if poller.unsteady:
        long = poller.unsteady > _UNSETTLED_AFTER * poller.max_poll_interval
        return Vitals(
            state="unsettled" if long else "joining",
            not_ready=f"It has had no settled place in its group for {poller.unsteady:.0f} s.",
        )
    if paused:
        return Vitals(state="paused", not_ready=paused)
    if waits_for:
        return Vitals(state="waiting", not_ready=f"It waits: {waits_for}")
    if circuit.state.value != "closed":
        return Vitals(state="paused", not_ready=f"Its circuit is {circuit.state.value}: {circuit.reason}")
    return Vitals(state="running")


def _not_live(consumer: str, poller: Polling, polls: bool, *, waiting: bool) -> str:
    if not polls:
        return "Its poll loop has ended."
    age, most = time.monotonic() - poller.polled, conf.kafka().health.max_poll_age or poller.max_poll_interval
    if age > most:
        return f"It has not polled for {age:.0f} s; allowed are {most:g} s."
    if waiting:
        return ""
    for one in deadlines.overdue(consumer):
        if one.seconds() > _STUCK_AFTER * one.limit:
            message = one.message
            return (
                f"{one.handler} has run for {one.seconds():.0f} s on {message.topic}[{message.partition}]"
                f"@{message.offset}; its limit is {one.limit:g} s."
            )
    return ""
