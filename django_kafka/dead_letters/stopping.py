"""What tells an executor to stop."""

from __future__ import annotations

from typing import Protocol


class Stop(Protocol):
    """Such as an event."""

    def is_set(self) -> bool:
        """Tell whether to stop."""

    def wait(self, timeout: float) -> bool:
        """Wait until it is time to stop, for `timeout` seconds at most, and tell whether it is."""
