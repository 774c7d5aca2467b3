"""LaneClaims of lanes: one executor at a time has one, renews it while it works, and is taken over when it does not."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db import connections
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from ... import conf, logs
from ...models import JobLane, ReplayJob
from ..replaying import LEASE
from ..rows import me
from .rows import lanes

log = logs.of(__name__)

SWEPT = 2**31 - 1
"""What a lane has passed in which nothing waits any more, because its job was cancelled."""


class LaneClaims:
    """The claims of one executor, of one lane at a time; used by one thread. Close them in the end."""

    def __init__(self, consumers: Sequence[str] | None = None, ids: Sequence[int] | None = None) -> None:
        """Take lanes of jobs of these consumers (None: of all), or only of the jobs with these ids."""
        self._consumers = consumers
        self._ids = ids
        self._database = conf.kafka().dead_letters.database
        self.token = uuid.uuid4().hex
        """What is in the row of a lane while it is ours."""
        self._move: str | None = None
        self._held: int | None = None
        self._ended = threading.Event()
        self._keeper: threading.Thread | None = None

    def close(self) -> None:
        """Renew no more."""
        self._ended.set()
        if self._keeper is not None:
            self._keeper.join(5)

    def take(self) -> tuple[JobLane, bool] | None:
        """Claim the lane that waited longest; return it and whether its claim had run out; None: there is none."""
        while True:
            order = F("worked_at").asc(nulls_first=True), "pk"
            found = self._waiting().order_by(*order).values("pk", "claim").first()
            if found is None:
                return None
            claim = {"claim": self.token, "claimed_at": Now(), "worked_at": Now(), "executor": me()}
            # Free it must be still: whoever has it may have renewed its claim since.
            if lanes().filter(_free(), **found).update(**claim):
                try:
                    # Read after it was claimed: until then whoever had it could move its cursor.
                    lane = lanes().select_related("job").get(pk=found["pk"])
                except BaseException:
                    self.release(JobLane(pk=found["pk"]))
                    raise
                self._keep_up(lane.pk)
                return lane, bool(found["claim"])

    def _waiting(self) -> QuerySet[JobLane]:
        state, job = ReplayJob.State, "job__state"
        due = Q(job__paced_at__isnull=True) | Q(job__paced_at__lte=Now())
        to_do = Q(job__state=state.RUNNING, passed__lte=F("job__step")) & due
        to_do |= Q(job__state=state.CANCELLING, passed__lt=SWEPT)
        # What its executor had done when it was killed is to be settled.
        to_do |= Q(job__state=state.PAUSED) & ~Q(claim="")
        found = lanes().filter(_free(), to_do, **{f"{job}__in": (state.RUNNING, state.PAUSED, state.CANCELLING)})
        if self._consumers is not None:
            found = found.filter(job__consumer__in=self._consumers)
        if self._ids is not None:
            found = found.filter(job__in=self._ids)
        return found

    def mine(self, lane: JobLane) -> QuerySet[JobLane]:
        """Return the lane's row as long as it is ours."""
        return lanes().filter(pk=lane.pk, claim=self.token)

    def move(self, lane: JobLane, cursor: int) -> bool:
        """Move the cursor of a lane, if it is ours; tell whether it is."""
        connection = connections[self._database]
        if self._move is None:
            quote = connection.ops.quote_name
            self._move = (
                f"UPDATE {quote(JobLane._meta.db_table)} SET {quote('cursor')} = %s WHERE id = %s AND claim = %s"
            )
        # It is done for each letter, in the transaction of its handler; making the statement anew takes as long again.
        with connection.cursor() as opened:
            opened.execute(self._move, [cursor, lane.pk, self.token])
            return bool(opened.rowcount)

    def release(self, lane: JobLane, **changes: Any) -> None:
        """Give a lane back; when even that fails, its claim runs out by itself."""
        self._held = None
        try:
            self.mine(lane).update(claim="", claimed_at=None, worked_at=Now(), **changes)
        except Exception as error:  # noqa: BLE001
            log.warning("lane=%s not released: %s; it is taken over in %g s", lane.pk, type(error).__name__, LEASE)
            connections[self._database].close()

    def _keep_up(self, pk: int) -> None:
        self._held = pk
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._renew, name="kafka-job-lease", daemon=True)
            self._keeper.start()

    def _renew(self) -> None:
        """Renew the claim of the lane that is held, so that a long handler is not taken over."""
        while not self._ended.wait(LEASE / 4):
            if (held := self._held) is None:
                continue
            try:
                lanes().filter(pk=held, claim=self.token).update(claimed_at=Now())
            except Exception as error:  # noqa: BLE001  # the next turn tries again; compare-and-set decides
                log.warning("lane=%s claim not renewed: %s", held, type(error).__name__)
            finally:
                connections[self._database].close()


def _free() -> Q:
    return Q(claim="") | Q(claimed_at__lt=Now() - timedelta(seconds=LEASE))
