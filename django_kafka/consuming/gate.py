"""The gate of a worker process: it lets one lane run with nothing else beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .lane import Lane
from .lanes import Lanes


class Gate:
    """Shared by the lanes of all consumers of the process and by its replays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[Lanes] = []
        self._beside = 0
        self._only: Lane | None = None

    def join(self, lanes: Lanes) -> None:
        """Let lanes begin only when this gate is open for them."""
        self._all.append(lanes)
        lanes.gate = self

    @property
    def only(self) -> Lane | None:
        """The one lane that may begin; None: all may."""
        # One that leaves before its turn, or after it, holds nobody up.
        only = self._only
        return None if only is None or (only.halted and not only.running) else only

    def close(self, lane: Lane) -> bool:
        """Let nothing begin beside `lane`, in which the calling thread is; tell whether nothing runs any more.

        Ask again after a moment when something does, or when another lane was first.
        """
        with self._lock:
            if self.only not in (None, lane):
                return False
            self._only = lane
            if self._beside:
                return False
        return sum(lanes.interrupt_beside(lane) for lanes in self._all) == 0

    def open(self, lane: Lane) -> None:
        """Let everything begin again, if it was `lane` that kept it from doing so."""
        with self._lock:
            if self._only is not lane:
                return
            self._only = None
        for lanes in self._all:
            lanes.wake()

    @contextmanager
    def beside(self) -> Iterator[bool]:
        """Do something that no lane may run alone beside; the answer tells whether it may begin."""
        with self._lock:
            allowed = self.only is None
            self._beside += allowed
        try:
            yield allowed
        finally:
            with self._lock:
                self._beside -= allowed
