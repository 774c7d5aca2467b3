"""Membership: what a worker does when partitions come to it, leave it, and when it leaves its group itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from django.db import connections
from django.dispatch import Signal

from .. import conf, logs, signals
from ..clients.consumer import ConsumerClient
from ..clients.events import Events
from ..gathering import close_broken_connections
from ..tallies import ConsumerTally
from .commits import Commits
from .controlling import Steering
from .lane import Place
from .lanes import Lanes
from .partition import Partition
from .troubles import Troubles

log = logs.of(__name__)

_LOOK = 0.1
"""Seconds for which what runs is waited for between two polls."""
_LEAVING = 0.01
"""Seconds of a poll while a worker leaves: it takes all of them, also when what is waited for has come meanwhile."""
_LEAVE_AT_MOST = 10.0
"""Seconds for partitions to be given back at the end, which takes no answer of a broker."""


class Member(Events):
    """Answers what the group decides. Its client, commits and steering are of whoever polls."""

    _client: ConsumerClient
    _commits: Commits
    steering: Steering
    _drain_at_most: float
    """Seconds for which what runs in partitions that leave is waited for."""

    def __init__(self, consumer: conf.Consumer, lanes: Lanes, tally: ConsumerTally, worker: object) -> None:
        self.consumer = consumer
        self.lanes = lanes
        self.tally = tally
        self.stopping = threading.Event()
        self._worker = worker
        """What receivers of signals get to know."""
        self.rebalanced: float | None = None
        """When partitions came or went last, by the monotonic clock."""
        self._assigned_once = False
        self._quiet_from = 0.0
        """When the group will have had the time to tell of another rebalance: it does so at heartbeats."""
        self._left_at: float | None = None
        """When partitions left, of a group that gives out all of them anew."""
        self._revoked_now: set[Place] = set()
        self._assigned_now: set[Place] = set()
        self._replaced_now: set[Place] = set()
        self._troubles = Troubles(consumer.name)

    def _expect_more(self) -> None:
        """Note that partitions are on their way from one worker to another, and may come here with what is left."""
        self._quiet_from = time.monotonic() + 2 * (self.consumer.heartbeat_interval or 3.0)

    def assigned(self, places: list[Place]) -> None:
        """Open the lanes of partitions that came."""
        self._assigned_once = True
        self.rebalanced = time.monotonic()
        for place in places:
            if place in self._revoked_now:
                self._replaced_now.add(place)
            self._assigned_now.add(place)
            self.lanes.open(place)
        if not len(self.lanes):
            self._expect_more()
        if self._left_at is not None:
            self.tally.rebalancing.add(time.monotonic() - self._left_at)
            self._left_at = None
        self.tally.rebalances += 1
        log.info("consumer=%s assigned=%s", self.consumer.name, _listed(places))
        self._tell(signals.partitions_assigned, partitions=places)

    def revoked(self, places: list[Place], lost: bool) -> None:
        """Finish what runs in partitions that leave, commit what is settled, and forget the rest."""
        self._revoked_now.update(places)
        self.rebalanced = time.monotonic()
        self._expect_more()
        began = time.monotonic()
        self.steering.left(places)
        lanes = self.lanes.halt(places)
        try:
            if not lost:
                self._finish(lanes)
        finally:
            self.lanes.drop(lanes)
        if self._client.incremental:
            self.tally.rebalancing.add(time.monotonic() - began)
        elif not self.stopping.is_set():
            self._left_at = began
        self.tally.rebalances += 1
        log.info("consumer=%s %s=%s", self.consumer.name, "lost" if lost else "revoked", _listed(places))
        self._tell(signals.partitions_revoked, partitions=places, lost=lost)

    def _finish(self, lanes: Collection[Partition]) -> None:
        """Wait for what runs, but not so long that the group takes this member for dead, and commit."""
        drained = self.lanes.drain(lanes, self._drain_at_most)
        self._commits.settle(lanes, wait=True)
        if not drained:
            log.warning(
                "consumer=%s a handler still runs after %.0f s; its message is handled again by the next owner",
                self.consumer.name, self._drain_at_most,
            )  # fmt: skip

    def _tell(self, signal: Signal, **event: Any) -> None:
        signal.send_robust(self.consumer.name, worker=self._worker, **event)
        close_broken_connections()

    def committed(self, offsets: Mapping[Place, int], refused: str | None, sentence: str) -> None:
        """Note what the group has, or that it takes nothing for now."""
        self._commits.answered(offsets, refused)
        self.steering.committed(offsets)
        if refused is not None:
            self.trouble(refused, f"commit failed: {sentence}; what it covered may be read again", None)

    def out_of_log(self, place: Place, sentence: str) -> None:
        """Tell it."""
        self.trouble("_AUTO_OFFSET_RESET", sentence, place[0])

    def trouble(self, code: str, sentence: str, topic: str | None) -> None:
        """Say what the client goes on from by itself, but not all the time."""
        self._troubles.say(code, sentence, topic)

    def _leave(self) -> None:
        """Finish what runs, polling all the while, then commit and leave the group."""
        lanes = self.lanes.halt()
        self.steering.left([partition.place for partition in lanes])
        try:
            self._client.pause([partition.place for partition in lanes])
            while not self.lanes.drain(lanes, _LOOK):
                self._client.fetch(1, 0)
            self._commits.settle(lanes)
            self._commits.conclude(lanes, poll=lambda: self._client.fetch(1, _LEAVING))
            # Polled until the partitions are revoked, which commits them. In the midst of a rebalance a close() or a
            # commit that is waited for here would hang until the session has timed out.
            self._client.unsubscribe()
            deadline = time.monotonic() + _LEAVE_AT_MOST
            while len(self.lanes) and time.monotonic() < deadline:
                self._client.fetch(1, _LEAVING)
        except Exception:
            log.exception("consumer=%s leaving the group was not clean", self.consumer.name)
        finally:
            try:
                self._client.close()
            finally:
                self.lanes.drop(lanes)
                self.lanes.close()
                connections.close_all()  # what receivers of signals opened in this thread


def _listed(places: Collection[Place]) -> str:
    return ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(places)) or "nothing"
