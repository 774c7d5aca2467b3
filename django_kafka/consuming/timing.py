"""How long the messages of one thread took, and how old they were when they were settled.

A message that takes a microsecond is not to pay for two looks at the clock. While a thread's messages take less than
`_QUICK` each, those that run in a row are timed together, and each counts as their mean; ages are those of some of
them. As soon as they take longer, each is timed by itself, and its age is taken when it is settled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..messages import Message
from ..tallies import ConsumedTopic
from .slices import Slice

_QUICK = 50e-6
"""Seconds for a message."""
_SAMPLES = 4
"""Messages of which the ages are taken, of those that were settled together."""


class Stopwatch:
    """Times the messages of one thread."""

    __slots__ = ("_began", "_each", "_marked", "_piece", "_topic")

    def __init__(self) -> None:
        self._each = True
        """Whether messages are timed one by one; they are until they are known to be quick."""
        self._topic: ConsumedTopic
        self._piece: Slice
        self._began = self._marked = 0.0

    def begin(self, topic: ConsumedTopic, piece: Slice, call: Callable[[Message], Any]) -> Callable[[Message], Any]:
        """Begin to time messages of a slice; return what runs each of them, which is `call` or does what that does."""
        self._topic, self._piece = topic, piece
        self._began = self._marked = time.perf_counter()
        if not self._each:
            return call
        durations, clock = topic.durations, time.perf_counter

        def timed(message: Message) -> Any:
            if piece.settled > piece.aged:
                take_ages(topic, piece)
            self._marked = began = clock()
            returned = call(message)
            durations.add(clock() - began)
            return returned

        return timed

    def end(self, done: int, failed: bool, *, together: bool) -> None:
        """Note that so many messages came through, and maybe one failed after them; `together`: not by what `begin`
        returned.
        """
        now, topic = time.perf_counter(), self._topic
        count = done + failed
        if not count:
            return
        mean = (now - self._began) / count
        if together or not self._each:
            topic.durations.add(mean, done)
            if failed:
                topic.failed_durations.add(mean)
        elif failed:
            topic.failed_durations.add(now - self._marked)
        self._each = mean >= _QUICK


def take_ages(topic: ConsumedTopic, piece: Slice) -> None:
    """Take the ages of the messages of a slice that were settled since this was done last."""
    first, end = piece.aged, piece.settled
    if end <= first:
        return
    piece.aged = end
    messages, now = piece.messages, time.time()
    step = (end - first + _SAMPLES - 1) // _SAMPLES
    for start in range(first, end, step):
        count = min(step, end - start)
        kind, milliseconds = messages[start + count // 2].timestamp()
        if kind:
            # Clocks differ: nothing is younger than new.
            topic.ages.add(max(0.0, now - milliseconds / 1000), count)
