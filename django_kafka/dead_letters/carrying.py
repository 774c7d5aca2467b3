"""The loop of an executor: one replay, or one piece of a job, after another, waiting while something is down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from .. import retries
from ..execution import Connections
from ..models import Replay
from .claiming import ClaimLost
from .executing import Executor
from .jobs.running import JobExecutor
from .jobs.settling import Settled
from .outcomes import Postponed
from .stopping import Stop

Done = TypeVar("Done", covariant=True)


class Carries(Protocol[Done]):
    """Whoever carries out one thing at a time."""

    def run_next(self, stop: Stop | None = None) -> Done | None:
        """Carry out what comes next and return it; None when there is nothing to claim."""

    def tidy_up(self) -> None:
        """Do what is to be done every so often."""


class Everything:
    """Carries out single replays, and pieces of jobs while there are none; used by one thread. Close it in the end."""

    def __init__(self, consumers: Sequence[str] | None = None) -> None:
        """Take what is of these consumers (None: of all)."""
        self._jobs = JobExecutor(consumers)
        self._replays = Executor(consumers, before_each=self.rest)

    def run_next(self, stop: Stop | None = None) -> Replay | Settled | None:
        """Carry out the oldest replay, else a piece of a job; return it, or None when there is neither."""
        replay = self._replays.run_next(stop)
        if replay is not None:
            return replay
        piece = self._jobs.run_next(stop)
        if piece is not None:
            # A job may take hours, and what is done every so often must not wait for its end.
            self.tidy_up()
        return piece

    def tidy_up(self) -> None:
        """Do what is to be done every so often."""
        self._replays.tidy_up()

    def rest(self) -> None:
        """Give back what is held between two pieces, so that others go on with it."""
        self._jobs.rest()

    def close(self) -> None:
        """Give back what is held, for good."""
        self._jobs.close()
        self._replays.close()


def carry_out(
    executor: Carries[Done],
    *,
    stop: Stop,
    deadline: float = float("inf"),
    waiting: Callable[[Exception, float], None],
) -> Iterator[Done]:
    """Yield each replay (or piece of a job) that this executor brought to its end, until it finds none to claim.

    `stop` and `deadline` (of `time.monotonic()`) end it between two of them. In an outage it calls `waiting` with the
    error and the seconds until it tries again; any other error is raised.
    """
    mine, failures = Connections(), 0
    while not stop.is_set() and time.monotonic() < deadline:
        mine.tend()
        try:
            done = executor.run_next(stop)
            if done is None:
                executor.tidy_up()
        except ClaimLost:
            continue
        except Exception as error:
            cause = error.error if isinstance(error, Postponed) else error
            if cause is error and _is_for_good(error):
                raise
            failures += 1
            pause = min(retries.pause(failures), max(0.0, deadline - time.monotonic()))
            waiting(cause, pause)
            stop.wait(pause)
            continue
        failures = 0
        if done is None:
            return
        yield done


def _is_for_good(error: Exception) -> bool:
    return isinstance(retries.decide(error, policy=retries.once()), retries.DeadLetter) or retries.stops_worker(error)
