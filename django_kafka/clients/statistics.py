"""Connections that stand and that were made, as librdkafka's own statistics count them, and those that failed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from .. import logs
from . import librdkafka

log = logs.of(__name__)

_Found = TypeVar("_Found")
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
        self._unread: set[str] = set()
        """What was said not to be readable."""
        self.unsteady_since: float | None = time.monotonic()
        """Since when a consumer has no settled place in its group, by the monotonic clock; None: it has one."""
        self.away = False
        """Whether, by the last statistics, no broker is connected, or a consumer has no coordinator."""

    def joined(self) -> None:
        """Note that a consumer has its place in its group."""
        self.unsteady_since = None

    def note(self, statistics: str) -> None:
        """Take in a client's statistics. It runs inside `poll` and `consume`, where nothing may be raised.

        They differ between versions of the library. What cannot be read is said once in the log, and is not known.
        """
        if self._closed:
            return
        with suppress(Exception):  # of what writes the log
            brokers, group = statistics.find(_BROKERS), statistics.rfind(_GROUP)
            standing = self._try("connections", lambda: self._note_brokers(_part(statistics, brokers)))
            coordinated = group < 0 or self._try("groups", lambda: self._note_group(_part(statistics, group)))
            # Not of what is not known: of a worker that waits for brokers nobody asks what else is wrong with it.
            self.away = standing == 0 or coordinated is False

    def _try(self, what: str, note: Callable[[], _Found]) -> _Found | None:
        try:
            return note()
        except Exception as error:  # noqa: BLE001
            if what not in self._unread:
                self._unread.add(what)
                log.warning(
                    "the statistics of librdkafka %s do not tell of %s as others do (%s: %.100s): metrics and health "
                    "do not know of them",
                    librdkafka.version(), what, type(error).__name__, error,
                )  # fmt: skip
            return None

    def _note_brokers(self, brokers: Mapping[str, Mapping[str, Any]]) -> int:
        """Count connections; return how many stand."""
        standing: int = sum(one["state"] == "UP" for one in brokers.values())
        told: Counter[str] = Counter()
        for name, one in brokers.items():
            told[_address(name, one)] += one["connects"]
        counts, seen = self._counts, self._seen
        counts.connections_active = standing
        for address, made in told.items():
            # A broker that was forgotten and found again counts from the beginning.
            before = seen.get(address, 0)
            counts.connections_total += made - before if made >= before else made
        self._seen = told
        return standing

    def _note_group(self, group: Mapping[str, str]) -> bool:
        """Note whether a consumer has its place; return whether it has a coordinator."""
        state, join_state = group["state"], group["join_state"]
        if join_state == "steady":
            self.unsteady_since = None
        elif self.unsteady_since is None:
            self.unsteady_since = time.monotonic()
        return state == "up"

    def failed(self, code: str) -> None:
        """Note an error of the client."""
        if code in _FAILED:
            self._counts.connection_errors += 1

    def closed(self) -> None:
        """Note that the client goes. What it still tells is of no interest: another one may be there."""
        self._closed = True
        self._counts.connections_active = 0


def _part(statistics: str, at: int) -> Any:
    """Return one part of statistics only: what else there is, of every partition, is a hundred times as long."""
    if at < 0:
        raise LookupError("nothing")
    found, _end = json.JSONDecoder().raw_decode(statistics, statistics.index("{", at))
    return found


def _address(name: str, broker: Mapping[str, Any]) -> str:
    """Return what stays the same when the library learns the number of a broker that it was told of, and renames it."""
    # A coordinator has a connection of its own, to the address of a broker.
    return name if broker.get("source") == "logical" else broker.get("nodename", name)
