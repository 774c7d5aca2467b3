"""What executors do for all letters while no replay waits: add up, take words, and delete what is kept no longer."""

from __future__ import annotations

import random
import time

from . import grouping, retention, searching
from .stopping import Stop

_ADD_UP_EVERY = 5.0
"""Seconds between two times of adding up failures."""
_PRUNE_EVERY = 600.0
"""Seconds between two times of deleting letters whose time is over."""
_PRUNED_AT_ONCE = 5000
"""Of them, before somebody's replay is looked for again."""
_ANEW_EVERY = 600.0
"""Seconds between two times of looking for words that were taken when something else was masked, while there are none.
Two processes with different settings, as in a deploy, do not take them anew in turn all the time."""
_WORDS_EVERY, _WORDS_SHARE = 1.0, 0.1
"""Seconds between two times of taking words from letters while there are none, and the share of time that it may take
while there are: a flood of letters is stored as fast as without, and found by words some time later."""


class Tidying:
    """When which of it is due."""

    def __init__(self) -> None:
        self._add_up_at = 0.0
        self._words_at = self._anew_at = 0.0
        # Not all workers of a deploy at once, and those that live for seconds never.
        self._prune_at = time.monotonic() + random.uniform(_PRUNE_EVERY / 10, _PRUNE_EVERY)

    def do_what_is_due(self, stop: Stop) -> None:
        """Add failures to their groups, take words from letters, and delete what is kept no longer, each when due."""
        now = time.monotonic()
        if now >= self._add_up_at:
            self._add_up_at = now + _ADD_UP_EVERY
            if grouping.add_up() >= grouping.TOGETHER:
                self._add_up_at = now
        if now >= self._words_at:
            anew = now >= self._anew_at
            found = searching.catch_up(anew=anew)
            if anew and not found:
                self._anew_at = now + _ANEW_EVERY
            took = time.monotonic() - now
            self._words_at = now + (took / _WORDS_SHARE if found else _WORDS_EVERY)
        if now >= self._prune_at:
            self._prune_at = now + _PRUNE_EVERY
            if retention.prune(most=_PRUNED_AT_ONCE, go_on=lambda: not stop.is_set()) >= _PRUNED_AT_ONCE:
                self._prune_at = now
