"""Claiming partitions: beside polling, because brokers and databases are waited for."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from django.db import connections

from .. import claims, conf, logs, retries
from ..claims import Claimed, ClaimRefused
from ..clients.admin import Unreachable
from ..clients.groups import GroupAdmin, Log
from ..dead_letters.rows import me
from ..exceptions import ConfigurationError
from ..execution import Connections
from .partition import Partition

log = logs.of(__name__)

_LOOK_EVERY = 1.0
"""Seconds between two looks at watermarks, where messages are noted apart."""
_REFUSED = 10.0
"""Seconds after which a claim that was refused is tried again: somebody may have set its offset."""
_ANSWERS_WITHIN = 10.0
_ASKED = "waits to be claimed: its brokers are asked what they have of it, and which topic it is"
_BEGINNINGS, _ENDS = ("earliest", "smallest", "beginning"), ("latest", "largest", "end")


@dataclass(slots=True, eq=False)
class _Wanted:
    partition: Partition
    due: float
    tries: int = 0
    said: str = ""


class Claimant(threading.Thread):
    """Claims the partitions of one consumer, and moves claims to watermarks where messages are noted apart."""

    def __init__(
        self, consumer: conf.Consumer, group_id: str, begins: str, stop_worker: Callable[[BaseException], None]
    ) -> None:
        """`begins` is librdkafka's `auto.offset.reset`, for a group that has committed nothing."""
        super().__init__(name=f"kafka-{consumer.name}-claims", daemon=True)
        self.consumer = consumer
        self.group_id = group_id
        self.claimed: deque[tuple[Partition, Claimed]] = deque()
        """What the poller may begin to fetch."""
        self._begins = begins
        self._stop_worker = stop_worker
        self._wanted: list[_Wanted] = []
        self._kept: list[tuple[Partition, Claimed]] = []
        self._changed = threading.Condition()
        self._ended = False
        self._admin: GroupAdmin | None = None
        self._again: float | None = None
        """When those are asked about again, together, of which something could not be had just now."""
        self._connections = Connections()

    def want(self, partitions: Iterable[Partition], after: float = 0.0) -> None:
        """Have partitions claimed, in so many seconds.

        Those that came together are asked about together: a cluster without a controller lets each question wait.
        """
        with self._changed:
            due = time.monotonic() + after
            self._wanted.extend(_Wanted(partition, due) for partition in partitions)
            self._changed.notify()

    def end(self) -> None:
        """Move claims to watermarks once more, and stop."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self.join(_ANSWERS_WITHIN)

    def run(self) -> None:
        """Work until the end."""
        try:
            while not self._ended:
                due = self._next()
                self._connections.tend()
                if due:
                    self._claim(due)
                self._advance()
            self._advance()
        except BaseException as error:  # noqa: BLE001  # without claims a worker would only look alive
            self._stop_worker(error)
        finally:
            connections.close_all()

    def _next(self) -> list[_Wanted]:
        """Wait for partitions that are to be claimed now, for a moment at most."""
        with self._changed:
            now = time.monotonic()
            first = min((one.due for one in self._wanted), default=now + _LOOK_EVERY)
            if not self._ended and first > now:
                self._changed.wait(min(first - now, _LOOK_EVERY))
            now = time.monotonic()
            due = [one for one in self._wanted if one.due <= now]
            self._wanted = [one for one in self._wanted if one.due > now]
        return [one for one in due if not one.partition.lost]

    def _claim(self, wanted: list[_Wanted]) -> None:
        self._again = None
        for one in wanted:
            one.partition.blocked = one.partition.blocked or _ASKED
        try:
            if self._admin is None:
                timeout = min(_ANSWERS_WITHIN, conf.cluster(self.consumer.cluster).connection.timeout)
                self._admin = GroupAdmin(self.consumer, self.group_id, timeout)
            logs = self._admin.logs([one.partition.place for one in wanted])
        except ConfigurationError as error:
            for one in wanted:
                self._wait(one, str(error))
            return
        for one in wanted:
            found = logs.get(one.partition.place)
            if found is None:
                self._wait(one, "The brokers do not say what they have of it.")
            else:
                self._take(one, found)

    def _take(self, wanted: _Wanted, found: Log) -> None:
        partition = wanted.partition
        try:
            claimed = self._ask(partition, found, None)
            if claimed is None:
                claimed = self._ask(partition, found, self._beginning(partition, found))
        except ClaimRefused as refusal:
            self._refuse(wanted, str(refusal))
        except Unreachable as error:
            self._wait(wanted, str(error))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is: unclaimed, nothing of it may be begun
            self._wait(wanted, f"It cannot be claimed in database {self.consumer.database!r} ({type(error).__name__}).")
        else:
            assert claimed is not None
            if partition.splits:
                self._kept.append((partition, claimed))
            self.claimed.append((partition, claimed))

    def _ask(self, partition: Partition, found: Log, begins: int | None) -> Claimed | None:
        return claims.take(
            self.consumer, self.group_id, partition.place, found, apart=partition.splits, begins=begins, worker=me()
        )

    def _beginning(self, partition: Partition, found: Log) -> int:
        """Return where a partition begins that has never been claimed: where its group is, or is told to begin."""
        assert self._admin is not None
        committed = self._admin.committed([partition.place])[partition.place]
        if committed is not None:
            return committed
        if self._begins in _BEGINNINGS:
            return found.low
        if self._begins in _ENDS:
            return found.high
        topic, number = partition.place
        raise ClaimRefused(
            f"{topic}[{number}]: its group has committed nothing, and auto_offset_reset is {self._begins!r}. "
            "`python manage.py kafka_offsets` sets where it begins."
        )

    def _wait(self, wanted: _Wanted, reason: str) -> None:
        wanted.tries += 1
        if self._again is None:
            self._again = time.monotonic() + retries.pause(wanted.tries)
        self._later(wanted, self._again)
        self._say(wanted, logging.WARNING, f"waits to be claimed: {reason}")

    def _refuse(self, wanted: _Wanted, sentence: str) -> None:
        wanted.tries = 0
        self._later(wanted, time.monotonic() + _REFUSED)
        self._say(wanted, logging.ERROR, f"stopped: {sentence}")

    def _later(self, wanted: _Wanted, due: float) -> None:
        wanted.due = due
        with self._changed:
            self._wanted.append(wanted)

    def _say(self, wanted: _Wanted, level: int, sentence: str) -> None:
        wanted.partition.blocked = sentence
        if sentence != wanted.said:
            wanted.said = sentence
            log.log(
                level, "consumer=%s topic=%s partition=%s %s", self.consumer.name, *wanted.partition.place, sentence
            )

    def _advance(self) -> None:
        """Move claims to watermarks, so that what is noted of single messages stays little."""
        left = []
        for partition, claimed in self._kept:
            lost = partition.lost
            try:
                if (message := partition.watermark) is not None:
                    claimed.advance((message.offset() or 0) + 1)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # nothing depends on it, and it is tried again
                log.info(
                    "consumer=%s topic=%s partition=%s its claim is not moved yet: %s",
                    self.consumer.name, *partition.place, type(error).__name__,
                )  # fmt: skip
            if not (lost or claimed.fenced):
                left.append((partition, claimed))
        self._kept = left
