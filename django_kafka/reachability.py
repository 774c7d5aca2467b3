"""Whether a producer's brokers can be reached, and for how long they could not: the circuit breaker of producing.

Closed: records are queued, whatever the brokers do. Open: brokers were out of reach for `threshold` seconds, and
records are refused at once instead of filling the queue. Every `cooldown` seconds the brokers are asked for their
topics, which risks no record; an answer closes it, and so does the first record that is acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import conf


@dataclass(frozen=True, slots=True)
class _Trouble:
    reason: str
    since: float
    acknowledged: int


class Reachability:
    """What is known of the brokers of one producer; looked after by its serving thread, read by any."""

    def __init__(
        self, settings: conf.ProducerCircuit, acknowledged: Callable[[], int], answer: Callable[[], bool]
    ) -> None:
        self.settings = settings
        self.open = False
        """Whether records are refused."""
        self._acknowledged = acknowledged
        self._answer = answer
        self._trouble: _Trouble | None = None
        self._look_at = 0.0

    @property
    def reason(self) -> str | None:
        """Why no broker can be reached, or None when that is not so.

        What the client said last counts until the next record is acknowledged, or a broker answers.
        """
        trouble = self._trouble
        if trouble is None or trouble.acknowledged != self._acknowledged():
            return None
        return trouble.reason

    def lost(self, reason: str, now: float) -> None:
        """Note that the client says that no broker can be reached; `now` by the monotonic clock."""
        if self.reason is None:
            self._look_at = now + self.settings.threshold
            self._trouble = _Trouble(reason, now, self._acknowledged())

    def look(self, now: float) -> bool:
        """Open or close when it is time; tell whether that changed."""
        if self._trouble is None:
            return False
        if self.reason is not None:
            if now < self._look_at or not self.settings.enabled:
                return False
            if not self._answer():
                self._look_at = now + self.settings.cooldown
                return self._turn(True)
        self._trouble = None
        return self._turn(False)

    def _turn(self, to: bool) -> bool:
        changed, self.open = self.open != to, to
        return changed

    def out_of_reach(self, now: float) -> float:
        """Return for how many seconds brokers have been out of reach."""
        return 0.0 if self._trouble is None else now - self._trouble.since
