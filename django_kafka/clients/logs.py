"""librdkafka's log lines, in Python's logging."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from .. import logs

_log = logs.of("django_kafka.client")

_QUIET = 10.0
"""Seconds for which a client says the same kind of trouble once: a broker that is down is met many times a second."""


class ClientLog:
    """Takes the lines of one client.

    It runs inside `poll` and `consume`, where an exception would discard messages that are already taken off the
    queue: whatever a handler or filter of the project's logging raises stays here.
    """

    def __init__(self, kind: str, name: str, scrub: Callable[[str], str]) -> None:
        self._scrub = scrub
        self._kind = kind
        self._name = name
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def log(self, level: int, line: str, *arguments: object) -> None:
        """Log one line at `level`; troubles that repeat are counted and said again with their number."""
        try:
            text = self._scrub(line % arguments if arguments else line)
            # A line begins with what it is about: FAIL, CONNECT, REQTMOUT…
            kind = text.split(" ", 1)[0]
            if level >= logging.WARNING and not self._is_due(kind):
                self._unsaid[kind] = self._unsaid.get(kind, 0) + 1
                return
            unsaid = self._unsaid.pop(kind, 0)
            more = f" (and {unsaid} more like it before)" if unsaid else ""
            _log.log(level, "%s=%s %s%s", self._kind, self._name, text, more, extra={self._kind: self._name})
        except Exception:  # noqa: BLE001  # see above: nothing may leave a callback of the client
            return

    def _is_due(self, kind: str) -> bool:
        now = time.monotonic()
        if now - self._said.get(kind, -_QUIET) < _QUIET:
            return False
        self._said[kind] = now
        return True
