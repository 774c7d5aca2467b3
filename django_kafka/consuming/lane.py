"""A lane: the messages of one partition that a worker has and has not settled, and what it waits for."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..exceptions import PartitionLost
from ..messages import RawMessage
from .breaker import Permit
from .patience import Outage
from .slices import Slice

if TYPE_CHECKING:
    from .deaths import Holding

Place = tuple[str, int]
"""A topic and a partition."""


class Lane:
    """The messages of one partition that this worker has and has not settled."""

    __slots__ = (
        "at_end", "awaits", "bytes", "expected", "failing", "full", "halted", "held", "held_keys", "in_flight",
        "interrupted", "lost", "outage", "paused", "permit", "place", "reason", "resting", "running", "slices",
        "stored", "tenure", "until", "waits", "wary", "watermark",
    )  # fmt: skip

    def __init__(self, place: Place) -> None:
        self.place = place
        self.slices: deque[Slice] = deque()
        self.in_flight = 0
        """Messages in its slices."""
        self.bytes = 0
        """Their bytes."""
        self.expected: int | None = None
        """The offset that the next fetched message should have."""
        self.watermark: RawMessage | None = None
        """The last message of all slices that are settled whole."""
        self.stored = -1
        """The offset that was last handed to the client for committing."""
        self.running = False
        """Whether a handler thread has it."""
        self.halted = False
        """Whether no further message may be begun: the partition leaves, or the worker stops."""
        self.interrupted = False
        """Whether its thread may begin no further message now: it is halted, a circuit opened, another runs alone."""
        self.lost = False
        """Whether the partition belongs to somebody else, so that nothing may be stored for it."""
        self.held = False
        """Whether it waits: for an outage to end, or until its message is tried again."""
        self.waits = 0
        """How many times in a row it waited."""
        self.failing = 0
        """How many of its messages became dead letters, one after another."""
        self.reason = ""
        """What it waited for last."""
        self.outage: Outage | None = None
        """What its first message waits for, while it meets an outage."""
        self.permit: Permit | None = None
        """Leave of the circuit to begin some messages; None: it may begin all."""
        self.until: int | None = None
        """The index in its first slice up to which it may begin messages; None: all of them."""
        self.paused = False
        """Whether fetching for it is paused."""
        self.at_end = False
        """Whether the broker said that there is nothing more for now."""
        self.awaits = -1
        """The offset up to which this worker itself has sent messages here, so that there is more before that."""
        self.resting = False
        """Whether its next message is not due for long enough to fetch no more."""
        self.tenure: Holding | None = None
        """What `deaths` knows of it; None when nobody watches for deaths."""
        self.wary = False
        """Whether `deaths` must be asked before the next message."""
        self.held_keys: dict[bytes, int] | None = None
        """Keys that are held, or were lately, and how many messages are parked behind each at most; None: not read."""
        self.full = False
        """Whether it waits because as many messages of a key are parked as may be."""

    def __repr__(self) -> str:
        return f"<Lane {self.place[0]}[{self.place[1]}]>"

    def settled_message(self) -> RawMessage | None:
        """Return the last message below the watermark.

        Read by the poller while a handler thread writes: the finished slices last, so that one that is finished in
        between never leads back behind what was seen before.
        """
        try:
            first = self.slices[0]
        except IndexError:
            return self.watermark
        settled = first.settled
        return first.messages[settled - 1] if settled else self.watermark

    def still_ours(self) -> None:
        """Raise `PartitionLost` when the partition has a new owner."""
        if self.lost:
            raise PartitionLost(f"{self.place[0]}[{self.place[1]}] has a new owner; its messages are handled there.")
