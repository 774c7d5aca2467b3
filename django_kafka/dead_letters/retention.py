"""Deleting what nobody needs any more: letters whose time is over, and what is kept beside them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.db import connections, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from .. import conf, logs
from ..models import DeadLetter, FailureGroup, FailureHour, FailureTally, Replay, ReplayJob
from . import audit
from .replaying import letters, outstanding

log = logs.of(__name__)

_PIECE = 500
"""Letters that are deleted in one transaction: others wait for what it has locked."""
_HOURS_KEPT = timedelta(days=31)
"""For how long the hours of failure groups are kept, of which pages show a week."""


def prune(*, most: int | None = None, go_on: Callable[[], bool] = lambda: True) -> int:
    """Delete letters that `dead_letters.retention` and `unresolved_max_age` keep no longer; return how many.

    With them go their attempts and replays, failure groups that have no letters, owner or note and did not fail as
    long, and entries of the audit whose time is over. At most about `most` letters, and as long as `go_on()` says so,
    which is asked between two transactions.
    Whatever another process has locked is left for the next time.
    """
    settings = conf.kafka().dead_letters
    now, count = timezone.now(), 0
    for condition in _over(settings.retention, settings.unresolved_max_age, now):
        while go_on() and (most is None or count < most):
            if not (deleted := _delete_some(condition)):
                break
            count += deleted
    if count:
        log.info("dead letters deleted: %s, whose retention is over", count)
    if settings.retention is not None and go_on():
        _forget_groups(now - timedelta(seconds=settings.retention))
        _forget_jobs(now - timedelta(seconds=settings.retention))
    FailureHour.objects.using(settings.database).filter(hour__lt=now - _HOURS_KEPT).delete()
    if go_on():
        audit.prune()
    return count


def _over(retention: float | None, unresolved: float | None, now: datetime) -> list[Q]:
    """Return conditions: which letters are kept no longer."""
    found = []
    if retention is not None:
        settled = (DeadLetter.State.RESOLVED, DeadLetter.State.DISCARDED)
        found.append(Q(state__in=settled, settled_at__lt=now - timedelta(seconds=retention)))
    if unresolved is not None:
        # One that holds its key keeps others from being handled in the wrong order.
        old = Q(state=DeadLetter.State.OPEN, last_failed_at__lt=now - timedelta(seconds=unresolved))
        found.append(old & Q(hold__isnull=True))
    return found


def _delete_some(condition: Q) -> int:
    using = conf.kafka().dead_letters.database
    with transaction.atomic(using=using):
        found = letters().filter(condition).exclude(outstanding())
        ids = list(_locked(found, using).values_list("pk", flat=True)[:_PIECE])
        # Asked again now that they are locked: a replay may have been asked for just before. Payloads are not read.
        _rows, of_model = found.filter(pk__in=ids).only("pk").delete()
    return of_model.get(DeadLetter._meta.label, 0)


def _locked(found: QuerySet[Any], using: str) -> QuerySet[Any]:
    skip = connections[using].features.has_select_for_update_skip_locked
    return found.order_by("pk").select_for_update(skip_locked=skip)


def _forget_jobs(before: datetime) -> None:
    """Delete jobs that ended long ago and whose letters are gone."""
    jobs = ReplayJob.objects.using(conf.kafka().dead_letters.database)
    left = Replay.objects.using(jobs.db).filter(job=OuterRef("pk"))
    jobs.filter(finished_at__lt=before, state__in=ReplayJob.ENDED).exclude(Exists(left)).delete()


def _forget_groups(before: datetime) -> None:
    using = conf.kafka().dead_letters.database
    tallies = FailureTally.objects.using(using).filter(failure_group=OuterRef("pk"))
    with transaction.atomic(using=using):
        groups = FailureGroup.objects.using(using).filter(last_seen_at__lt=before, owner="", note="")
        # One that is being counted stays.
        found = groups.exclude(Exists(tallies)).exclude(Exists(letters().filter(failure_group=OuterRef("pk"))))
        ids = list(_locked(found, using).values_list("pk", flat=True))
        # Asked again now that they are locked: a failure may have been stored just before. Whoever stores one from now
        # on finds the group gone at the COMMIT, and begins again.
        found.filter(pk__in=ids).delete()
