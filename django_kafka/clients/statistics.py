"""Connections, as librdkafka's own statistics count them."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Protocol

EVERY = 10_000
"""Milliseconds between two statistics of a client, unless its options say otherwise."""
_BROKERS = '"brokers":'


class Counts(Protocol):
    """What is counted of the connections of producers and consumers."""

    connections_active: int
    connections_total: int
    connection_errors: int


class Connections:
    """Counts the connections of one client after another into one tally."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._before = counts.connections_total, counts.connection_errors
        """What clients before this one came to."""

    def note(self, statistics: str) -> None:
        """Take in a client's statistics. It runs inside `poll` and `consume`, where nothing may be raised."""
        with suppress(Exception):
            self._note(statistics)

    def _note(self, statistics: str) -> None:
        # Only this part: what follows, of every partition, is a hundred times as long.
        brokers, _end = json.JSONDecoder().raw_decode(statistics, statistics.index(_BROKERS) + len(_BROKERS) + 1)
        total, errors = self._before
        counts = self._counts
        counts.connections_active = sum(one["state"] == "UP" for one in brokers.values())
        counts.connections_total = total + sum(one["connects"] for one in brokers.values())
        counts.connection_errors = errors + sum(one["disconnects"] for one in brokers.values())

    def closed(self) -> None:
        """Note that the client is gone, or goes."""
        self._counts.connections_active = 0
        self._before = self._counts.connections_total, self._counts.connection_errors
