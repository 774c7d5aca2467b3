"""Dead letters, read like the messages that they were."""

from __future__ import annotations

from dataclasses import dataclass

from ..models import DeadLetter, Replay
from ..models.dead_letters import decode_headers


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A dead letter, read like the message that it was."""

    letter: DeadLetter
    """The row."""
    edited: Replay | None = None
    """A replay that has another key, value and headers, where somebody edited them."""

    @classmethod
    def of(cls, replay: Replay) -> StoredMessage:
        """Return the message that a replay is of, as it was edited for it."""
        return cls(replay.letter, replay if replay.edited else None)

    def topic(self) -> str:
        """Return the topic it came from."""
        return self.letter.topic

    def partition(self) -> int:
        """Return the partition it came from."""
        return self.letter.partition

    def offset(self) -> int:
        """Return its offset there."""
        return self.letter.offset

    def timestamp(self) -> tuple[int, int]:
        """Return its kind (0: none) and milliseconds since the epoch."""
        return (0, -1) if self.letter.timestamp_ms is None else (1, self.letter.timestamp_ms)

    def key(self) -> bytes | None:
        """Return its key."""
        return _bytes(self.letter.key if self.edited is None else self.edited.edited_key)

    def value(self) -> bytes | None:
        """Return its value."""
        return _bytes(self.letter.value if self.edited is None else self.edited.edited_value)

    def headers(self) -> list[tuple[str, bytes | None]]:
        """Return its headers."""
        return self.letter.headers if self.edited is None else decode_headers(self.edited.edited_headers or b"")


def _bytes(stored: bytes | memoryview | None) -> bytes | None:
    return None if stored is None else bytes(stored)
