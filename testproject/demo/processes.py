"""The other processes of the demo, each a management command with a log file of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

STARTING = 30.0
"""Seconds that a process may take until it answers."""

STOPPING = 20.0
"""Seconds that a process may take to finish what it does."""


class DemoError(Exception):
    """The demo cannot go on; the sentence says why."""


class Child:
    """A management command that runs beside the demo and ends with it. Use it in a `with`."""

    def __init__(self, name: str, *arguments: str, project: Path, log: Path) -> None:
        self.name = name
        self.log = log
        self._command = [sys.executable, "manage.py", *arguments]
        self._project = project
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._project,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own: Ctrl-C reaches the demo alone, which then stops everything in order.
                start_new_session=True,
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def check(self) -> None:
        """Raise `DemoError`, with the end of the log, when the process is gone."""
        code = self._process.poll() if self._process else None
        if code is not None:
            raise DemoError(f"The {self.name} ended with {code}; the end of {self.log}:\n{self._last_words()}")

    def wait_until(self, answers: Callable[[], object]) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + STARTING
        while not answers():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"The {self.name} has not answered for {STARTING:.0f} s; see {self.log}.")
            time.sleep(0.05)

    def stop(self) -> int:
        """Ask it to stop, wait for that, and return its exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(STOPPING)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                # Whoever presses Ctrl-C again wants the end at once; nothing is left running for that.
                self._signal(signal.SIGKILL)
        code = self._process.wait()
        self._signal(signal.SIGKILL)  # what is left of the group: a reloader may be gone before the worker it runs
        return code

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
