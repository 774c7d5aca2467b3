"""What people see of failure groups, and what they say of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import F, IntegerField, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

from .. import conf
from ..models import DeadLetter, FailureGroup, FailureHour, FailureTally
from ..models.failures import hour_of
from .failures import storable

MOST_COUNTED = 10_000
"""Open letters of a group are counted up to here: to count all of very many takes too long for a page."""
SAID = (FailureGroup.State.OPEN, FailureGroup.State.ACKNOWLEDGED, FailureGroup.State.RESOLVED)
"""The states that people can give a group; it regresses by itself."""


class _CountOf(Subquery):
    """How many rows a query has that may be cut off."""

    template = "(SELECT COUNT(*) FROM (%(subquery)s) counted)"
    output_field = IntegerField()


def groups() -> QuerySet[FailureGroup]:
    """Return all failure groups, from the database that keeps the letters."""
    return FailureGroup.objects.using(conf.kafka().dead_letters.database)


def counted() -> QuerySet[FailureGroup]:
    """Return failure groups with `seen_now`, failures that are not added up yet included, and `open_letters`.

    The latter is at most one more than `MOST_COUNTED`.
    """
    waiting = _tallies().filter(failure_group=OuterRef("pk")).order_by().values("failure_group")
    letters = DeadLetter.objects.using(conf.kafka().dead_letters.database)
    still_open = letters.filter(failure_group=OuterRef("pk"), state=DeadLetter.State.OPEN).order_by().values("pk")
    return groups().annotate(
        seen_now=F("seen") + Coalesce(Subquery(waiting.annotate(sum=Sum("count")).values("sum")), 0),
        open_letters=_CountOf(still_open[: MOST_COUNTED + 1]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Failures of a group over time."""

    begins: datetime
    """The beginning of the first step, in UTC."""
    step: timedelta
    """How long each is."""
    counts: tuple[int, ...]
    """How many there were in each, the current one last."""


def trends(ids: Iterable[int], *, steps: int = 24, hours: int = 1) -> dict[int, Trend]:
    """Return for each of these groups how many failures there were in the last `steps` times so many hours."""
    wanted = list(ids)
    now = hour_of(timezone.now())
    begins = now - timedelta(hours=steps * hours - 1)
    counts = {group_id: [0] * steps for group_id in wanted}
    using = conf.kafka().dead_letters.database
    rows = FailureHour.objects.using(using).filter(failure_group__in=wanted, hour__gte=begins)
    waiting = _tallies().filter(failure_group__in=wanted, at__gte=begins)
    found = (*rows.values_list("failure_group", "hour", "count"), *waiting.values_list("failure_group", "at", "count"))
    for group_id, at, count in found:
        place = int((at - begins).total_seconds() // (3600 * hours))
        # A clock that is ahead says what happens next; that is now.
        counts[group_id][min(place, steps - 1)] += count
    step = timedelta(hours=hours)
    return {one: Trend(begins=begins, step=step, counts=tuple(each)) for one, each in counts.items()}


def set_state(ids: Sequence[int], state: str, *, by: str) -> int:
    """Say that these groups are open, acknowledged or resolved; return how many were not so before.

    One that is called resolved regresses when it fails after that. Raises `ValueError` for other states.
    """
    if state not in SAID:
        raise ValueError(f"The state {state!r} is not one of: {', '.join(SAID)}.")
    found = groups().filter(pk__in=ids).exclude(state=state)
    said = {"state": state, "state_since": timezone.now(), "state_by": by[:150], "regressed_in": ""}
    if state == FailureGroup.State.RESOLVED:
        said["resolved_in"] = F("last_release") if not (release := conf.kafka().release) else release
    return found.update(**said)


def annotate(group_id: int, *, owner: str, note: str) -> bool:
    """Write down who looks after a group, and what is to be known of it; tell whether there is such a group."""
    said = {"owner": storable(owner.strip())[:150], "note": storable(note.strip())}
    return bool(groups().filter(pk=group_id).update(**said))


def _tallies() -> QuerySet[FailureTally]:
    return FailureTally.objects.using(conf.kafka().dead_letters.database)


def last_seen(group: FailureGroup) -> datetime:
    """Return when a failure of a group happened last, those that are not added up yet included."""
    latest = _tallies().filter(failure_group=group).order_by("-at").values_list("at", flat=True).first()
    return max(group.last_seen_at, latest or group.last_seen_at)
