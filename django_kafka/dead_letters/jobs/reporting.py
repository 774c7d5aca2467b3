"""How far a job is, and what became of each of its letters."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db import connections
from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import RawSQL

from ...models import Replay, ReplayJob
from ..replaying import replays
from .rows import jobs

OUTCOMES = (
    Replay.State.FAILED, Replay.State.BEHIND, Replay.State.SKIPPED, Replay.State.CANCELLED, Replay.State.SUCCEEDED,
    Replay.State.REQUESTED,
)  # fmt: skip
"""What may have become of a letter, what needs somebody first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is."""

    state: str
    """One of `ReplayJob.State`."""
    why: str
    """Why it is paused, when nobody paused it; why it would have been, when it was at its end."""
    total: int
    """Letters of the job."""
    left_out: int
    """Letters of the selection that could not be replayed when the job was made."""
    succeeded: int
    """Letters that are resolved."""
    failed: int
    """Letters that failed again, and are open."""
    behind: int
    """Letters that stay open because an earlier one of their key failed."""
    skipped: int
    """Letters that were not tried, since they had changed."""
    cancelled: int
    """Letters whose replay was cancelled with the job."""
    step: int
    """Which step of its ramp it is in, from 1."""
    begun_at: datetime | None
    """When the first letters came to their end."""
    finished_at: datetime | None
    """When the job did."""

    @property
    def done(self) -> int:
        """Letters that came to their end."""
        return self.succeeded + self.failed + self.behind + self.skipped + self.cancelled

    @property
    def left(self) -> int:
        """Letters that still wait."""
        return max(0, self.total - self.done)

    @property
    def ended(self) -> bool:
        """Whether nothing of it is replayed any more."""
        return self.state in ReplayJob.ENDED


def progress(job: ReplayJob | int) -> Progress:
    """Return how far a job is. Raises `ReplayJob.DoesNotExist`."""
    row = jobs().get(pk=job.pk if isinstance(job, ReplayJob) else job)
    same = (
        "total", "left_out", "succeeded", "failed", "behind", "skipped", "cancelled", "begun_at", "finished_at", "state"
    )  # fmt: skip
    return Progress(why=row.state_reason, step=row.step + 1, **{name: getattr(row, name) for name in same})


def report(
    job: ReplayJob | int, outcome: str | None = None, after: tuple[str, str, int] | None = None
) -> QuerySet[Replay]:
    """Return the replays of a job, each with what became of it; only those with an outcome of `OUTCOMES` if given.

    They come by outcome, lane and id; `after` are these three of the last one that is known, to go on from there.
    """
    pk = job.pk if isinstance(job, ReplayJob) else job
    found = replays().filter(job=pk).order_by("state", "lane", "pk")
    if outcome is not None:
        found = found.filter(state=outcome)
    if after is not None:
        # As one comparison of rows, for which databases begin at that place of the index.
        quote = connections[found.db].ops.quote_name
        place = ", ".join(f"{quote(Replay._meta.db_table)}.{quote(name)}" for name in ("state", "lane", "id"))
        found = found.filter(RawSQL(f"({place}) > (%s, %s, %s)", after, output_field=BooleanField()))
    return found
