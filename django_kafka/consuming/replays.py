"""The thread of a worker process that carries out replays of its consumers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from django.db import connections

from .. import logs, retries
from ..dead_letters.carrying import Everything, carry_out
from ..dead_letters.jobs.settling import Settled
from ..models import Replay
from .gate import Gate

log = logs.of(__name__)

_LOOK_EVERY, _LOOK_AFTER_TROUBLE = 1.0, 15.0


class ReplayThread(threading.Thread):
    """Looks for requested replays and jobs every second and carries them out, one at a time."""

    def __init__(
        self, consumers: Sequence[str], stop_worker: Callable[[BaseException], None], gate: Gate | None = None
    ) -> None:
        super().__init__(name="kafka-replays", daemon=True)
        self._consumers = consumers
        self._stop_worker = stop_worker
        self._gate = gate or Gate()
        self._ended = threading.Event()

    def run(self) -> None:
        """Work until the end."""
        executor = Everything(self._consumers)
        try:
            while not self._ended.is_set():
                self._ended.wait(self._look(executor))
        except BaseException as error:  # noqa: BLE001  # SystemExit and its like, from a handler
            self._stop_worker(error)
        finally:
            executor.close()
            connections.close_all()

    def _look(self, executor: Everything) -> float:
        """Carry out what is there, and return after how many seconds to look again."""
        try:
            with self._gate.beside() as allowed:
                if not allowed:
                    return _LOOK_EVERY
                found: Iterator[Replay | Settled] = carry_out(executor, stop=self._ended, waiting=self._note)
                for done in found:
                    if isinstance(done, Settled):
                        log.debug("job=%s letters=%s", done.job, done.done)
                    else:
                        log.info("replay=%s letter=%s %s", done.pk, done.letter_id, done.state)
                    if self._gate.only is not None:
                        executor.rest()
                        break
        except Exception as error:
            if retries.stops_worker(error):
                raise
            # Replays that cannot be read must not end the handling of messages.
            self._note(error, _LOOK_AFTER_TROUBLE)
            return _LOOK_AFTER_TROUBLE
        return _LOOK_EVERY

    def _note(self, error: Exception, pause: float) -> None:
        log.warning("replays wait %.1f s: %s", pause, type(error).__name__)

    def end(self) -> None:
        """Finish what runs, and stop."""
        self._ended.set()
        self.join()
