"""The loop around an executor: one replay after another, waiting while something is down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from .. import retries
from ..execution import Connections
from ..models import Replay
from .executing import ClaimLost, Executor, Stop


def carry_out(
    executor: Executor,
    *,
    stop: Stop,
    deadline: float = float("inf"),
    waiting: Callable[[Exception, float], None],
) -> Iterator[Replay]:
    """Yield each replay that this executor brought to its end, until it finds none to claim.

    `stop` and `deadline` (of `time.monotonic()`) end it between two replays. In an outage it calls `waiting` with the
    error and the seconds until it tries again; any other error is raised.
    """
    mine, policy = Connections(), retries.once()
    failures = 0
    while not stop.is_set() and time.monotonic() < deadline:
        mine.tend()
        try:
            replay = executor.run_next(stop)
            if replay is None:
                executor.tidy_up()
        except ClaimLost:
            continue
        except Exception as error:
            if isinstance(retries.decide(error, policy=policy), retries.DeadLetter) or retries.stops_worker(error):
                raise
            failures += 1
            pause = min(retries.pause(failures), max(0.0, deadline - time.monotonic()))
            waiting(error, pause)
            stop.wait(pause)
            continue
        failures = 0
        if replay is None:
            return
        yield replay
