"""What a piece of a job is made of: the letters of one lane that come next, read in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

from django.db.models.functions import Coalesce, Length

from ...models import DeadLetter, JobLane, Replay
from ..replaying import replays
from .rows import waiting_in

MOST = 500
"""Letters of a piece."""
_MOST_BYTES = 16 * 1024 * 1024
"""Of their keys and values; a single letter may always be larger."""


_OF_LETTER = (
    "category", "error_type", "error_message", "traceback", "unread", "release", "first_failed_at", "last_failed_at",
    "settled_at",
)  # fmt: skip
_UNREAD = frozenset(("requested_at", "claim", "executor", "claimed_at", "finished_at", "result", "report")).union(
    f"letter__{name}" for name in _OF_LETTER
)
"""What is not needed of replays and letters, which takes half of the time that reading them takes."""


class Key(NamedTuple):
    """What letters have to share to have an order."""

    topic: str
    """Where they come from."""
    partition: int
    """And from which partition."""
    key: bytes
    """Their key."""

    @classmethod
    def of(cls, letter: DeadLetter) -> Key | None:
        """Return that of a letter; None: it has no order."""
        return None if letter.key is None else cls(letter.topic, letter.partition, bytes(letter.key))


def read(lane: JobLane, most: int) -> list[Replay]:
    """Return the replays that come next in a lane, with their letters, as far as the job's step allows."""
    waiting = waiting_in(lane)
    if lane.job.allowed is not None:
        waiting = waiting.filter(pk__lte=lane.job.allowed)
    size = Coalesce(Length("letter__value"), 0) + Coalesce(Length("letter__key"), 0)
    ids: list[int] = []
    total = 0
    for pk, length in waiting.annotate(size=size).values_list("pk", "size")[:most]:
        total += length
        if ids and total > _MOST_BYTES:
            break
        ids.append(pk)
    if not ids:
        return []
    found = replays().filter(pk__in=ids).select_related("letter").order_by("pk")
    unread = _UNREAD if lane.job.target == Replay.Target.TOPIC else _UNREAD - {"letter__traceback"}
    return list(found.defer(*unread))
