"""Control in the poller: partitions are taken out, because somebody paused them or seeks in them, and put back.

    in ──(paused, or a seek)──▶ leaving: nothing more is fetched or begun ──(nothing runs)──▶ out, at a position
    out ──(resumed, and no seek left)──▶ in, from its position

What was fetched and is not settled is dropped, as when a partition is revoked, and read again from the position. So a
seek settles nothing early, and a pause holds no memory.

For the poller's thread alone, but for `Wishes`, through which the thread of heartbeats tells what is wanted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import logs
from .lane import Place
from .partition import Partition

if TYPE_CHECKING:
    from .polling import Poller

log = logs.of(__name__)

UNKNOWN_FOR = 10.0
"""Seconds for which a worker that has just begun fetches nothing because no database told it what is paused."""
_UNKNOWN = "It is not known yet what is paused"
_AGAIN = 1.0
"""Seconds until what the client could not do is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seek:
    """A wish that a partition goes on at an offset."""

    control: int
    """The id of its `Control`."""
    place: Place
    """The partition."""
    to: int
    """The offset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a seek."""

    seek: Seek
    """Which one."""
    kind: str
    """"left": the partition is somebody else's; "out": its claim may be moved now; "done": the group has it."""
    start: int | None = None
    """The offset that would have been read next."""


@dataclass(slots=True, eq=False)
class Suspension:
    """What keeps a partition out."""

    began: float
    """When it was wanted, by the monotonic clock."""
    out: bool = False
    """Whether nothing of it is here any more."""
    position: int | None = None
    """The offset that is read next; None: where its group is."""
    seek: Seek | None = None
    """The seek that is being carried out."""
    moving: bool = False
    """Whether its claim is being moved."""
    failed: bool = False
    """Whether the client could not go on with it a moment ago."""
    paused: str = ""
    """By whom it is paused, since when and why; "" when it is not."""


class Wishes:
    """What is wanted of one worker. Written by the thread of heartbeats, read by the poller."""

    def __init__(self) -> None:
        self.seeks: deque[Seek] = deque()
        """To be begun."""
        self.moved: deque[Seek] = deque()
        """Those whose claims were moved."""
        self.given_up: deque[Seek] = deque()
        """Those whose claims were not, because they expired, or another worker has taken them."""
        self.answers: deque[Answer] = deque()
        """What became of them, for the other thread."""
        self.wake: Callable[[], None] = lambda: None
        """Called when there is something to be told."""
        self.number = 0
        """Grows with each change of what is paused."""
        self._began = time.monotonic()
        self._whole = ""
        self._places: Mapping[Place, str] = {}
        self._known = threading.Event()

    def pause(self, whole: str, places: Mapping[Place, str]) -> None:
        """Say all that is paused, with a sentence for each; `whole`: the same of the whole consumer, or ""."""
        if (whole, places) != (self._whole, self._places) or not self._known.is_set():
            self._whole, self._places = whole, places
            self._known.set()
            self.number += 1

    def go_on_without(self) -> None:
        """Say that nobody knows what is paused; after a while a worker goes on with what it knew last."""
        if not self._known.is_set() and time.monotonic() - self._began >= UNKNOWN_FOR:
            log.warning("nobody says what is paused; it is taken for nothing")
            self.pause("", {})

    def paused(self, place: Place) -> str:
        """Return why a partition is paused; "" when it is not."""
        if not self._known.is_set():
            return _UNKNOWN
        return self._whole or self._places.get(place, "")

    @property
    def known(self) -> bool:
        """Whether anybody has said what is paused."""
        return self._known.is_set()

    @property
    def whole(self) -> str:
        """Why the whole consumer is paused; "" when it is not."""
        return self._whole

    def tell(self, answer: Answer) -> None:
        """Tell what became of a seek."""
        self.answers.append(answer)
        self.wake()


