"""What ties a worker process to the supervisor that started it: its number, and a pipe that says when to finish."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

from .. import logs
from ..exceptions import ConfigurationError

log = logs.of(__name__)

NUMBER = "DJANGO_KAFKA_PROCESS"
"""The environment variable in which a supervisor tells each process its number."""
FINISH = b"."
"""What it writes into the pipe before it closes it; a pipe that ends without is a supervisor that died."""


def take_number() -> int | None:
    """Return the number of this process, from 1, None when no supervisor started it.

    It is taken out of the environment: what this process starts in its turn is no worker of that supervisor.
    """
    text = os.environ.pop(NUMBER, None)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"{NUMBER} is {text!r} in the environment; only kafka_consume sets it. Take it out.")
    return int(text)


def name_process(number: int) -> None:
    """Have each line of our log, and `%(processName)s` of all others, tell which process it is from.

    All write to one stderr, and formats of a project need not have the process in them.
    """
    multiprocessing.current_process().name = f"kafka-{number}"
    make = logging.getLogRecordFactory()

    def named(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = make(*arguments, **more)
        if record.name.startswith("django_kafka."):
            record.msg = f"process={number} {record.msg}"
        return record

    logging.setLogRecordFactory(named)


class Leash(threading.Thread):
    """Waits for the end of the pipe that a supervisor has put in place of standard input.

    `finish` is called once, in this thread, when the supervisor says so, and when it is gone.
    """

    def __init__(self, finish: Callable[[], None]) -> None:
        super().__init__(name="kafka-leash", daemon=True)
        self._finish = finish
        self._pipe = os.dup(0)
        # Whoever reads standard input now, a handler or what it starts, finds its end.
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)

    def run(self) -> None:
        """Wait."""
        if os.read(self._pipe, 1) != FINISH:
            log.warning("the supervisor is gone; this process finishes what runs, and ends")
        self._finish()
