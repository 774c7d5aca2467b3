"""The workers of a run: started, ended in every way there is, and started again; how each ended goes into the books."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.servers.processes import Program

from .books import End
from .records import Course
from .world import World

STOPS_WITHIN = 60.0
"""Seconds within which a process that was asked to stop has to."""
BEGINS_WITHIN = 20.0
"""Seconds for which a fault waits for a worker to begin to work; to strike only those that start proves little."""
_ASK = [sys.executable, "-m", "tests.chaos.asking"]
_CONSUME = [sys.executable, "-m", "django", "kafka_consume"]
_MEND = [sys.executable, "-m", "tests.chaos.mending"]
_SEND = [sys.executable, "-m", "tests.chaos.sending"]


@dataclass(slots=True, kw_only=True)
class Running:
    """One process."""

    name: str
    """What it is called; workers with their number and how many lives they had."""
    program: Program
    """The process."""
    asked: str = ""
    """What was done to end it."""
    frozen: bool = False
    """Whether it was made to stand still."""

    @property
    def working(self) -> bool:
        """Whether it said that it had begun."""
        return (not self.name[0].isdigit() and not self.name.startswith("guest")) or " started" in self.program.output()

    def end(self, code: int | None) -> End:
        return End(
            name=self.name,
            asked=self.asked,
            code=code,
            working=self.working,
            unpolled=not self.frozen and "_MAX_POLL_EXCEEDED" in self.program.output(),
            log=self.program.log.name,
        )


class Workers:
    """So many places for workers, each with one running unless a fault has just ended it."""

    def __init__(self, world: World, count: int) -> None:
        self.world = world
        self.ends: list[End] = []
        self._lives = [0] * count
        self._running: dict[int, Running] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._lives)

    def start(self, number: int) -> None:
        """Start the worker with that number (from 1)."""
        with self._lock:
            self._lives[number - 1] += 1
            name = f"{number}.{self._lives[number - 1]}"
            self._running[number] = Running(name=name, program=self.world.start(_CONSUME, name))

    def start_all(self) -> None:
        """Start every worker that does not run."""
        for number in range(1, len(self) + 1):
            if number not in self._running:
                self.start(number)

    def revive(self) -> list[End]:
        """Note the workers that ended although nobody asked them to, and start them again."""
        with self._lock:
            dead = {
                number: one for number, one in self._running.items() if not one.asked and one.program.poll() is not None
            }
        found = [one.end(one.program.returncode) for one in dead.values()]
        self.ends += found
        for number in dead:
            self.start(number)
        return found

    def await_start(self, number: int) -> None:
        """Wait until a worker has begun to work, but not for ever: perhaps it cannot."""
        with self._lock:
            one = self._running.get(number)
        if one is not None:
            _await_start(one)

    def kill(self, number: int) -> None:
        """End a worker with SIGKILL and wait for its end."""
        self._end(self._mark(number, "SIGKILL"), [signal.SIGKILL])

    def stop(self, number: int, *, twice: float | None = None) -> None:
        """End a worker with SIGTERM, or with two of them that many seconds apart, and wait for its end."""
        signals = [signal.SIGTERM] if twice is None else [signal.SIGTERM, signal.SIGTERM]
        self._end(self._mark(number, "SIGTERM" if twice is None else "two SIGTERM"), signals, twice or 0)

    def freeze(self, number: int, seconds: float) -> None:
        """Let a worker stand still, as one on a machine that is suspended does."""
        running = self._running[number]
        running.frozen, program = True, running.program
        _signal(program, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            _signal(program, signal.SIGCONT)

    def visit(self, pauses: list[float]) -> None:
        """Start workers one after another, so many seconds apart, and let them leave in the same order.

        The last of them leaves before it has begun.
        """
        guests = []
        for number, pause in enumerate(pauses, 1):
            name = f"guest {number}.{time.monotonic():.0f}"
            guests.append(Running(name=name, program=self.world.start(_CONSUME, name)))
            time.sleep(pause)
        for guest, pause in zip(guests, pauses, strict=True):
            if guest is not guests[-1] or len(guests) == 1:
                _await_start(guest)
            guest.asked = "SIGTERM"
            _signal(guest.program, signal.SIGTERM)
            time.sleep(pause / 2)
        for guest in guests:
            self._await(guest)

    def stop_all(self) -> None:
        """Ask all workers to stop, and wait for them."""
        marked = [self._mark(number, "SIGTERM") for number in list(self._running)]
        for one in marked:
            if one is not None:
                _signal(one.program, signal.SIGTERM)
        for one in marked:
            if one is not None:
                self._await(one)

    def _mark(self, number: int, asked: str) -> Running | None:
        """Take a worker out of those that are started again; None when it is gone by itself."""
        self.revive()
        with self._lock:
            one = self._running.pop(number, None)
        if one is not None:
            one.asked = asked
        return one

    def _end(self, one: Running | None, signals: list[signal.Signals], pause: float = 0) -> None:
        if one is None:
            return
        first, *more = signals
        _signal(one.program, first)
        for number in more:
            time.sleep(pause)
            _signal(one.program, number)
        self._await(one)

    def _await(self, one: Running) -> None:
        self.ends.append(one.end(ended(one.program, STOPS_WITHIN)))


class Helper:
    """A process that sends, mends, or asks."""

    def __init__(self, world: World, name: str, command: list[str], **env: str) -> None:
        self._running = Running(name=name, program=world.start(command, name, **env))

    @classmethod
    def sending(cls, world: World, course: Course) -> Helper:
        """Start the process that sends to a topic."""
        env = {"CHAOS_TOPIC": course.topic, "CHAOS_BOOK": str(world.book(course)), "CHAOS_SHARE": str(course.share)}
        return cls(world, f"sender of {course.topic}", _SEND, **env)

    @classmethod
    def mending(cls, world: World) -> Helper:
        """Start the process that mends held keys."""
        return cls(world, "mender", _MEND)

    @classmethod
    def asking(cls, world: World) -> Helper:
        """Start the process that asks how everything is."""
        return cls(world, "asker", _ASK)

    @property
    def alive(self) -> bool:
        return self._running.program.poll() is None

    def stop(self) -> None:
        """Let it send no more, and wait for what is on its way."""
        if self.alive:
            self._running.asked = "SIGTERM"
            _signal(self._running.program, signal.SIGTERM)

    def end(self, seconds: float) -> End:
        """Wait for its end and say what that was like."""
        return self._running.end(ended(self._running.program, seconds))


def ended(program: Program, seconds: float) -> int | None:
    """Return the exit code; None when it still ran after so many seconds and was killed."""
    try:
        return program.wait(seconds)
    except subprocess.TimeoutExpired:
        _stacks(program)
        program.kill()
        program.wait(10)
        return None


def _await_start(one: Running) -> None:
    deadline = time.monotonic() + BEGINS_WITHIN
    while not one.working and one.program.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)


def _stacks(program: Program) -> None:
    """Let a process that does not end write where its threads are, for whoever looks into it."""
    before = _size(program.log)
    _signal(program, signal.SIGABRT)  # Python's fault handler, which is on in every process of a project
    deadline = time.monotonic() + 5
    while _size(program.log) == before and time.monotonic() < deadline:
        time.sleep(0.1)


def _size(file: Path) -> int:
    return os.stat(file).st_size


def _signal(program: Program, number: signal.Signals) -> None:
    if program.poll() is None:
        program.send_signal(number)
