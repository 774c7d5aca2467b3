"""The surge breaker: a pure state machine that says when a consumer pauses because its handlers fail too often.

    closed ──(failures among the last `window` messages reach `failure_ratio`)──▶ open
    open ──(after `cooldown`)──▶ probing: 1 message may begin, then 2, 4, 8 …
    probing ──(one fails)──▶ open          probing ──(the next number would reach `window`)──▶ closed
    open ──(`patience` after it first opened)──▶ open, and letters are written: all messages may begin
    open, letters written ──(`window` messages on, fewer than `failure_ratio` failed)──▶ closed

It has no clock and no lock: times are passed in, in seconds of a clock that never goes back. A message that succeeds
costs nothing while it is closed: how many did is told with each failure.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum

from ..conf import CircuitBreaker


class State(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """Leave to begin some messages as probes."""

    most: int
    """How many."""
    number: int
    """Of the round of probes that it belongs to; an answer to an earlier round counts for nothing."""


NOTHING = Permit(most=0, number=0)
"""Leave to settle what has been executed, which needs none."""


class Breaker:
    """The breaker of one consumer in one worker."""

    __slots__ = (
        "_answer_by", "_asked_for", "_failed", "_from", "_good", "_most_failures", "_patient_until", "_probe_at",
        "_round", "_size", "_total_failed", "cooldown", "episode", "opened_at", "patience", "reason", "state", "window",
        "writing",
    )  # fmt: skip

    def __init__(self, settings: CircuitBreaker, patience: float) -> None:
        self.window = settings.window
        self.cooldown = settings.cooldown
        self.patience = patience
        self.state = State.CLOSED
        self.writing = False
        """Whether it is open but lets messages begin and letters be written, because patience ran out."""
        self.episode = 0
        """How many times it has opened from closed."""
        self.opened_at = 0.0
        """When this episode began."""
        self._patient_until = 0.0
        self.reason = ""
        """Why this episode began, for people."""
        # Rounded up, but not because of how floating point writes 0.3 × 10.
        self._most_failures = max(1, math.ceil(settings.failure_ratio * self.window - 1e-9))
        self._failed: deque[tuple[int, str]] = deque()
        """Failures among the last `window` messages: the number of the message, and the error's name."""
        self._total_failed = 0
        self._from = 0
        """The number of the last message before letters were written."""
        self._probe_at = 0.0
        self._round = 0
        self._size = 0
        """How many probes make this round."""
        self._good = 0
        """How many of them succeeded."""
        self._asked_for = 0
        """How many are permitted and not answered."""
        self._answer_by = 0.0

    def failed(self, now: float, succeeded: int, error: str) -> bool:
        """Note that a message was given up; tell whether it must wait instead of becoming a dead letter.

        `succeeded` is how many messages have succeeded so far, and may be any number that never falls.
        """
        if self.state is not State.CLOSED and not self.writing:
            self.stumbled(now)
            self._lose_patience(now, succeeded)
            if not self.writing:
                return True
        self._count(succeeded, error)
        if self.writing or len(self._failed) < self._most_failures:
            return False
        self._open(now, succeeded)
        return not self.writing

    def stumbled(self, now: float) -> None:
        """Note that an attempt failed after which there will be another: as a probe it has failed."""
        if self.state is State.PROBING:
            self._pause(now)

    def admit(self, now: float, succeeded: int) -> Permit | bool:
        """Tell whether messages may begin: True for all, False for none, or a permit for some."""
        self.look(now, succeeded)
        if self.state is State.CLOSED or self.writing:
            return True
        if self.state is State.OPEN:
            if now < self._probe_at:
                return False
            self.state = State.PROBING
            self._begin_round(1)
        elif self._asked_for and now >= self._answer_by:
            # A handler that hangs, or a partition that left: others shall not wait for its answer.
            self._begin_round(self._size)
        most = self._size - self._good - self._asked_for
        if most <= 0:
            return False
        self._asked_for += most
        self._answer_by = now + self.cooldown
        return Permit(most=most, number=self._round)

    def look(self, now: float, succeeded: int) -> None:
        """Let letters be written when patience is over; close when they are and few enough of the last ones failed."""
        self._lose_patience(now, succeeded)
        if self.writing:
            self._look_back(succeeded)

    def answer(self, permit: Permit, succeeded: int) -> None:
        """Take a permit back, of whose messages so many succeeded; what was not used is given to others."""
        if self.state is not State.PROBING or permit.number != self._round:
            return
        self._asked_for -= permit.most
        self._good += min(succeeded, permit.most)
        if self._good < self._size:
            return
        if self._size * 2 >= self.window:
            self.close()
        else:
            self._begin_round(self._size * 2)

    def pause(self, now: float) -> float:
        """Return after how many seconds `admit` may have another answer, when it had none."""
        due = min(self._probe_at, self._patient_until) if self.state is State.OPEN else self._answer_by
        return max(0.0, due - now)

    def close(self) -> None:
        """Close it, and forget what was counted."""
        self.state = State.CLOSED
        self.writing = False
        self._failed.clear()

    def _count(self, succeeded: int, error: str) -> None:
        self._total_failed += 1
        number = succeeded + self._total_failed
        self._forget_before(number)
        self._failed.append((number, error))

    def _forget_before(self, number: int) -> None:
        while self._failed and self._failed[0][0] <= number - self.window:
            self._failed.popleft()

    def _open(self, now: float, succeeded: int) -> None:
        count, among = len(self._failed), self._failed[-1][0] - self._failed[0][0] + 1
        [(error, times)] = Counter(name for _, name in self._failed).most_common(1)
        self.reason = f"{count} of the last {among} messages failed, {times} of them with {error}"
        self.episode += 1
        self.opened_at = now
        self._patient_until = now + self.patience
        self._pause(now)
        self._lose_patience(now, succeeded)

    def _pause(self, now: float) -> None:
        self.state = State.OPEN
        self._probe_at = now + self.cooldown
        self._failed.clear()

    def _begin_round(self, size: int) -> None:
        self._round += 1
        self._size = size
        self._good = self._asked_for = 0

    def _lose_patience(self, now: float, succeeded: int) -> None:
        if self.state is State.CLOSED or self.writing or now < self._patient_until:
            return
        # While probes succeed nothing is held, however long a consumer with few messages takes for them.
        if self.state is State.OPEN or (self._asked_for and now >= self._answer_by):
            self.state = State.OPEN
            self.writing = True
            self._failed.clear()
            self._from = succeeded + self._total_failed

    def _look_back(self, succeeded: int) -> None:
        number = succeeded + self._total_failed
        if number - self._from >= self.window:
            self._forget_before(number)
            if len(self._failed) < self._most_failures:
                self.close()
