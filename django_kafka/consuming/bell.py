"""A bell: what a condition tells to threads that wait for it is told to somebody else, who must not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Bell(threading.Condition):
    """Rings whenever threads would be woken."""

    def __init__(self, lock: Any, ring: Callable[[], None]) -> None:
        super().__init__(lock)
        self._ring = ring

    def notify(self, n: int = 1) -> None:
        """Ring."""
        self._ring()

    def notify_all(self) -> None:
        """Ring."""
        self._ring()
