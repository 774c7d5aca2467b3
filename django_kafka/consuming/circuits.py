"""The breaker of a worker, shared by its threads: a clock, a lock, and who is told."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone

from .. import conf, logs, signals, tallies
from .breaker import Breaker, Permit, State

log = logs.of(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a circuit stands, for rows and health."""

    state: State = State.CLOSED
    """closed, open or probing."""
    writing: bool = False
    """Whether it is open but lets letters be written, because `outage_patience` is over."""
    episode: int = 0
    """How many times it has opened. An operator closes this episode, and no later one."""
    opened_at: datetime | None = None
    """Since when it is not closed."""
    reason: str = ""
    """Why it opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What is to be told."""

    before: tuple[State, bool]
    """State, and whether letters were written meanwhile."""
    after: tuple[State, bool]
    """The same now."""
    seconds: float
    """Since it opened."""
    reason: str
    """Why it opened."""


class Circuit:
    """Asked by all threads of one worker; what changed is told by the thread that next calls `tell`.

    `limited` is False while everything may begin: as long as it is, nobody needs to ask.
    """

    def __init__(self, consumer: conf.Consumer, succeeded: Callable[[], int], worker: object = None) -> None:
        self._consumer = consumer.name
        self._cooldown = consumer.circuit_breaker.cooldown
        self._breaker = Breaker(consumer.circuit_breaker, consumer.outage_patience)
        self._enabled = consumer.circuit_breaker.enabled
        self.succeeded = succeeded
        """Tells how many messages have succeeded by now; a number that never falls."""
        self._worker = worker
        self._lock = threading.Lock()
        self._told = (State.CLOSED, False)
        self._opened_at: datetime | None = None
        self.news: deque[_Change] = deque()
        """What has not been told yet."""
        self.limited = False
        """Whether messages may begin only when `admit` says so."""
        self.wake: Callable[[], None] = lambda: None
        """Called when it has opened or closed, or lets letters be written; by any thread, with locks held."""

    def failed(self, error: str) -> bool:
        """Note that a message was given up for `error`; tell whether it must wait instead of becoming a letter."""
        if not self._enabled:
            return False
        with self._lock:
            wait = self._breaker.failed(time.monotonic(), self.succeeded(), error)
            self._note()
        return wait

    def stumbled(self) -> None:
        """Note that an attempt failed after which there will be another."""
        if self.limited:
            with self._lock:
                self._breaker.stumbled(time.monotonic())
                self._note()

    def admit(self) -> Permit | bool:
        """Tell whether messages may begin: True for all, False for none, or a permit for some."""
        if not self.limited:
            return True
        with self._lock:
            answer = self._breaker.admit(time.monotonic(), self.succeeded())
            self._note()
        return answer

    def look(self) -> None:
        """See whether it is time for letters to be written, or for closing. To be called now and then while limited."""
        with self._lock:
            self._breaker.look(time.monotonic(), self.succeeded())
            self._note()

    def answer(self, permit: Permit, succeeded: int) -> None:
        """Take a permit back, of whose messages so many succeeded."""
        with self._lock:
            self._breaker.answer(permit, succeeded)
            self._note()

    def pause(self) -> float:
        """Return after how many seconds to ask again."""
        with self._lock:
            return self._breaker.pause(time.monotonic())

    def close(self, episode: int) -> bool:
        """Close it, if this is the episode that it is in; tell whether it was."""
        with self._lock:
            if self._breaker.state is State.CLOSED or self._breaker.episode != episode:
                return False
            self._breaker.close()
            self._note()
        return True

    def standing(self) -> Standing:
        """Return where it stands."""
        with self._lock:
            breaker = self._breaker
            if breaker.state is State.CLOSED:
                return Standing(episode=breaker.episode)
            return Standing(
                state=breaker.state,
                writing=breaker.writing,
                episode=breaker.episode,
                opened_at=self._opened_at,
                reason=breaker.reason,
            )

    def _note(self) -> None:
        before, now = self._told, (self._breaker.state, self._breaker.writing)
        if now == before:
            return
        self._told = now
        if before[0] is State.CLOSED:
            self._opened_at = timezone.now()
            tallies.of_consumer(self._consumer).circuits_opened += 1
        self.limited = now[0] is not State.CLOSED
        seconds = time.monotonic() - self._breaker.opened_at
        if before[1] != now[1] or State.CLOSED in (before[0], now[0]):
            self.wake()
        self.news.append(_Change(before=before, after=now, seconds=seconds, reason=self._breaker.reason))

    def tell(self) -> None:
        """Log what has changed and send the signals. Not to be called with a lock held: receivers may be slow."""
        while self.news:
            try:
                change = self.news.popleft()
            except IndexError:  # another thread tells it
                return
            self._log(change)
            if change.before[0] is State.CLOSED:
                signals.circuit_opened.send_robust(self._consumer, worker=self._worker, reason=change.reason)
            elif change.after[0] is State.CLOSED:
                signals.circuit_closed.send_robust(self._consumer, worker=self._worker)

    def _log(self, change: _Change) -> None:
        match change:
            case _Change(before=(State.CLOSED, _)):
                log.warning(
                    "consumer=%s circuit opened: %s; handling pauses, and tries one message every %.0f s",
                    self._consumer, change.reason, self._cooldown,
                )  # fmt: skip
            case _Change(after=(State.CLOSED, _)):
                log.warning("consumer=%s circuit closed after %.0f s", self._consumer, change.seconds)
            case _Change(after=(state, False)):
                log.info("consumer=%s circuit %s", self._consumer, state)
        if change.after[1] and not change.before[1]:
            log.warning(
                "consumer=%s circuit open for %.0f s, longer than outage_patience: handling goes on, and what fails "
                "becomes a dead letter",
                self._consumer, change.seconds,
            )  # fmt: skip
