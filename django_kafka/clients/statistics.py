"""Connections that stand and that were made, as librdkafka's own statistics count them, and those that failed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

EVERY = 10_000
"""Milliseconds between two statistics of a client, unless its options say otherwise."""
_BROKERS, _GROUP = '"brokers":', '"cgrp":'
_FAILED = {"_TRANSPORT", "_RESOLVE", "_SSL", "_AUTHENTICATION", "UNSUPPORTED_SASL_MECHANISM"}
"""Errors that the client tells of a connection that broke, or did not come about."""


class Counts(Protocol):
    """What is counted of the connections of a producer or consumer."""

    connections_active: int
    connections_total: int
    connection_errors: int


class Connections:
    """Counts the connections of one client into what its producer or consumer has made."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._seen: Mapping[str, int] = {}
        self._closed = False
        self.unsteady_since: float | None = time.monotonic()
        """Since when a consumer has no settled place in its group, by the monotonic clock; None: it has one."""
        self.away = False
        """Whether, by the last statistics, no broker is connected, or a consumer has no coordinator."""

    def joined(self) -> None:
        """Note that a consumer has its place in its group."""
        self.unsteady_since = None

    def note(self, statistics: str) -> None:
        """Take in a client's statistics. It runs inside `poll` and `consume`, where nothing may be raised."""
        if not self._closed:
            with suppress(Exception):
                self._note(statistics)

    def _note(self, statistics: str) -> None:
        # Only this part: what follows, of every partition, is a hundred times as long.
        brokers, _end = json.JSONDecoder().raw_decode(statistics, statistics.index("{", statistics.index(_BROKERS)))
        counts, seen = self._counts, self._seen
        counts.connections_active = sum(one["state"] == "UP" for one in brokers.values())
        self.away = not counts.connections_active
        if (at := statistics.rfind(_GROUP)) >= 0:
            group, _end = json.JSONDecoder().raw_decode(statistics, statistics.index("{", at))
            self._note_group(group["state"], group["join_state"])
        told: Counter[str] = Counter()
        for name, one in brokers.items():
            told[_address(name, one)] += one["connects"]
        for address, made in told.items():
            # A broker that was forgotten and found again counts from the beginning.
            before = seen.get(address, 0)
            counts.connections_total += made - before if made >= before else made
        self._seen = told

    def _note_group(self, state: str, join_state: str) -> None:
        self.away = self.away or state != "up"
        if join_state == "steady":
            self.unsteady_since = None
        elif self.unsteady_since is None:
            self.unsteady_since = time.monotonic()

    def failed(self, code: str) -> None:
        """Note an error of the client."""
        if code in _FAILED:
            self._counts.connection_errors += 1

    def closed(self) -> None:
        """Note that the client goes. What it still tells is of no interest: another one may be there."""
        self._closed = True
        self._counts.connections_active = 0


def _address(name: str, broker: Mapping[str, Any]) -> str:
    """Return what stays the same when the library learns the number of a broker that it was told of, and renames it."""
    # A coordinator has a connection of its own, to the address of a broker.
    return name if broker.get("source") == "logical" else broker.get("nodename", name)
