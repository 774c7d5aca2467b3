"""librdkafka's log lines, in Python's logging."""

from __future__ import annotations

import logging

_log = logging.getLogger("django_kafka.client")


class ClientLog:
    """Takes the lines of one client.

    It runs inside `poll` and `consume`, where an exception would discard messages that are already taken off the
    queue: whatever a handler or filter of the project's logging raises stays here.
    """

    def __init__(self, kind: str, name: str) -> None:
        self._where = f"{kind}={name}"

    def log(self, level: int, line: str, *arguments: object) -> None:
        """Log one line at `level`."""
        try:
            _log.log(level, "%s " + line, self._where, *arguments)
        except Exception:  # noqa: BLE001  # see above: nothing may leave a callback of the client
            return