@dataclass(slots=True)
class Steering:
    """Takes partitions of one poller out and puts them back."""

    poller: Poller
    wishes: Wishes | None = None
    """What is wanted; None: nobody controls this worker."""
    _seen: int = -1
    _away: dict[Place, Suspension] = field(default_factory=dict)
    """Partitions that are out, or leaving."""
    _again: float = 0.0
    _unsaid: dict[Place, Partition] = field(default_factory=dict)
    """Partitions whose groups have not taken the offset yet that somebody sought."""

    @property
    def up_to_date(self) -> bool:
        """Whether it has seen all that is paused and no longer paused. For any thread."""
        return self.wishes is None or (self.wishes.known and self._seen == self.wishes.number)

    @property
    def waits(self) -> bool:
        """Whether it is not known yet what is paused."""
        return self.wishes is not None and not self.wishes.known

    def arrived(self, partitions: Iterable[Partition]) -> list[Partition]:
        """Keep those out that are paused, of partitions that came; return the others."""
        if self.wishes is None:
            return list(partitions)
        others = []
        for partition in partitions:
            if paused := self.wishes.paused(partition.place):
                self._keep_out(partition, Suspension(began=time.monotonic(), out=True, paused=paused))
            else:
                others.append(partition)
        return others

    def left(self, places: Collection[Place]) -> None:
        """Forget partitions that were revoked, and say so of what was wanted of them."""
        for place in places:
            self._forget(place)
            if (partition := self._unsaid.pop(place, None)) is not None and partition.sought and self.wishes:
                # What was committed meanwhile does not tell whether the group was moved.
                self.wishes.tell(Answer(seek=partition.sought.seek, kind="left"))

    def _forget(self, place: Place) -> None:
        suspension = self._away.pop(place, None)
        if suspension is not None and suspension.seek is not None and self.wishes is not None:
            self.wishes.tell(Answer(seek=suspension.seek, kind="left"))

    def tend(self) -> None:
        """Do what is wanted, as far as it can be done now."""
        wishes = self.wishes
        if wishes is None:
            return
        if wishes.number != self._seen:
            self._seen = wishes.number
            for partition in self.poller.lanes:
                self._compare(partition, wishes)
        while wishes.seeks:
            self._begin(wishes.seeks.popleft(), wishes)
        while wishes.moved:
            self._end(wishes.moved.popleft(), moved=True)
        while wishes.given_up:
            self._end(wishes.given_up.popleft(), moved=False)
        for place in list(self._away):
            self._look(place, wishes)
        for place in list(self._unsaid):
            self._ask_again(place)

    def _ask_again(self, place: Place) -> None:
        """Have an offset committed again that was refused."""
        partition = self._unsaid[place]
        if self.poller.lanes.get(place) is not partition or partition.sought is None:
            del self._unsaid[place]
        elif not self.poller.committing and time.monotonic() >= self._again:
            self._again = time.monotonic() + _AGAIN
            self.poller.commit_at(place, partition.sought.seek.to)

    def _compare(self, partition: Partition, wishes: Wishes) -> None:
        paused = wishes.paused(partition.place)
        if partition.suspended is not None:
            partition.suspended.paused = paused
        elif paused:
            self._take_out(partition, Suspension(began=time.monotonic(), paused=paused))

    def _begin(self, seek: Seek, wishes: Wishes) -> None:
        partition = self.poller.lanes.get(seek.place)
        if partition is None:
            wishes.tell(Answer(seek=seek, kind="left"))
            return
        if partition.suspended is None:
            self._take_out(partition, Suspension(began=time.monotonic(), seek=seek))
        elif partition.suspended.seek is None:
            partition.suspended.seek = seek
        elif partition.suspended.seek != seek:
            # One after the other.
            wishes.tell(Answer(seek=seek, kind="left"))

    def _take_out(self, partition: Partition, suspension: Suspension) -> None:
        log.info(
            "consumer=%s topic=%s partition=%s is taken out: %s",
            self.poller.consumer.name, *partition.place, suspension.paused or "a seek",
        )  # fmt: skip
        partition.suspended = self._away[partition.place] = suspension
        partition.paused = True
        self.poller.pause([partition.place])
        suspension.position = self.poller.set_aside(partition)

    def _keep_out(self, partition: Partition, suspension: Suspension) -> None:
        """Have nothing fetched or begun of a partition that has nothing yet."""
        partition.suspended = self._away[partition.place] = suspension
        partition.halted = partition.interrupted = partition.paused = True

    def _look(self, place: Place, wishes: Wishes) -> None:
        """Go one step on with a partition that is out or leaving."""
        partition, suspension = self.poller.lanes.get(place), self._away[place]
        if partition is None or partition.suspended is not suspension:
            # It left, or was opened anew.
            self._forget(place)
            if partition is not None:
                self._compare(partition, wishes)
            return
        if not suspension.out:
            if not self.poller.is_through(partition):
                return
            partition = self._leave(partition, suspension)
        if suspension.moving or (suspension.failed and time.monotonic() < self._again):
            return
        seek = suspension.seek
        if seek is not None and self.poller.claims:
            suspension.moving = True
            wishes.tell(Answer(seek=seek, kind="out", start=suspension.position))
        elif seek is not None or not suspension.paused:
            self._put_back(partition, suspension, wishes)

    def _leave(self, partition: Partition, suspension: Suspension) -> Partition:
        """Settle what can be, drop the rest, and return the partition anew with nothing in it."""
        position, beyond = self.poller.conclude(partition)
        lanes = self.poller.lanes
        committed = partition.committed
        lanes.drop([partition])
        fresh = lanes.open(partition.place)
        if position is not None:
            suspension.position = position
        suspension.out = True
        fresh.done_before = beyond
        fresh.committed = committed
        self._keep_out(fresh, suspension)
        log.info(
            "consumer=%s topic=%s partition=%s is out, and would go on at %s",
            self.poller.consumer.name, *fresh.place, _said(suspension.position),
        )  # fmt: skip
        return fresh

    def _put_back(self, partition: Partition, suspension: Suspension, wishes: Wishes) -> None:
        """Go on where a seek wants it to, or where it was."""
        seek = suspension.seek
        if seek is not None:
            if self.poller.committing:
                return
            # So that what is answered from now on is of the new place.
            partition.committed = -1
            partition.done_before = set()
        where = suspension.position if seek is None else seek.to
        if not self.poller.put_back(partition, where, moved=seek is not None, idle=bool(suspension.paused)):
            self._again, suspension.failed = time.monotonic() + _AGAIN, True
            return
        if seek is not None:
            partition.sought = Answer(seek=seek, kind="done", start=suspension.position)
            self._unsaid[partition.place] = partition
            self._again = time.monotonic() + _AGAIN
        suspension.position, suspension.seek = where, None
        if not suspension.paused:
            self._let_in(partition)

    def _let_in(self, partition: Partition) -> None:
        partition.suspended = None
        del self._away[partition.place]
        log.info(
            "consumer=%s topic=%s partition=%s goes on at %s",
            self.poller.consumer.name, *partition.place, _said(partition.expected),
        )  # fmt: skip

    def _end(self, seek: Seek, *, moved: bool) -> None:
        """Go on after a claim was moved, or where it was."""
        partition = self.poller.lanes.get(seek.place)
        suspension = None if partition is None else partition.suspended
        if partition is None or suspension is None or suspension.seek != seek:
            return
        suspension.seek, suspension.moving = None, False
        if moved:
            suspension.position = seek.to
            partition.done_before = set()

    def committed(self, places: Iterable[Place]) -> None:
        """Say of seeks that their groups have them."""
        if self.wishes is None:
            return
        for place in places:
            partition = self.poller.lanes.get(place)
            if partition is not None and partition.sought is not None:
                self.wishes.tell(partition.sought)
                partition.sought = None


def _said(position: int | None) -> str:
    return "the offset of its group" if position is None else str(position)
