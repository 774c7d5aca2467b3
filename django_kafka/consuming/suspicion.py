"""What the deaths of workers tell about the messages of a partition: pure values."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """What deaths have told about a partition."""

    deaths: int = 0
    """How many workers died with it, one after the other, and are not explained."""
    first: int | None = None
    """The offset of the first message that may have been running at the last death."""
    last: int | None = None
    """The offset of the last one."""
    alone: int | None = None
    """The offset of the message that was running alone."""
    guilty: int | None = None
    """The offset of the message that is to become a dead letter."""
    timestamp_ms: int | None = None
    """Of the message that was running alone, or is guilty."""

    def after_death(self, begins: int) -> Suspicion:
        """Return what is known after one more death, when the next worker begins at offset `begins`."""
        if self.guilty is not None and begins <= self.guilty:
            return self
        if self.alone is not None and begins <= self.alone:
            guilty = self.alone
            return Suspicion(deaths=self.deaths + 1, guilty=guilty, timestamp_ms=self.timestamp_ms)
        if self.first is not None and self.last is not None and begins <= self.last:
            return Suspicion(deaths=2, first=max(self.first, begins), last=self.last)
        return Suspicion(deaths=1)

    def after_handover(self, begins: int) -> Suspicion:
        """Return what is known when the partition was given back, or is taken from a worker that lives."""
        if self.guilty is not None:
            return self if begins <= self.guilty else Suspicion()
        if self.deaths >= 2 and self.last is not None and begins <= self.last:
            return replace(self, alone=None, timestamp_ms=None)
        return Suspicion(deaths=self.deaths if self.deaths < 2 else 0)
