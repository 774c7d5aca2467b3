"""Patience: whether an outage that holds one message is that message's own fault, by how its neighbours fare.

A bad host name in a payload looks like a host that is down. As long as nobody else gets on either, it is taken for an
outage, and waited for without end. Pure: times are passed in, in seconds of a clock that never goes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from ..categories import databases
from ..categories.natures import UnknownCommit

_SPELLS = 1000
"""Waits that are remembered; at 15 s each they are four hours."""
_PARTS = 3
"""In each third of its waits neighbours must have got on: not only before the outage reached them, or after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """How the consumer's other messages fare."""

    succeeded: int
    """How many messages have succeeded so far; never falls."""
    lanes: int
    """How many lanes there are, with this one."""
    waiting: int
    """How many of them wait for an outage to end, with this one."""

    def __add__(self, other: Neighbours) -> Neighbours:
        return Neighbours(
            succeeded=self.succeeded + other.succeeded,
            lanes=self.lanes + other.lanes,
            waiting=self.waiting + other.waiting,
        )


NOBODY = Neighbours(succeeded=0, lanes=0, waiting=0)


class Elsewhere:
    """How the consumer's messages fare in other workers, as far as their heartbeats tell."""

    __slots__ = ("_handled", "neighbours")

    def __init__(self) -> None:
        self.neighbours = NOBODY
        """As it was heard last."""
        self._handled: dict[str, int] = {}

    def hear(self, workers: Iterable[tuple[str, int, int, int]]) -> None:
        """Take in what each of the others says: its id, messages handled since it began, partitions, waiting ones."""
        told = list(workers)
        # One that is new, or was not listened to for a while, says only where it begins.
        gained = sum(max(0, handled - self._handled.get(one, handled)) for one, handled, _lanes, _waiting in told)
        self._handled = {one: handled for one, handled, _lanes, _waiting in told}
        self.neighbours = Neighbours(
            succeeded=self.neighbours.succeeded + gained,
            lanes=sum(lanes for _one, _handled, lanes, _waiting in told),
            waiting=sum(waiting for _one, _handled, _lanes, waiting in told),
        )

    def hear_nothing(self) -> None:
        """Forget how far the others were: nobody listens."""
        self._handled = {}


_DEEPEST = 10


def is_of_database(error: BaseException, depth: int = _DEEPEST) -> bool:
    """Tell whether it is a database that is down: that is never the fault of one message."""
    if isinstance(error, UnknownCommit) or databases.of(error) is not None:
        return True
    inside = list(error.exceptions) if isinstance(error, BaseExceptionGroup) else []
    if error.__cause__ is not None:
        inside.append(error.__cause__)
    return depth > 0 and any(is_of_database(one, depth - 1) for one in inside)


class Outage:
    """What one message waits for, from its first attempt that met it to its last."""

    __slots__ = ("_spells", "_succeeded", "offset", "since")

    def __init__(self, offset: int, now: float, succeeded: int) -> None:
        self.offset = offset
        """The offset of the message."""
        self.since = now
        """When it met the outage first."""
        self._succeeded = succeeded
        self._spells: deque[tuple[float, bool]] = deque(maxlen=_SPELLS)
        """Each of its waits: when it ended, and whether a neighbour succeeded during it."""

    def met_again(self, now: float, succeeded: int) -> None:
        """Note that another attempt met it, and how many of the neighbours' messages have succeeded by now."""
        self._spells.append((now, succeeded > self._succeeded))
        self._succeeded = succeeded

    def is_its_own_fault(self, now: float, patience: float, neighbours: Neighbours) -> bool:
        """Tell whether the message has waited for `patience` seconds while its neighbours succeeded."""
        if now - self.since < patience:
            return False
        if neighbours.waiting > 1 and neighbours.waiting * 2 >= neighbours.lanes:
            return False
        lately = [succeeded for ended, succeeded in self._spells if ended > now - patience]
        if len(lately) < _PARTS:
            lately = [succeeded for _, succeeded in self._spells][-_PARTS:]
        if len(lately) < _PARTS:
            return False
        cuts = [len(lately) * part // _PARTS for part in range(_PARTS + 1)]
        return all(any(lately[start:end]) for start, end in pairwise(cuts))
