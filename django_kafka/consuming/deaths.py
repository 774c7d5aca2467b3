"""Which message killed its worker: what is written of a partition so that the next worker knows, and what it does then.

A worker that takes a partition writes its name into the partition's `Tenure`, and takes it out when it gives the
partition back. A name of a worker that is dead tells of a death:

after the first     the next worker writes before each few messages which ones they are, for a minute
after the second    those that ran at that death are run alone, each with a mark
after the third     the message that bears the mark becomes a dead letter

In normal times nothing is written per message. A false suspicion costs a little time; only a message that was alone in
its process when that died is ever given up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from django.db import transaction
from django.db.models import F, Q

from .. import conf, logs
from ..exceptions import WorkerKilled
from ..execution import leave_foreign_transaction
from ..models import Tenure
from .fates import KILLED, Fate, Former
from .gate import Gate
from .partition import Partition
from .slices import Slice
from .suspicion import Suspicion

log = logs.of(__name__)

CAREFUL_FOR = 60.0
"""Seconds for which a worker that follows a dead one is careful, or ten times the interval of commits.

What killed the other is the first message that was not committed, or was begun within an interval of commits after it.
"""
_LONGEST_STEP = 0.05
"""Seconds that the messages between two marks may take together; one alone may take longer."""
_BUSY = 0.02
"""Seconds between two looks whether anything else still runs."""
_PATIENCE, _MOST_PATIENCE = 5.0, 600.0
"""Seconds for which nothing else is begun at first, and at most, before a message that is to run alone.

