"""Polling where offsets are committed with effects: nothing is fetched before it is claimed, and from there on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .. import logs
from ..claims import Claimed
from ..clients.consumer import ConsumerClient, is_fatal
from .claiming import Claimant
from .lane import Place
from .partition import Partition
from .polling import Poller

log = logs.of(__name__)

_SOON = 1.0
"""Seconds until what the client could not do is tried again."""


class ClaimingPoller(Poller):
    """Begins partitions at their claims. What it commits to the brokers only tells others how far it is."""

    claims = True

    def _connect(self, chosen: dict[str, Any]) -> ConsumerClient:
        begins = str(chosen["auto.offset.reset"])
        self._claimant = Claimant(self.consumer, str(chosen["group.id"]), begins, self._fail)
        # Where the log has ended the client must not choose another place by itself: that would skip messages.
        return ConsumerClient(self.consumer.name, {**chosen, "auto.offset.reset": "error"}, self, idle=True)

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.stopping.set()

    def run(self) -> None:
        """Poll until the end, and claim what comes."""
        self._claimant.start()
        try:
            super().run()
        finally:
            self._claimant.end()

    def assigned(self, places: list[Place]) -> None:
        """Open the lanes of partitions that came, and have them claimed."""
        super().assigned(places)
        mine = [one for place in places if (one := self.lanes.get(place)) is not None]
        self._await_claims(self.steering.arrived(mine))

    def put_back(self, partition: Partition, where: int | None, *, moved: bool, idle: bool) -> bool:
        """Have a partition claimed, which tells where it goes on."""
        partition.paused = False
        self._await_claims([partition])
        return True

    def _await_claims(self, partitions: Collection[Partition], after: float = 0.0) -> None:
        for partition in partitions:
            partition.halted = partition.interrupted = True
        self._claimant.want(partitions, after)

    def _begin(self) -> None:
        """Leave what was just assigned idle."""

    def _turn(self) -> None:
        super()._turn()
        while self._claimant.claimed:
            self._go_on(*self._claimant.claimed.popleft())

    def _go_on(self, partition: Partition, claimed: Claimed) -> None:
        """Have a partition fetched from its claim on."""
        place = partition.place
        if self.lanes.get(place) is not partition:
            return
        try:
            self._client.begin(place, claimed.offset, self._next_offsets())
        except Exception as error:
            if is_fatal(error):
                raise
            log.warning(
                "consumer=%s topic=%s partition=%s cannot be fetched from offset %s: %s; it is tried again",
                self.consumer.name, *place, claimed.offset, type(error).__name__,
            )  # fmt: skip
            self._await_claims([partition], _SOON)
            return
        self._store_again()
        self._commits.expect()
        partition.claim, partition.finish = claimed, claimed.settle
        partition.done_before = set(claimed.settled)
        partition.expected = claimed.offset
        partition.at_end = partition.paused = partition.halted = partition.interrupted = False
        partition.blocked = ""
        log.info(
            "consumer=%s topic=%s partition=%s claimed offset=%s epoch=%s",
            self.consumer.name, *place, claimed.offset, claimed.epoch,
        )  # fmt: skip

    def _throttle(self, lanes: Collection[Partition]) -> None:
        begun = []
        for partition in lanes:
            if partition.claim is None or partition.suspended or self.lanes.get(partition.place) is not partition:
                continue
            if partition.claim.fenced:
                # By then the group has told whose it is.
                self._reopen(partition, 2 * (self.consumer.heartbeat_interval or 3.0))
            else:
                begun.append(partition)
        super()._throttle(begun)

    def _reopen(self, partition: Partition, after: float) -> None:
        """Drop what was fetched of a partition, and claim it anew in so many seconds."""
        self._client.pause([partition.place])
        self.lanes.halt([partition.place])
        self.lanes.drop([partition])
        self._await_claims([self.lanes.open(partition.place)], after)

    def out_of_log(self, place: Place, sentence: str) -> None:
        """Claim a partition anew whose next message is not there: that tells what to do about it."""
        super().out_of_log(place, sentence)
        partition = self.lanes.get(place)
        if partition is not None and partition.claim is not None:
            self._reopen(partition, _SOON)
