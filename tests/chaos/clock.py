"""A wall clock that a run can step, in the processes of the project. Monotonic clocks go on as they are.

Nobody needs to be root for it: `time.time`, `time.time_ns` and Django's `timezone.now` answer with what a file says
added to the truth. Log lines keep the true time, so that they can be put in order.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from pathlib import Path

from django.utils import timezone

true_time, _true_time_ns = time.time, time.time_ns
"""The clock as it is, whatever was installed since."""
_LOOK_AGAIN = 0.2


class SteppedClock:
    """Reads by how many seconds the clock is off, not more often than a few times a second."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._looked = float("-inf")
        self._off = 0.0

    def off(self) -> float:
        """Return the seconds by which the clock is off."""
        now = time.monotonic()
        if now - self._looked > _LOOK_AGAIN:
            self._looked = now
            try:
                self._off = float(self.file.read_text())
            except (OSError, ValueError):
                pass  # not stepped yet, or just being written
        return self._off

    def install(self) -> None:
        """Let everything in this process that asks for the time see the stepped one."""
        time.time = lambda: true_time() + self.off()
        time.time_ns = lambda: _true_time_ns() + int(self.off() * 1e9)
        timezone.now = lambda: datetime.fromtimestamp(time.time(), tz=UTC)


class TrueTime(logging.Formatter):
    """Log lines with the true time, whatever the process takes for it."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time of now, because that of the record is stepped."""
        return datetime.fromtimestamp(true_time(), tz=UTC).strftime("%H:%M:%S.%f")