When something runs for longer, as a handler that hangs does, the others go on for as long, and it is tried anew.
"""
_AT_ONCE = 100


class Hold(Exception):
    """A partition may not go on yet: why, and when to ask again, in seconds; None: after longer and longer pauses."""

    def __init__(self, reason: str, seconds: float | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seconds = seconds


class Holding:
    """The tenure of one partition, as its worker knows it."""

    __slots__ = (
        "alone", "asked", "begun", "careful_until", "former", "killed", "known", "patience", "pk", "size", "term",
        "told",
    )  # fmt: skip

    def __init__(self) -> None:
        self.pk: int | None = None
        """Of the row; None until the name of the worker stands in it."""
        self.term = 0
        self.known = Suspicion()
        self.careful_until = 0.0
        self.size = 1
        """How many messages the next mark is for."""
        self.begun = 0.0
        self.alone = False
        """Whether a message bears the mark of running alone."""
        self.asked: float | None = None
        """Since when it waits for everything else to end."""
        self.patience = _PATIENCE
        """For how many seconds it does."""
        self.killed = False
        """Whether a message of it has ended this worker."""
        self.told = False
        """Whether the wait for the fate of the former worker is in the log."""
        self.former = Former()


class Tenures:
    """The partitions of one consumer in this process. Handler threads call `before` and `after`."""

    def __init__(
        self,
        worker: str,
        consumer: conf.Consumer,
        group_id: str,
        gate: Gate,
        *,
        beaten: Callable[[], bool],
        wake: Callable[[], None],
    ) -> None:
        """`worker` is the id of its heartbeats; `beaten` tells if there was one; `wake` has `close_left` called."""
        self._me = worker
        self._consumer = consumer.name
        self._place = {"cluster": consumer.cluster, "group_id": group_id}
        self._gate = gate
        self._beaten = beaten
        self._wake = wake
        self._careful_for = max(CAREFUL_FOR, 10 * consumer.auto_commit_interval)
        self._left: deque[Holding] = deque()
        self._killed: list[int] = []

    @property
    def _database(self) -> str:
        return conf.kafka().dead_letters.database

    def _rows(self) -> Any:
        using = self._database
        leave_foreign_transaction(using)
        return Tenure.objects.using(using)

    def begin(self, partition: Partition) -> None:
        """Note that a partition came; nothing of it runs before its tenure is written."""
        partition.tenure = Holding()
        partition.wary = True

    def before(self, partition: Partition, piece: Slice) -> int | None:
        """Return the index in the slice before which to stop, None for its end. Raises `Hold`.

        Before the very next message: that one killed its workers, and is to become a dead letter.
        """
        with _refusals():
            return self._before(partition, piece)

    def _before(self, partition: Partition, piece: Slice) -> int | None:
        mine = partition.tenure
        assert mine is not None
        begins = _offset(piece, piece.done)
        if mine.pk is None:
            self._enter(partition, mine, begins)
        elif mine.alone:
            self._end_alone(partition, mine, None)
        known = mine.known
        if known.guilty is not None:
            if begins < known.guilty or _is(piece, known.guilty, known.timestamp_ms):
                return _index(piece, known.guilty)
        elif known.deaths == 1 and time.monotonic() < mine.careful_until:
            return self._mark(mine, piece)
        elif known.deaths >= 2 and known.first is not None and known.last is not None and begins <= known.last:
            return _index(piece, known.first) if begins < known.first else self._run_alone(partition, mine, piece)
        if known.deaths:
            self._write(mine, Suspicion())
        partition.wary = False
        return None

    def after(self, partition: Partition, piece: Slice) -> None:
        """Note that what `before` let run has come to an end. Raises `Hold`."""
        mine = partition.tenure
        assert mine is not None
        if mine.alone:
            done = piece.done
            with _refusals():
                self._end_alone(partition, mine, (_offset(piece, done - 1) + 1) if done else None)
        else:
            step = time.monotonic() - mine.begun
            mine.size = mine.size * 2 if step < _LONGEST_STEP else max(1, mine.size // 2)

    def verdict(self, partition: Partition) -> WorkerKilled:
        """Return why the next message becomes a dead letter."""
        deaths = partition.tenure.known.deaths if partition.tenure is not None else 0
        return WorkerKilled(
            f"{deaths} workers in a row died with this message, the last one while it ran with nothing else beside it. "
            "It was not run again; to replay it may end another worker."
        )

    def killed_by(self, partition: Partition) -> None:
        """Note that a message of a partition stops this worker, as by `SystemExit`: that is a death like others.

        Written before the partition is given back: this worker is heard of until it ends, which can take long.
        """
        mine = partition.tenure
        assert mine is not None
        mine.killed = True
        if mine.pk is not None:
            self._killed.append(mine.pk)
            try:
                self._rows().filter(pk=mine.pk, worker=self._me, term=mine.term).update(worker=KILLED)
            except Exception as error:  # noqa: BLE001  # it stops all the same, and its row, deleted, says it then
                log.warning("consumer=%s its end cannot be written: %s", self._consumer, type(error).__name__)
        self._gate.open(partition)

    def _enter(self, partition: Partition, mine: Holding, begins: int) -> None:
        if not self._beaten():
            raise Hold("the first heartbeat of this worker is not written", 0.1)
        place = {"topic": partition.place[0], "partition": partition.place[1], **self._place}
        rows = self._rows()
        with transaction.atomic(using=self._database):
            # Written first, which waits for other writers: SQLite refuses to write when one came after a read.
            if not rows.filter(**place).update(term=F("term") + 1):
                rows.create(**place, term=1)
            row = rows.get(**place)
            before = Suspicion(**{name: getattr(row, name) for name in _FIELDS})
            fate = Fate.ALIVE if row.worker in ("", self._me) else mine.former.fate(row.worker, self._database)
            if fate is Fate.UNKNOWN:
                self._tell_wait(partition, mine)
                raise Hold("it is not known yet whether its former worker is dead", mine.former.pause())
            known = before.after_death(begins) if fate is Fate.DEAD else before.after_handover(begins)
            row.worker = self._me
            for name in _FIELDS:
                setattr(row, name, getattr(known, name))
            row.save(using=self._database)
        mine.term, mine.known, mine.pk = row.term, known, row.pk
        mine.careful_until = time.monotonic() + self._careful_for
        if fate is Fate.DEAD:
            self._tell_death(partition, known)

    def _tell_wait(self, partition: Partition, mine: Holding) -> None:
        if not mine.told:
            mine.told = True
            log.info(
                "consumer=%s topic=%s partition=%s waits until it is known whether its former worker is dead",
                self._consumer, *partition.place,
            )  # fmt: skip

    def _tell_death(self, partition: Partition, known: Suspicion) -> None:
        match known:
            case Suspicion(guilty=int() as offset):
                then = f"its message at offset {offset} ran alone then, and becomes a dead letter"
            case Suspicion(deaths=deaths) if deaths >= 2:
                then = f"its messages at offsets {known.first} to {known.last} are run alone"
            case _:
                then = f"what runs is written down for {self._careful_for:.0f} s"
        log.warning(
            "consumer=%s topic=%s partition=%s its former worker died, deaths=%s; %s",
            self._consumer, *partition.place, known.deaths, then,
        )  # fmt: skip

    def _mark(self, mine: Holding, piece: Slice) -> int:
        until = min(piece.done + mine.size, len(piece.messages))
        first, last = _offset(piece, piece.done), _offset(piece, until - 1)
        self._write(mine, replace(mine.known, first=first, last=last))
        mine.begun = time.monotonic()
        return until

    def _run_alone(self, partition: Partition, mine: Holding, piece: Slice) -> int:
        if not self._gate.close(partition):
            reason = "its next message is run alone, and something else still runs"
            raise Hold(reason, self._until_quiet(partition, mine))
        mine.asked, mine.patience = None, _PATIENCE
        try:
            raw = piece.messages[piece.done]
            self._write(mine, replace(mine.known, alone=raw.offset(), timestamp_ms=raw.timestamp()[1]))
        except BaseException:
            self._gate.open(partition)
            raise
        mine.alone = True
        return piece.done + 1

    def _until_quiet(self, partition: Partition, mine: Holding) -> float:
        now = time.monotonic()
        if mine.asked is None:
            mine.asked = now
        if now - mine.asked < mine.patience:
            return _BUSY
        self._gate.open(partition)
        pause = mine.patience
        mine.asked, mine.patience = None, min(_MOST_PATIENCE, 2 * mine.patience)
        return pause

    def _end_alone(self, partition: Partition, mine: Holding, then: int | None) -> None:
        self._gate.open(partition)
        first = mine.known.first if then is None else max(then, mine.known.first or 0)
        self._write(mine, replace(mine.known, alone=None, timestamp_ms=None, first=first))
        mine.alone = False

    def _write(self, mine: Holding, known: Suspicion) -> None:
        values = {name: getattr(known, name) for name in _FIELDS}
        if not self._rows().filter(pk=mine.pk, worker=self._me, term=mine.term).update(**values):
            raise Hold("another worker has written itself down for it", 1.0)
        mine.known = known

    def leave(self, partitions: Collection[Partition]) -> None:
        """Note that partitions left: their tenures are closed soon. Touches no database."""
        left = [one.tenure for one in partitions if one.tenure is not None and not one.tenure.killed]
        if left:
            self._left.extend(left)
            self._wake()

    def close_left(self) -> None:
        """Take the name of this worker out of the tenures of partitions that left."""
        waiting = [self._left.popleft() for _ in range(len(self._left))]
        try:
            entered = [one for one in waiting if one.pk is not None]
            for start in range(0, len(entered), _AT_ONCE):
                which = Q()
                for one in entered[start : start + _AT_ONCE]:
                    which |= Q(pk=one.pk, term=one.term)
                self._rows().filter(which, worker=self._me).update(worker="")
        except BaseException:
            self._left.extend(waiting)
            raise

    def close_all(self) -> None:
        """Take the name of this worker out of all tenures but those of messages that stopped it."""
        self._rows().filter(worker=self._me).exclude(pk__in=self._killed).update(worker="")


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what a database refuses into a wait for its end."""
    try:
        yield
    except (Hold, MemoryError):
        raise
    except Exception as error:
        raise Hold(f"what deaths have told of it cannot be read or written ({type(error).__name__})", None) from error


_FIELDS = ("deaths", "first", "last", "alone", "guilty", "timestamp_ms")


def _offset(piece: Slice, index: int) -> int:
    return piece.messages[index].offset() or 0


def _is(piece: Slice, offset: int, timestamp_ms: int | None) -> bool:
    """Tell whether the next message has this offset and timestamp."""
    raw = piece.messages[piece.done]
    return raw.offset() == offset and raw.timestamp()[1] == timestamp_ms


def _index(piece: Slice, offset: int) -> int:
    """Return the index of the first message that is not done and has this offset or a later one."""
    return next((i for i in range(piece.done, len(piece.messages)) if _offset(piece, i) >= offset), len(piece.messages))
