"""How lag and throughput move, from what this process saw of them before."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from .lag import PartitionLag
from .positions import Place

_RATE_OVER = 10.0
"""Seconds over which a rate is the mean; longer where commits are far apart: they come in lumps."""
_DIRECTION_OVER = 30.0
"""Seconds over which lag is compared; longer likewise."""
_SHORTEST_WAVE = 1.0
"""Seconds for which lag comes and goes however often commits are made."""
_KEPT = 600.0
"""Seconds for which lag is remembered."""
_POINTS = 1200


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """How the lag of a consumer moves."""

    produced: float
    """Messages a second that come into its partitions."""
    consumed: float | None = None
    """Messages a second that its group gets past; None: it was not looked at for long enough to have seen a commit."""
    direction: str | None = None
    """growing, shrinking or steady; None likewise."""
    change: float | None = None
    """Messages a second by which its lag grows, or shrinks when it is below 0; None likewise."""
    until_empty: float | None = None
    """Seconds until nothing is left, when it goes on like this; None: it does not shrink, or that is not known."""


@dataclass(frozen=True, slots=True)
class _Point:
    at: float
    lag: int
    produced: int
    consumed: int


class Track:
    """What was seen of one consumer."""

    def __init__(self) -> None:
        self._points: deque[_Point] = deque(maxlen=_POINTS)
        """The counts go on from the first one."""
        self._last: dict[Place, PartitionLag] = {}

    def take(self, at: float, partitions: Sequence[PartitionLag]) -> None:
        """Add what brokers said at a time, in seconds; the same once more, or nothing, is not added."""
        known = [one.lag for one in partitions if one.lag is not None]
        if not known or (self._points and at == self._points[-1].at):
            return
        if self._points and at < self._points[-1].at:
            self._points.clear()  # the clock was set back
        produced, consumed = (self._points[-1].produced, self._points[-1].consumed) if self._points else (0, 0)
        for one in partitions:
            if (before := self._last.get(one.place)) is not None:
                # Backwards goes a topic that was made anew, or a group that was moved: nothing of that is throughput.
                produced += max(0, one.log.high - before.log.high)
                consumed += max(0, _passed(before, one))
        self._points.append(_Point(at, sum(known), produced, consumed))
        self._last = {one.place: one for one in partitions}
        while self._points[0].at < at - _KEPT:
            self._points.popleft()

    def trend(self, between_commits: float) -> Trend | None:
        """Return how it moves; None until two looks were taken. `between_commits`: seconds from one to the next."""
        if len(self._points) < 2:
            return None
        now, recent = self._points[-1], self._since(_RATE_OVER)
        produced = (now.produced - recent.produced) / (now.at - recent.at)
        consumed = self._consumed(between_commits)
        if consumed is None:
            return Trend(produced=produced)
        direction, change = self._direction(between_commits)
        left = now.lag / -change if direction == "shrinking" else None
        return Trend(produced=produced, consumed=consumed, direction=direction, change=change, until_empty=left)

    def _consumed(self, between_commits: float) -> float | None:
        now, recent = self._points[-1], self._since(max(_RATE_OVER, 3 * between_commits))
        if now.at - recent.at < between_commits:
            return None
        commits = [one for before, one in pairwise(self._points) if one.consumed > before.consumed]
        commits = [one for one in commits if one.at >= recent.at and now.at - commits[-1].at <= 2 * between_commits]
        # From commit to commit: from any moment to any other there is one more or one less of few.
        first, last = (commits[0], commits[-1]) if len(commits) > 1 else (recent, now)
        return (last.consumed - first.consumed) / (last.at - first.at)

    def _direction(self, between_commits: float) -> tuple[str, float]:
        """Return the word, and messages a second: the later half of what was seen lately against the earlier one."""
        first, last = self._since(max(_DIRECTION_OVER, 6 * between_commits)), self._points[-1]
        points = [one for one in self._points if one.at >= first.at]
        early, late = points[: len(points) // 2], points[len(points) // 2 :]
        more = fmean(one.lag for one in late) - fmean(one.lag for one in early)
        change = more / (fmean(one.at for one in late) - fmean(one.at for one in early))
        # A group that keeps up is behind by what comes in between two commits, and then by nothing, again and again.
        # The more such waves were seen, the less of them is left in the means.
        over = last.at - first.at
        flow = min(last.produced - first.produced, last.consumed - first.consumed) / over
        wave = max(between_commits, _SHORTEST_WAVE)
        if not more or abs(more) <= flow * wave * (3 * wave / over):
            return "steady", change
        return ("growing" if more > 0 else "shrinking"), change

    def history(self) -> tuple[tuple[float, int], ...]:
        """Return times, in seconds, and the lag that there was, oldest first."""
        return tuple((one.at, one.lag) for one in self._points)

    def _since(self, seconds: float) -> _Point:
        """Return the oldest point of so many seconds, or the last one but one."""
        oldest = self._points[-1].at - seconds
        return next((one for one, _next in pairwise(self._points) if one.at >= oldest), self._points[-2])


def _passed(before: PartitionLag, now: PartitionLag) -> int:
    # Without a position a group reads nothing, while the place where it would begin moves.
    if now.position is None or now.reads_from is None or before.reads_from is None:
        return 0
    return now.reads_from - before.reads_from


class Pace:
    """How fast something is counted up."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque(maxlen=_POINTS)

    def take(self, at: float, count: int) -> None:
        """Add a count at a time, in seconds; one of the same time is not added."""
        if self._points and at == self._points[-1][0]:
            return
        if self._points and (at < self._points[-1][0] or count < self._points[-1][1]):
            self._points.clear()
        self._points.append((at, count))
        while len(self._points) > 2 and self._points[1][0] <= at - _RATE_OVER:
            self._points.popleft()

    @property
    def per_second(self) -> float | None:
        """How many a second; None until there are two."""
        if len(self._points) < 2:
            return None
        (before, low), (now, high) = self._points[0], self._points[-1]
        return (high - low) / (now - before)
