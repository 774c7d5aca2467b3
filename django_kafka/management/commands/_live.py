"""`kafka_status` in a terminal: drawn anew until somebody presses q. Imported only where rich is installed."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from select import select
from types import TracebackType
from typing import Any, Self

from django.db import close_old_connections, connections
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from ...monitoring.observer import Observer
from ._moments import span
from ._screen import Picture
from ._signals import StopSignals
from ._status import MOST

try:
    import termios
    import tty
except ImportError:  # Windows: without keys it ends with Ctrl-C
    termios = None  # type: ignore[assignment]

_TICK = 0.25
"""Seconds after which a terminal that has another size is drawn anew."""
_SOON = 0.2
"""Seconds in which brokers mostly answer, and after which it is looked again when they have not."""
_PATIENCE = 5.0
"""Seconds after which it is said that the database does not answer."""
_LINES = {b"\x1b[A": -1, b"k": -1, b"\x1b[B": 1, b"j": 1}
_PAGES = {b"\x1b[5~": -1, b"\x1b[6~": 1, b" ": 1}
_FEWEST = 3
"""Partitions, workers and sentences that are shown at least, however few lines the terminal has."""
_LOGGED = 4096
"""Bytes of what was logged meanwhile that are shown at the end."""


def show(console: Console, observer: Observer, interval: float, *, whole: bool) -> None:
    """Draw what `observer` sees every `interval` seconds, until q, Ctrl-C or SIGTERM."""
    looking = _Looking(observer, interval)
    page = _Page(looking, whole=whole)
    with _log_kept_off(), StopSignals() as stop, _Terminal(console, stop) as terminal:
        looking.start()
        drawn: object = None
        try:
            while not stop.is_set():
                if looking.error is not None:
                    raise looking.error
                if drawn != (state := (console.size, page.state())):
                    terminal.draw(page)
                    drawn = state
                pressed = terminal.pressed(_TICK)
                if pressed is None or b"q" in pressed or b"Q" in pressed:
                    return
                page.obey(pressed)
        finally:
            looking.end()


class _Looking(threading.Thread):
    """Looks again and again, so that the screen waits for nobody."""

    def __init__(self, observer: Observer, interval: float) -> None:
        super().__init__(name="kafka-status", daemon=True)
        self._observer = observer
        self._interval = interval
        self._ended = threading.Event()
        self._since: float | None = None
        self.looks = 0
        """How many there were."""
        self.seen = observer.expected()
        """What the last one saw."""
        self.error: Exception | None = None
        """What ended it."""

    @property
    def takes(self) -> float:
        """For how many seconds it has been waiting for an answer."""
        return 0.0 if (since := self._since) is None else time.monotonic() - since

    def run(self) -> None:
        """Look until the end."""
        try:
            while not self._ended.is_set():
                self._observer.ask(self._interval / 2)
                self._ended.wait(min(_SOON, self._interval / 2))
                self._look()
                asking = any(one.asked_at is None for one in self.seen.clusters)
                self._ended.wait(_SOON if asking else self._interval - _SOON)
        except Exception as error:  # noqa: BLE001  # raised in the main thread
            self.error = error
        finally:
            connections.close_all()

    def _look(self) -> None:
        self._since = time.monotonic()
        close_old_connections()
        self.seen = self._observer.look(max_age=self._interval)
        self._since = None
        self.looks += 1

    def end(self) -> None:
        """Let it end; a database that does not answer is not waited for."""
        self._ended.set()
        self.join(1)


class _Page:
    """As much of the picture as the terminal has lines for, and what can be pressed."""

    def __init__(self, looking: _Looking, *, whole: bool) -> None:
        self._looking = looking
        self._whole = whole
        self._top = 0
        self._room = 0

    def state(self) -> tuple[Any, ...]:
        """Return what it would be drawn anew for."""
        return self._looking.looks, self._whole, self._top, self._silence()

    def _silence(self) -> str:
        waited = self._looking.takes
        return f"! The database has not answered for {span(waited)}." if waited > _PATIENCE else ""

    def obey(self, pressed: bytes) -> None:
        """Do what keys say."""
        if pressed.count(b"a") % 2:
            self._whole = not self._whole
        steps = sum(pressed.count(key) * step for key, step in _LINES.items())
        steps += sum(pressed.count(key) * step * self._room for key, step in _PAGES.items())
        self._top = max(0, self._top + steps)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self._room = max(1, (options.height or console.height) - 1)
        lines = self._lines(console, options, None if self._whole else MOST)
        if not self._whole and len(lines) > self._room:
            lines = self._lines(console, options, max(_FEWEST, MOST - (len(lines) - self._room)))
        self._top = min(self._top, max(0, len(lines) - self._room))
        shown = lines[self._top : self._top + self._room]
        for line in (*shown, *([] for _ in range(self._room - len(shown)))):
            yield from line
            yield Segment.line()
        keys = ["q: quit", "a: the worst only" if self._whole else "a: all"]
        if len(lines) > self._room:
            last = self._top + len(shown)
            keys.append(f"up, down: lines {self._top + 1} to {last} of {len(lines)}")
        yield Text("   ".join(keys), style="dim", no_wrap=True, overflow="crop", end="")

    def _lines(self, console: Console, options: ConsoleOptions, most: int | None) -> list[list[Segment]]:
        picture = Picture(self._looking.seen, most=most, warning=self._silence())
        return console.render_lines(picture, options.update(height=None), pad=False)


class _Terminal:
    """The whole terminal, as it was before when it is left, or while the process is stopped with Ctrl-Z."""

    def __init__(self, console: Console, stop: StopSignals) -> None:
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._stop = stop
        self._keys = sys.stdin.fileno() if termios is not None and sys.stdin and sys.stdin.isatty() else None
        self._before: list[Any] = []
        self._suspend = threading.Event()
        self._on_suspend: Any = None

    def __enter__(self) -> Self:
        if self._keys is not None and threading.current_thread() is threading.main_thread():
            self._on_suspend = signal.signal(signal.SIGTSTP, lambda *_: self._suspend.set())
        self._take()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._give_back()
        if self._on_suspend is not None:
            signal.signal(signal.SIGTSTP, self._on_suspend)

    def _take(self) -> None:
        if self._keys is not None:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._live.start()

    def _give_back(self) -> None:
        self._live.stop()
        if self._keys is not None:
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    def draw(self, page: _Page) -> None:
        """Draw it."""
        self._live.update(page, refresh=True)

    def pressed(self, seconds: float) -> bytes | None:
        """Return the keys that were pressed, at the latest after `seconds`; None: nobody is there any more."""
        if self._keys is None:
            self._stop.wait(seconds)
            return b""
        ready, _, _ = select([self._stop, self._keys], [], [], seconds)
        if self._suspend.is_set():
            self._sleep()
        return (os.read(self._keys, 1024) or None) if self._keys in ready else b""

    def _sleep(self) -> None:
        """Stop until somebody says `fg`."""
        self._give_back()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, ours)
        self._suspend.clear()
        self._take()


@contextmanager
def _log_kept_off() -> Iterator[None]:
    """Keep what is written to standard error off the screen, and write the end of it afterwards."""
    if not os.isatty(2):
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            kept.seek(max(0, kept.seek(0, os.SEEK_END) - _LOGGED))
            os.write(2, kept.read())
