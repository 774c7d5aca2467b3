"""Troubles of a client: what it goes on from by itself is said, but not all the time."""

from __future__ import annotations

import time

from .. import logs

log = logs.of(__name__)

_AGAIN = 30.0
"""Seconds for which the same is not said again."""
_ADVICE = {
    "_ALL_BROKERS_DOWN": "; trying again until one answers",
    "UNKNOWN_TOPIC_OR_PART": "; create it, as `kafka_topics --create` does: it is looked for again every few seconds",
    "_BAD_COMPRESSION": (
        "; its partition waits there, and nothing of it is lost: a batch that inflates to more than "
        "receive.message.max.bytes in `options` needs that raised, or `kafka_offsets` to go on behind it"
    ),
    "_MAX_POLL_EXCEEDED": "; the partitions are lost and asked for again",
}


class Troubles:
    """Says what one consumer's client meets."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._said: dict[tuple[str, str | None], float] = {}

    def say(self, code: str, sentence: str, topic: str | None) -> None:
        """Log it, unless the same was said of this topic a moment ago."""
        now = time.monotonic()
        if now - self._said.get((code, topic), -_AGAIN) < _AGAIN:
            return
        self._said[code, topic] = now
        where = f" topic={topic}" if topic else ""
        log.warning("consumer=%s %s%s: %s%s", self._consumer, code, where, sentence, _ADVICE.get(code, ""))
