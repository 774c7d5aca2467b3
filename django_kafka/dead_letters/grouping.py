"""Failure groups: which one a letter belongs to, and how many failures there were of it.

Whoever stores letters reads the rows of groups, and adds one row of `FailureTally` for each; the groups' own rows are
written only when a cause is new, by people, and by `add_up`, which anybody may call at any time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.db import connections, transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Greatest

from .. import conf
from ..models import DeadLetter, FailureGroup, FailureHour, FailureTally
from ..models.failures import fingerprint, hour_of
from . import decoding
from .failures import Failure
from .masking import masking

MOST = 1000
"""Groups of one consumer. Further causes share one: those of imported letters are told by strangers."""
OTHER = "(other)"
"""The type of error of that one. No exception has this name."""
LONGEST_EXAMPLE = 300
"""Characters of what the first error of a group said, which the group keeps."""
TOGETHER = 1000
"""Rows that are added up in one transaction."""

Failed = Sequence[tuple[DeadLetter, Failure]]


def assign(using: str, failed: Failed) -> None:
    """Give letters the group of what they failed with, and count it. Part of the transaction that stores them."""
    place(using, failed)
    release = conf.kafka().release
    counted: dict[int, FailureTally] = {}
    for letter, failure in failed:
        letter.release = release
        group_id = int(letter.failure_group_id or 0)
        tally = counted.setdefault(
            group_id, FailureTally(failure_group_id=group_id, at=failure.at, count=0, release=release)
        )
        tally.count += 1
        tally.at = max(tally.at, failure.at)
    FailureTally.objects.using(using).bulk_create(counted.values())


def place(using: str, failed: Failed) -> None:
    """Give letters the group of what they failed with, and count nothing: for failures that were counted before."""
    of_cause: dict[str, list[tuple[DeadLetter, Failure]]] = defaultdict(list)
    for letter, failure in failed:
        cause = _cause(letter.cluster, letter.consumer, failure.handler, failure.error_type, failure.frame)
        of_cause[cause].append((letter, failure))
    known = _known(using, of_cause)
    if len(known) < len(of_cause):
        known |= _begin(using, {cause: each for cause, each in of_cause.items() if cause not in known})
    for cause, members in of_cause.items():
        for letter, _failure in members:
            letter.failure_group_id = known[cause]


_cause = lru_cache(1000)(fingerprint)


def _known(using: str, causes: Iterable[str]) -> dict[str, int]:
    found = FailureGroup.objects.using(using).filter(fingerprint__in=list(causes))
    return dict(found.values_list("fingerprint", "pk"))


def _begin(using: str, new: dict[str, list[tuple[DeadLetter, Failure]]]) -> dict[str, int]:
    """Return the groups of causes that were not known, made now unless their consumer has too many."""
    rows: dict[str, FailureGroup] = {}
    of_cause: dict[str, str] = {}
    room: dict[tuple[str, str], int] = {}
    for cause, ((letter, failure), *_more) in new.items():
        owner = letter.cluster, letter.consumer
        if owner not in room:
            mine = FailureGroup.objects.using(using).filter(cluster=letter.cluster, consumer=letter.consumer)
            room[owner] = MOST - mine.count()
        fits = room[owner] > 0
        room[owner] -= fits
        # An archive may have letters of several consumers: what each has too many of is its own.
        of_cause[cause] = cause if fits else fingerprint(*owner, "", OTHER, "")
        rows.setdefault(of_cause[cause], _row(of_cause[cause], letter, failure, other=not fits))
    # In one order everywhere, so that those who make the same ones at the same time wait for each other in turn.
    FailureGroup.objects.using(using).bulk_create([rows[cause] for cause in sorted(rows)], ignore_conflicts=True)
    made = _known(using, rows)
    return {cause: made[of_cause[cause]] for cause in new}


def _row(cause: str, letter: DeadLetter, failure: Failure, *, other: bool = False) -> FailureGroup:
    of_cause: dict[str, Any] = {"error_type": OTHER} if other else {
        "handler": failure.handler,
        "error_type": failure.error_type,
        "frame": failure.frame,
        "example": example(letter, failure.error_message),
    }  # fmt: skip
    release = conf.kafka().release
    return FailureGroup(
        fingerprint=cause, cluster=letter.cluster, consumer=letter.consumer, category=failure.category,
        first_seen_at=failure.at, last_seen_at=failure.at, first_release=release, last_release=release, **of_cause,
    )  # fmt: skip


def example(letter: DeadLetter, text: str) -> str:
    """Return what a group keeps of an error of a letter as its example, without what is masked."""
    # Masked here once, while its payload is at hand: the letter that it is of may be gone when somebody looks.
    found = masking()
    if found.active:
        found = decoding.knowing(found, letter)
    return first_line(found.text(text))


def first_line(text: str) -> str:
    """Return the first line of an error, as long as an example may be."""
    return next(iter(text.strip().splitlines()), "")[:LONGEST_EXAMPLE]


def add_up() -> int:
    """Add failures that were counted to their groups, as many as may go at a time; return how many rows were added.

    What another process is adding is left to it. A group that was resolved and failed after that has regressed.
    """
    using = conf.kafka().dead_letters.database
    skip = connections[using].features.has_select_for_update_skip_locked
    with transaction.atomic(using=using):
        tallies = FailureTally.objects.using(using).select_for_update(skip_locked=skip).order_by("pk")[:TOGETHER]
        of_group: dict[int, list[FailureTally]] = defaultdict(list)
        for tally in tallies:
            of_group[tally.failure_group_id].append(tally)
        for group_id in sorted(of_group):
            _add(using, group_id, of_group[group_id])
        added = [tally.pk for each in of_group.values() for tally in each]
        if added:
            FailureTally.objects.using(using).filter(pk__in=added).delete()
    return len(added)


def _add(using: str, group_id: int, tallies: Sequence[FailureTally]) -> None:
    group = FailureGroup.objects.using(using).filter(pk=group_id)
    latest = max(tallies, key=lambda tally: tally.at)
    # The row is locked from here on, and what is compared below stays as it is.
    group.update(
        seen=F("seen") + sum(tally.count for tally in tallies), last_seen_at=Greatest("last_seen_at", latest.at)
    )
    group.filter(last_seen_at=latest.at).update(last_release=latest.release)
    _regress(group, tallies)
    hours: dict[datetime, int] = defaultdict(int)
    for tally in tallies:
        hours[hour_of(tally.at)] += tally.count
    for hour, count in hours.items():
        row, made = FailureHour.objects.using(using).get_or_create(
            failure_group_id=group_id, hour=hour, defaults={"count": count}
        )
        if not made:
            FailureHour.objects.using(using).filter(pk=row.pk).update(count=F("count") + count)


def _regress(group: QuerySet[FailureGroup], tallies: Sequence[FailureTally]) -> None:
    since = group.filter(state=FailureGroup.State.RESOLVED).values_list("state_since", flat=True).first()
    if since is None:
        return
    later = [tally for tally in tallies if tally.at > since]
    if later:
        first = min(later, key=lambda tally: tally.at)
        group.update(state=FailureGroup.State.REGRESSED, state_since=first.at, state_by="", regressed_in=first.release)
