"""Commits: the watermarks of a consumer's partitions are told to its group, and told again when it does not take them.

One at a time: a commit that the client sends again would overtake a later one, and take the group back.

For the poller's thread alone, as the client is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping

from ..clients.consumer import ConsumerClient
from .lane import Place
from .lanes import Lanes
from .partition import Partition

_AGAIN = 0.5
"""Seconds after which a commit that was refused is made again."""
_NO_ANSWER = 3.0
"""Seconds for which a leaving worker waits for the answer to a commit."""
_AT_MOST = 10.0
"""Seconds for which it makes a commit again that is refused."""
_FOR_NOW = frozenset({"REBALANCE_IN_PROGRESS", "COORDINATOR_LOAD_IN_PROGRESS", "NOT_COORDINATOR"})
"""Why a group takes no commit for a moment."""


class Commits:
    """Stores the watermarks of partitions, and has them committed.

    Also on an interval it is not the client that commits by itself: that would not wait for the answer to the last one.
    """

    def __init__(self, client: ConsumerClient, lanes: Lanes, *, every: float = 0.0) -> None:
        """What moved is committed `every` so many seconds; 0: as soon as it may be."""
        self._client = client
        self._lanes = lanes
        self._every = every
        self._last = time.monotonic()
        self._refused: str | None = None
        self._due = math.inf

    def settle(self, partitions: Collection[Partition], *, wait: bool = False) -> None:
        """Store the watermarks that moved, and commit them when it is time to, or now and `wait` for the answer."""
        moved = {}
        for partition in partitions:
            message = self._lanes.settled(partition)
            if message is not None and (offset := message.offset() or 0) != partition.stored:
                moved[partition.place] = message
                partition.stored = offset
        if moved:
            self._client.store(moved)
            self.expect()
        # The last commit of all is made even when nothing moved: an earlier one may have failed.
        if wait or self._may_commit():
            self._commit(wait=wait)

    def expect(self) -> None:
        """Have what was stored committed when it is time to."""
        self._due = min(self._due, self._last + self._every) if self._every else -math.inf

    def _may_commit(self) -> bool:
        return time.monotonic() >= self._due and not self._client.committing

    def _commit(self, *, wait: bool = False) -> None:
        self._refused, self._due, self._last = None, math.inf, time.monotonic()
        self._client.commit(wait=wait)

    def answered(self, offsets: Mapping[Place, int], refused: str | None) -> None:
        """Note which offsets the group has, and the code for which it has refused others."""
        for place, offset in offsets.items():
            if (partition := self._lanes.get(place)) is not None:
                partition.committed = offset
        if refused is not None:
            self._refused, self._due = refused, time.monotonic() + _AGAIN

    def conclude(self, partitions: Collection[Partition], *, poll: Callable[[], object]) -> None:
        """Commit until the group has what is settled, polling all the while: in mid-rebalance it takes nothing.

        A commit that is waited for would hang then, until the session has timed out.
        """
        began = asked = time.monotonic()
        self._due = -math.inf
        if self._may_commit():
            self._commit()
        while any(one.stored >= max(one.committed, 0) and not one.lost for one in partitions):
            poll()
            now = time.monotonic()
            if self._refused is None and now - asked >= _NO_ANSWER:
                return
            if self._refused not in (None, *_FOR_NOW) or now - began >= _AT_MOST:
                return
            if self._may_commit():
                asked = now
                self._commit()
