"""SIGTERM and Ctrl-C as something to wait for."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress
from select import select
from types import FrameType, TracebackType
from typing import Any, Self


class StopSignals:
    """Hears the first SIGTERM or SIGINT while it is entered; raises nothing, so that what runs is finished.

    Has `is_set` and `wait` of `threading.Event`, but can be told by a signal handler: that runs in the main thread,
    which may just hold the lock of an event as it begins to wait. Outside of the main thread it hears nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that was heard."""
        self._before: dict[int, Any] = {}
        self._heard, self._told = socket.socketpair()
        self._told.setblocking(False)

    def is_set(self) -> bool:
        """Tell whether a signal was heard."""
        return self.number is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until a signal is heard, for `timeout` seconds at most, and tell whether one was."""
        if not self.is_set():
            select([self._heard], [], [], timeout)
        return self.is_set()

    def fileno(self) -> int:
        """Return what `select` waits for together with other things."""
        return self._heard.fileno()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._heard.close()
        self._told.close()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            self._told.send(b"!")
            self.first(number)
        else:
            self.again(number)

    def first(self, number: int) -> None:
        """Do something about the first signal, in the signal handler."""

    def again(self, number: int) -> None:
        """Do something about each further one, in the signal handler."""


def say(sentence: bytes) -> None:
    """Say something on standard error from a signal handler."""
    # Not through Python's streams, which the interrupted thread may be in the middle of; and nobody may be listening.
    with suppress(OSError):
        os.write(2, sentence)
