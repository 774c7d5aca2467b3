"""Threads that handle the messages of lanes: what handler threads and event loops have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .. import conf
from ..tallies import ConsumerTally
from .lanes import Lanes
from .settling import Settler


class LaneThread(threading.Thread):
    """A thread that works for the lanes of one consumer."""

    settler_kind: type[Settler] = Settler

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
        self.settler = self.settler_kind(consumer, group_id, tally, lanes)
        self.succeeded = 0
        """How many messages have succeeded in it, without those that it works on or waits for."""
        self._prepare()

    def _prepare(self) -> None:
        """Make what this kind has besides, before it starts."""

    def succeeded_now(self) -> int:
        """Return how many messages have succeeded in it, counted up to this moment; for other threads."""
        return self.succeeded
