"""The thread of a worker process that carries out replays of its consumers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from django.db import connections

from .. import retries
from ..dead_letters.executing import ClaimLost, Executor
from ..execution import Connections

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0


class ReplayThread(threading.Thread):
    """Looks for requested replays every second and carries them out, one at a time."""

    def __init__(self, consumers: Sequence[str], stop_worker: Callable[[BaseException], None]) -> None:
        super().__init__(name="kafka-replays", daemon=True)
        self._consumers = consumers
        self._stop_worker = stop_worker
        self._ended = threading.Event()

    def run(self) -> None:
        """Work until the end."""
        executor = Executor(self._consumers)
        mine = Connections()
        failures = 0
        try:
            while not self._ended.is_set():
                mine.tend()
                try:
                    worked = executor.run_next() is not None
                    failures = 0
                except ClaimLost as lost:
                    log.info("%s", lost)
                    continue
                except MemoryError:
                    raise
                except Exception as error:  # noqa: BLE001  # an outage, or rows that cannot be read: later
                    failures += 1
                    level = logging.WARNING if failures == 1 else logging.DEBUG
                    log.log(level, "replays wait: %s", type(error).__name__)
                    self._ended.wait(retries.pause(failures))
                    continue
                if not worked:
                    self._ended.wait(_LOOK_EVERY)
        except BaseException as error:  # noqa: BLE001  # SystemExit and its like, from a handler
            self._stop_worker(error)
        finally:
            executor.close()
            connections.close_all()

    def end(self) -> None:
        """Finish the replay that runs, and stop."""
        self._ended.set()
        self.join()
