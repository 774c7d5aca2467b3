"""The supervisor: several worker processes of one command, started again when they die, and ended together.

Each is the command run anew, not a fork: clients of Kafka and of databases do not survive a fork, and what manage.py
does before Django starts, it does for each of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from .. import conf, logs
from ..exceptions import ConfigurationError
from ..monitoring import wire
from ..monitoring.server import Answer
from ..monitoring.wire import Asking
from .leash import FINISH, NUMBER

log = logs.of(__name__)

EXIT_CONFIGURATION = 78
"""The exit code of a process that cannot work as it is configured, so that it is not started again."""
_LOOK_EVERY = 0.1
"""Seconds between two looks at the processes."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a process that died is started again: each time twice as many."""
LIVED = 60.0
"""Seconds after which the death of a process is taken for a new trouble, with the first pause."""


def layout(consumers: Sequence[conf.Consumer], processes: int | None = None) -> list[list[conf.Consumer]]:
    """Return which consumers each process runs: process k has all that want at least k, so the first has all.

    `processes` is how many each has, whatever its settings say. Raises `ConfigurationError`.
    """
    wanted = {consumer.name: processes or consumer.processes for consumer in consumers}
    for consumer in consumers:
        if wanted[consumer.name] > 1 and "group.instance.id" in consumer.options:
            raise ConfigurationError(
                f"Consumer {consumer.name!r} is to run in {wanted[consumer.name]} processes with one "
                '"group.instance.id": each would throw the others out of the group. Leave it out.'
            )
    most = max(wanted.values(), default=1)
    return [[one for one in consumers if wanted[one.name] >= number] for number in range(1, most + 1)]


class Wish(Protocol):
    """What whoever runs the supervisor wants."""

    at_once: bool
    """Whether all are to be killed."""

    def is_set(self) -> bool:
        """Tell whether all are to finish."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until they are, for `timeout` seconds at most."""


class _Child:
    """One of the processes."""

    def __init__(self, number: int, *, wired: bool = False) -> None:
        self.number = number
        self.wire: Asking | None = None
        """What it is asked over; None: nobody asks it anything, or it does not run."""
        self._wired = wired
        self.process: subprocess.Popen[bytes] | None = None
        self.began = 0.0
        self.start_at = 0.0
        """When it is to be started, while it does not run."""
        self.pause = _FIRST_PAUSE
        self.done = False

    def start(self, command: Sequence[str]) -> None:
        self.began = time.monotonic()
        environment = {**os.environ, NUMBER: str(self.number)}
        handed: list[int] = []
        if self._wired:
            self.wire = Asking()
            handed = [self.wire.handed]
            environment[wire.WIRE] = str(self.wire.handed)
        try:
            with _signals_held():
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, env=environment, bufsize=0, pass_fds=handed
                )
        except OSError:
            self._unwire()
            raise
        if self.wire is not None:
            self.wire.started()

    def _unwire(self) -> None:
        if self.wire is not None:
            with self.wire.lock:
                self.wire.close()
            self.wire = None

    def let_go(self) -> None:
        """Have it finish what runs and end."""
        if self.process is not None and self.process.stdin is not None and not self.process.stdin.closed:
            with suppress(OSError):  # it is dead already
                self.process.stdin.write(FINISH)
            self.process.stdin.close()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def ended(self) -> int | None:
        """Return the exit code of its process if that has just ended."""
        code = None if self.process is None else self.process.poll()
        if code is not None:
            self.let_go()
            self._unwire()
            self.process = None
        return code

    def next_pause(self) -> float:
        """Return after how many seconds to start it again, now that it died."""
        if time.monotonic() - self.began >= LIVED:
            self.pause = _FIRST_PAUSE
        pause, self.pause = self.pause, min(_LONGEST_PAUSE, 2 * self.pause)
        self.start_at = time.monotonic() + pause
        return pause


class Supervisor:
    """Runs `count` processes of a command, each with its number in the environment.

    `until_empty`: a process that ends with code 0 is done; otherwise it is started again like one that died. `again`:
    when all are done, the first is run once more, alone. `wired`: they can be asked.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        until_empty: bool = False,
        again: bool = False,
        wired: bool = False,
    ) -> None:
        self._command = command
        self._children = [_Child(number, wired=wired and wire.POSSIBLE) for number in range(1, count + 1)]
        self._until_empty = until_empty
        self._again = again
        self._finishing = False
        self.reason: str | None = None
        """Why it ended, when that was not a wish."""

    def run(self, wish: Wish) -> None:
        """Run until all processes have ended."""
        try:
            while not (all(child.done for child in self._children) and not self._run_again()):
                if wish.at_once:
                    self._kill()
                    return
                for child in self._children:
                    if not child.done:
                        self._tend(child)
                # After a look at them: one that died before it was told to finish has not failed to.
                if wish.is_set() or self.reason is not None:
                    self._finish()
                # Once it is set, waiting for it takes no time.
                time.sleep(_LOOK_EVERY) if wish.is_set() else wish.wait(_LOOK_EVERY)
        finally:
            self._finish()

    def ask(self, path: str, timeout: float = 2.0) -> dict[int, Answer | None]:
        """Return what each process answers for a path, by its number; None for one that does not, or does not run.

        For any thread. `timeout` in seconds is for all of them together.
        """
        return wire.ask_all({child.number: child.wire for child in self._children}, path, timeout)

    def _run_again(self) -> bool:
        """Tell whether the first is to be run once more, alone: what others left behind as they ended is all its."""
        wanted = self._again and not self._finishing
        if wanted:
            self._again = False
            self._children[0].done = False
        return wanted

    def _finish(self) -> None:
        self._finishing = True
        for child in self._children:
            child.let_go()

    def _kill(self) -> None:
        for child in self._children:
            child.kill()

    def _tend(self, child: _Child) -> None:
        if (code := child.ended()) is not None:
            self._judge(child, code)
        elif child.process is None:
            if self._finishing:
                child.done = True
            elif time.monotonic() >= child.start_at:
                self._start(child)

    def _start(self, child: _Child) -> None:
        try:
            child.start(self._command)
        except OSError as error:
            log.error(
                "process=%s cannot be started (%s); tried again in %.0f s", child.number, error, child.next_pause()
            )
        else:
            log.info("process=%s pid=%s started", child.number, child.process and child.process.pid)

    def _judge(self, child: _Child, code: int) -> None:
        """Decide what becomes of a process that has ended."""
        lived = time.monotonic() - child.began
        if code == EXIT_CONFIGURATION:
            child.done = True
            self.reason = self.reason or f"Process {child.number} cannot work as it is configured; its reason is above."
        elif self._finishing:
            child.done = True
            if code:
                self.reason = self.reason or f"Process {child.number} {_how(code)} while it was to finish."
        elif self._until_empty and not code:
            child.done = True
            log.info("process=%s found nothing more and ended", child.number)
        else:
            log.error(
                "process=%s %s after %.1f s; it is started again in %.0f s",
                child.number, _how(code), lived, child.next_pause(),
            )  # fmt: skip


def _how(code: int) -> str:
    """Return how a process with this exit code ended, as words that follow its name."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


@contextmanager
def _signals_held() -> Iterator[None]:
    """Start a process that hears signals only when it lets them through, and so can answer them.

    A Ctrl-C in a terminal reaches it too while Django still starts there. Where signals cannot be held, it ends then.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_signals_through() -> None:
    """Hear in a process what its supervisor has held back until it can answer."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


_HELD = (signal.SIGINT, signal.SIGTERM)
