"""Slices: the messages of a lane that came in one fetch, and how far they are."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field

from ..dead_letters.failures import MOST_EARLIER, Failure
from ..gathering import Gathered, Sent
from ..messages import RawMessage


@dataclass(slots=True, eq=False)
class Tried:
    """A message that failed and is tried again."""

    index: int
    """Its place in the slice."""
    attempts: int = 0
    """How many attempts have failed."""
    failures: deque[Failure] = field(default_factory=lambda: deque(maxlen=MOST_EARLIER))
    """Those of the last ones, in their order."""


@dataclass(slots=True, eq=False)
class Slice:
    """Messages of one lane that came in one fetch."""

    messages: list[RawMessage]
    """In the order of their offsets."""
    size: int
    """Their bytes."""
    done: int = 0
    """How many have been executed, or given up for good."""
    aged: int = 0
    """Of how many the age was taken when they were settled."""
    unsettled: int | None = None
    """The index of the first message done with whose records are not acknowledged, or whose letter is not stored."""
    sent: list[tuple[int, Sent]] = field(default_factory=list)
    """The records to wait for: index of their message, and the record."""
    failed: list[tuple[int, Failure]] = field(default_factory=list)
    """What is to be stored as dead letters before the lane goes on: indexes of the messages, and why."""
    failing_since: float = 0.0
    """Since when, in seconds of the monotonic clock."""
    resend: bool = False
    """Whether the first record to wait for failed and is to be sent again."""
    tried: Tried | None = None
    """The failed attempts of the message that is tried again, or was last."""
    suspect: int = 0
    """The index before which something failed that was run together, and is to be found by halves."""
    known: dict[int, Exception | None] = field(default_factory=dict)
    """By offset, what a handler of lists said of messages that are next: why one failed; None: it is handled."""
    due: tuple[int, float] | None = None
    """In a retry topic: the index of its next message, and when that is due, by the monotonic clock."""

    def tried_at(self, index: int) -> Tried | None:
        """Return the failed attempts of one message; None before its first one."""
        return self.tried if self.tried is not None and self.tried.index == index else None

    def forget_named(self) -> None:
        """Have what a handler of lists named given to it again: it did so before something else kept it waiting."""
        self.known = {offset: error for offset, error in self.known.items() if error is None}

    def await_later(self, gathered: Gathered) -> None:
        """Keep the message that was just executed unsettled until what it produced is acknowledged."""
        if self.unsettled is None:
            self.unsettled = self.done
        self.sent.extend((self.done, sent) for sent in gathered.sent)
        gathered.clear()

    def await_all(self, index: int, records: list[Sent]) -> None:
        """Keep a message that is next, and all after it, unsettled until these records are acknowledged."""
        if records and self.unsettled is None:
            self.unsettled = index
        self.sent.extend((index, sent) for sent in records)

    def await_record(self, index: int, sent: Sent) -> None:
        """Keep a message unsettled until one more record of it is acknowledged."""
        place = bisect_right([entry[0] for entry in self.sent], index)
        self.sent.insert(place, (index, sent))
        if place == 0:
            self.resend = False

    def forward(self, sent: Sent) -> None:
        """Be done with the next message, and keep it unsettled until its retry topic has it."""
        self.await_record(self.done, sent)
        self._look_for_unsettled()
        self.done += 1

    def fail(self, index: int, failure: Failure) -> None:
        """Be done with a message, and keep it unsettled until its letter is stored."""
        if not self.failed:
            self.failing_since = time.monotonic()
        self.failed.append((index, failure))
        if self.unsettled is None:
            self.unsettled = index
        self.forget_sent(index)
        if index == self.done:
            self.done += 1

    def forget_failed(self, count: int) -> None:
        """Note that the first letters are stored."""
        del self.failed[:count]
        self._look_for_unsettled()

    def forget_sent(self, index: int) -> None:
        """Wait no longer for the records of one message."""
        self.sent = [entry for entry in self.sent if entry[0] != index]
        self.resend = False
        self._look_for_unsettled()

    def acknowledge(self) -> None:
        """Note that the first record to wait for is acknowledged."""
        self.sent.pop(0)
        self._look_for_unsettled()

    def _look_for_unsettled(self) -> None:
        heads = [entries[0][0] for entries in (self.sent, self.failed) if entries]
        self.unsettled = min(heads, default=None)

    @property
    def settled(self) -> int:
        """How many messages at its head are settled."""
        # The poller reads while a handler thread writes: `done` first, because a message that has to wait is marked as
        # unsettled before it counts as done; and each only once.
        done, unsettled = self.done, self.unsettled
        return done if unsettled is None else min(unsettled, done)
