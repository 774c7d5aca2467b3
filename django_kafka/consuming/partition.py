"""A partition: what of it is in this worker, how far it is settled, and how its messages are dealt to lanes."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from ..messages import RawMessage
from .lane import Lane, Place
from .slices import Slice

if TYPE_CHECKING:
    from ..claims import Claimed
    from .controlling import Answer, Suspension
    from .deaths import Holding

_TURN = 500
"""Messages that gather in one slice of a lane at most, before the next one is begun."""
_key_of: Any = methodcaller("key")
_offset_of: Any = methodcaller("offset")


class Partition(Lane):
    """A partition of this worker, and the first of its lanes.

    With ordering "partition" it is the only one. Else it begins the messages until nothing has to be watched closely,
    the first one at least; then it deals what it has, and all that comes, to lanes of its own: those of one key to one
    lane, so that a watermark with gaps behind it moves when the slowest lane does.
    """

    __slots__ = (
        "_apart", "_dealt", "_fetched", "_next", "at_end", "awaits", "blocked", "busy", "bytes", "claim", "committed",
        "dealing", "done_before", "end", "expected", "finish", "held_keys", "in_flight", "lost", "occupied", "ordering",
        "paused", "sought", "splits", "stored", "suspended", "tenure", "watermark", "width",
    )  # fmt: skip

    def __init__(self, place: Place, ordering: str = "partition", width: int = 1) -> None:
        super().__init__(place, self)
        self.ordering = ordering
        """"partition", "key" or "unordered"."""
        self.width = width
        """How many lanes its messages are dealt to."""
        self.splits = ordering != "partition"
        """Whether it deals its messages to lanes, now or soon."""
        self.single = self.splits
        self.dealing = False
        """Whether it does so."""
        self.in_flight = 0
        """Messages above the watermark, or of slices that are not settled whole."""
        self.bytes = 0
        """Their bytes."""
        self.busy = 0
        """How many threads work on its lanes."""
        self.expected: int | None = None
        """The offset that the next fetched message should have."""
        self.watermark: RawMessage | None = None
        """The last message of all that are settled; where nothing is dealt, of all slices that are settled whole."""
        self.stored = -1
        """The offset that was last handed to the client for committing."""
        self.committed = -1
        """The offset that the group says is to be read next."""
        self.end = -1
        """The offset after the last message in the log, as the client knew it when it was asked last."""
        self.lost = False
        """Whether it belongs to somebody else, so that nothing may be stored for it."""
        self.paused = False
        """Whether fetching for it is paused."""
        self.at_end = False
        """Whether the broker said that there is nothing more for now."""
        self.awaits = -1
        """The offset up to which this worker itself has sent messages here, so that there is more before that."""
        self.tenure: Holding | None = None
        """What `deaths` knows of it; None when nobody watches for deaths."""
        self.held_keys: dict[bytes, int] | None = None
        """Keys that are held, or were lately, and how many messages are parked behind each at most; None: not read."""
        self.claim: Claimed | None = None
        """Its claim, where offsets are committed with effects; None: it has none, or is not claimed yet."""
        self.finish: Callable[[Sequence[int]], None] | None = None
        """What a transaction that settles messages has to call with their offsets; None: nothing."""
        self.done_before: set[int] = set()
        """Offsets of messages that are still to come, but were settled by its former worker."""
        self.blocked = ""
        """Why nothing of it is fetched, for people; "" when it is."""
        self.suspended: Suspension | None = None
        """What keeps it out, because somebody paused it or seeks in it; None: nothing does."""
        self.sought: Answer | None = None
        """What is to be said when its group has the offset that somebody sought."""
        self.occupied: set[Lane] = set()
        """Its lanes that have messages, where it splits."""
        self._fetched: deque[tuple[Sequence[RawMessage], int]] = deque()
        self._dealt: dict[int, Lane] = {}
        self._apart: dict[bytes, Lane] = {}
        self._next = 0

    @property
    def lanes(self) -> Collection[Lane]:
        """Its lanes that have messages, and itself."""
        return {self} | self.occupied if self.splits else (self,)

    def settled_message(self) -> RawMessage | None:
        """Return the last message below the watermark, where nothing is dealt.

        Read by the poller while a handler thread writes: the finished slices last, so that one that is finished in
        between never leads back behind what was seen before.
        """
        try:
            first = self.slices[0]
        except IndexError:
            return self.watermark
        settled = first.settled
        return first.messages[settled - 1] if settled else self.watermark

    @property
    def next_unsettled(self) -> int | None:
        """The offset after the watermark; None as long as it does not know where it is. For any thread."""
        last = self.watermark if self.splits else self.settled_message()
        if last is not None:
            return (last.offset() or 0) + 1
        return self.committed if self.committed >= 0 else None

    @property
    def position(self) -> int | None:
        """The offset of the first message that is not settled, when nothing runs; None: it has fetched nothing."""
        last = self.watermark if self.splits else self.settled_message()
        if last is not None:
            return (last.offset() or 0) + 1
        first = [offset for lane in self.lanes if (offset := lane.first_unsettled) is not None]
        if self._fetched:
            first.append(_offset_of(self._fetched[0][0][0]))
        return min(first, default=self.expected)

    def settled_beyond(self) -> set[int]:
        """Return the offsets of messages behind the watermark that are settled, when nothing runs."""
        fetched = {_offset_of(message) for messages, _size in self._fetched for message in messages}
        left = {
            _offset_of(message)
            for lane in self.lanes
            for piece in lane.slices
            for message in piece.messages[piece.settled :]
        }
        low = self.position or 0
        return {offset for offset in (fetched - left) | self.done_before if offset >= low}

    def undone(self, messages: list[RawMessage]) -> list[RawMessage]:
        """Return the messages of a fetch that its former worker has not settled."""
        left = [one for one in messages if _offset_of(one) not in self.done_before]
        last = _offset_of(messages[-1])
        self.done_before = {one for one in self.done_before if one > last}
        return left

    def fetch(self, messages: Sequence[RawMessage], size: int) -> None:
        """Remember what was fetched until the watermark has passed it."""
        self._fetched.append((messages, size))

    def advance(self) -> tuple[int, int]:
        """Move the watermark before the first message that a lane has not settled; return what it passed.

        Where it splits: how many messages of whole fetches, and their bytes.
        """
        unsettled = [offset for lane in self.occupied if (offset := lane.first_unsettled) is not None]
        low = min(unsettled, default=None)
        passed = size = 0
        while self._fetched and (low is None or _offset_of(self._fetched[0][0][-1]) < low):
            messages, their_size = self._fetched.popleft()
            self.watermark = messages[-1]
            passed += len(messages)
            size += their_size
        if self._fetched and low is not None:
            messages, _size = self._fetched[0]
            if before := bisect_left(messages, low, key=_offset_of):
                self.watermark = messages[before - 1]
        return passed, size

    def forget(self) -> None:
        """Drop what no thread works on, because the partition left."""
        self._fetched.clear()
        for lane in list(self.lanes):
            while len(lane.slices) > lane.running:
                lane.slices.pop()
        self.occupied = {lane for lane in self.occupied if lane.slices}

    def may_split(self) -> bool:
        """Tell whether it may deal its messages, once some are done: nothing of its own is left half done."""
        if not self.splits or self.dealing or self.wary or self.halted:
            return False
        first = self.slices[0] if self.slices else None
        return first is None or (first.unsettled is None and first.tried_at(first.done) is None)

    def split(self) -> list[Lane]:
        """Begin to deal messages, those first that it has; return the lanes that have some now."""
        self.dealing = True
        left = [message for piece in self.slices for message in piece.messages[piece.done :]]
        self.slices.clear()
        self.occupied.discard(self)
        return self.deal(left)

    def deal(self, messages: Sequence[RawMessage]) -> list[Lane]:
        """Give messages to lanes; return those that had none before."""
        woken = []
        for lane, some in self._by_key(messages) if self.ordering == "key" else self._in_turn(messages):
            if not lane.slices:
                woken.append(lane)
                self.occupied.add(lane)
                lane.slices.append(Slice(some, 0))
                continue
            last = lane.slices[-1]
            # Not to the one that a thread works on, which would never come to its end.
            if (lane.running and len(lane.slices) == 1) or len(last.messages) >= _TURN:
                lane.slices.append(Slice(some, 0))
            else:
                last.messages.extend(some)
        return woken

    def _by_key(self, messages: Sequence[RawMessage]) -> Iterator[tuple[Lane, list[RawMessage]]]:
        apart, width = self._apart, self.width
        parts: dict[int, list[RawMessage]] = {}
        theirs: dict[bytes, list[RawMessage]] = {}
        for message, key in zip(messages, map(_key_of, messages), strict=True):
            if key is None:
                # Without a key there is no order to keep.
                self._next = number = (self._next + 1) % width
            elif apart and key in apart:
                theirs.setdefault(key, []).append(message)
                continue
            else:
                number = hash(key) % width
            parts.setdefault(number, []).append(message)
        for key, some in theirs.items():
            yield apart[key], some
        for number, some in parts.items():
            yield self._lane(number), some

    def _in_turn(self, messages: Sequence[RawMessage]) -> Iterator[tuple[Lane, list[RawMessage]]]:
        width, first = self.width, self._next
        for number in range(min(width, len(messages))):
            yield self._lane((first + number) % width), list(messages[number::width])
        self._next = (first + len(messages)) % width

    def _lane(self, number: int) -> Lane:
        lane = self._dealt.get(number)
        if lane is None:
            lane = self._dealt[number] = Lane(self.place, self, number)
        return lane

    def set_apart(self, lane: Lane) -> Lane | None:
        """Leave a lane to its next message, and to those of the same key; return the lane that has the others now.

        None when there are no others. What waits, or runs for long, holds up nobody else then.
        """
        piece = lane.slices[0]
        index = piece.done
        if lane.number is None or index >= len(piece.messages):
            return None
        key = _key_of(piece.messages[index]) if self.ordering == "key" else None
        behind = list(chain(piece.messages[index + 1 :], *(later.messages for later in list(lane.slices)[1:])))
        same = [message for message in behind if key is not None and _key_of(message) == key]
        others = [message for message in behind if key is None or _key_of(message) != key]
        # In place: its thread may be at the message before them.
        piece.messages[index + 1 :] = same
        while len(lane.slices) > 1:
            lane.slices.pop()
        rest = self._dealt[lane.number] = Lane(self.place, self, lane.number)
        lane.number = None
        if key is not None:
            lane.key = key
            self._apart[key] = lane
        if not others:
            return None
        rest.slices.append(Slice(others, 0, known=dict(piece.known)))
        self.occupied.add(rest)
        return rest

    def vacate(self, lane: Lane) -> None:
        """Note that a lane has no more messages; one that was set apart ends."""
        self.occupied.discard(lane)
        if lane.key is not None:
            del self._apart[lane.key]
