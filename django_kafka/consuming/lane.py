"""A lane: messages that must be handled one after another, and what it waits for."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..exceptions import PartitionLost
from .breaker import Permit
from .patience import Outage
from .slices import Slice

if TYPE_CHECKING:
    from .partition import Partition

Place = tuple[str, int]
"""A topic and a partition."""


class Lane:
    """An ordered queue of messages of one partition: all of them, or those of some keys."""

    __slots__ = (
        "failing", "full", "halted", "held", "interrupted", "key", "number", "outage", "partition", "permit", "place",
        "reason", "resting", "running", "seen", "several", "single", "slices", "taken", "until", "waits", "wary",
    )  # fmt: skip

    def __init__(self, place: Place, partition: Partition, number: int | None = None) -> None:
        self.place = place
        self.partition = partition
        """The partition that its messages are from."""
        self.number = number
        """Its number among those that new messages of a partition are dealt to; None: it gets none, or only some."""
        self.key: bytes | None = None
        """The key that it was set apart for."""
        self.slices: deque[Slice] = deque()
        self.running = False
        """Whether a handler thread has it."""
        self.halted = False
        """Whether no further message may be begun: the partition leaves, or the worker stops."""
        self.interrupted = False
        """Whether its thread may begin no further message now: it is halted, a circuit opened, another runs alone."""
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
        self.resting = False
        """Whether its next message is not due for long enough to fetch no more."""
        self.single = False
        """Whether it is given back after each message."""
        self.several = False
        """Whether several of its messages may be in one transaction or call now, so that none can be set apart."""
        self.wary = False
        """Whether `deaths` must be asked before the next message."""
        self.full = False
        """Whether it waits because as many messages of a key are parked as may be."""
        self.taken = 0, 0.0
        """How many messages of its first slice were done when a thread took it, and when that was."""
        self.seen: tuple[Slice, int] | None = None
        """The slice that it worked on, and how far it was, when that was looked at last."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.place[0]}[{self.place[1]}]>"

    @property
    def first_unsettled(self) -> int | None:
        """The offset of its first message that is not settled; None when all are."""
        for piece in self.slices:
            settled = piece.settled
            if settled < len(piece.messages):
                return piece.messages[settled].offset()
        return None

    @property
    def behind(self) -> int:
        """How many messages wait behind the one that runs."""
        return sum(len(piece.messages) for piece in self.slices) - self.slices[0].done - 1 if self.slices else 0

    def still_ours(self) -> None:
        """Raise `PartitionLost` when the partition has a new owner."""
        if self.partition.lost:
            raise PartitionLost(f"{self.place[0]}[{self.place[1]}] has a new owner; its messages are handled there.")
