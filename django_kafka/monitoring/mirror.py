"""Metrics of processes that share a directory, as those of gunicorn do: prometheus_client's multiprocess mode.

In that mode whoever is scraped reads files that each process writes, and collectors are not asked. So what ours would
say is written to the files of this process: every second, and once more when it ends.
"""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import values
from prometheus_client.utils import floatToGoString

from .. import logs, tallies
from ..producers import close_all
from ..tallies import Histogram
from .families import FAMILIES, Family, Labels, Scene

log = logs.of(__name__)

_VARIABLES = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
_EVERY = 1.0
"""Seconds between two times of writing, and so what a killed process has not told at the most."""
_AGAIN = 60.0
"""Seconds until it is tried again where it cannot be written."""

_text_of: Any = floatToGoString
_Key = tuple[str, Labels]


def directory() -> str | None:
    """Return the directory that processes share, None when they share none."""
    return next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), None)


def register() -> None:
    """Have what is counted in this process written where it shares a directory. Nothing is opened before."""
    if directory() is not None and _mirror.begin not in tallies.when_begun:
        tallies.when_begun.append(_mirror.begin)


class Mirror:
    """Writes the metrics of this process to its files."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Held while it writes, and while the process forks: else a child might wait for ever for the library's."""
        self._pid = 0
        """The process in which it has begun."""
        self._values: dict[_Key, Any] = {}
        self._gauges: dict[str, set[Labels]] = {}
        """Which of each there have been."""
        self._reason = ""

    def begin(self) -> None:
        """Begin in this process, unless that is done."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._values, self._gauges = {}, {}
        threading.Thread(target=self._run, name="kafka-metrics", daemon=True).start()
        # `atexit` does not run in the children of multiprocessing and of Celery. Below 100: producers flush before.
        multiprocessing.util.Finalize(None, self.finish, exitpriority=50)
        celery_signals = sys.modules.get("celery.signals")
        if celery_signals is not None:
            celery_signals.worker_process_shutdown.connect(self._finish_for_celery)

    def _run(self) -> None:
        while True:
            time.sleep(_EVERY if self.write() else _AGAIN)

    def write(self) -> bool:
        """Write all there is; tell whether that was possible. It never raises."""
        try:
            if not values.ValueClass._multiprocess:
                raise RuntimeError(f"{_VARIABLES[0]} was set after prometheus_client was imported")
            with self.lock:
                scene = Scene()
                for family in FAMILIES:
                    self._write_all(family, dict(family.read(scene)))
        except Exception as error:  # noqa: BLE001  # a process must not end for want of metrics
            self._say(f"{type(error).__name__}: {error}")
            return False
        self._reason = ""
        return True

    def _say(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            log.warning(
                "metrics of process %s are not in %s=%s (%s); that is tried again every %.0f s",
                os.getpid(), _VARIABLES[0], directory(), reason, _AGAIN,
            )  # fmt: skip

    def _write_all(self, family: Family, found: dict[Labels, float | Histogram]) -> None:
        if family.kind == "gauge":
            # A file forgets nothing: what is there no longer would stay as it was.
            known = self._gauges.setdefault(family.name, set())
            found |= dict.fromkeys(known - found.keys(), 0.0)
            known.update(found)
        for labels, value in found.items():
            self._write(family, labels, value)

    def _write(self, family: Family, labels: Labels, value: float | Histogram) -> None:
        for name, names, more, number in _parts(family, value):
            key = name, labels + more
            if (kept := self._values.get(key)) is None:
                kept = self._values[key] = values.ValueClass(
                    family.kind, family.name.removesuffix("_total"), name, family.labels + names, labels + more,
                    family.means, multiprocess_mode=_mode(family),
                )  # fmt: skip
            kept.set(number)

    def finish(self) -> None:
        """Write what producers have delivered until the end of this process."""
        if self._pid == os.getpid():
            close_all()
            self.write()

    def _finish_for_celery(self, **_event: Any) -> None:
        self.finish()


def _parts(family: Family, value: float | Histogram) -> Iterator[tuple[str, Labels, Labels, float]]:
    """Yield what is written for one value: names, further labels, their values, and numbers. Buckets by themselves."""
    if not isinstance(value, Histogram):
        yield family.name, (), (), value
        return
    yield f"{family.name}_sum", (), (), value.sum
    for bound, count in zip((*value.bounds, float("inf")), value.counts, strict=True):
        yield f"{family.name}_bucket", ("le",), (str(_text_of(bound)),), count


def _mode(family: Family) -> str:
    """Return what becomes of the values of several processes that live: of a circuit or an age, the highest."""
    return "livesum" if family.adds_up else "livemax"


_mirror = Mirror()
atexit.register(_mirror.finish)
os.register_at_fork(
    before=_mirror.lock.acquire, after_in_parent=_mirror.lock.release, after_in_child=_mirror.lock.release
)
