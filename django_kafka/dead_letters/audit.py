"""What people did and looked at, written down in the transaction of what it tells of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from django.db import transaction
from django.db.models import Model, QuerySet
from django.utils import timezone

from .. import conf
from ..models import AuditEntry
from .failures import storable

_PIECE = 500
_RECENT = 2000
_address: ContextVar[str] = ContextVar("address", default="")

LOOKED = "look at payload"
"""The verb of whoever saw an unmasked payload on a page."""
DOWNLOADED = "download payload"
"""The verb of whoever took key or value as a file."""


@contextmanager
def coming_from(address: str) -> Iterator[None]:
    """Say where the request comes from, for all entries that are noted meanwhile."""
    token = _address.set(address[:100])
    try:
        yield
    finally:
        _address.reset(token)


def entries() -> QuerySet[AuditEntry]:
    """Return all entries, from the database that keeps the letters."""
    return AuditEntry.objects.using(conf.kafka().dead_letters.database)


def recent_verbs() -> list[str]:
    """Return the verbs of the latest entries, in their order: to look through all takes too long when they are many."""
    recent = entries().order_by("-id")[:_RECENT]
    return sorted(set(recent.values_list("verb", flat=True)))


def note(
    user: Any, verb: str, rows: Iterable[Model], *, reason: str = "", details: dict[str, Any] | None = None
) -> None:
    """Write down that a person did something to rows, or looked at them: an entry for each.

    `user` is the person, or a text that names who or what did it where there is none. `rows` may be of any model of
    ours; consumer, topic and what they are called are kept as they are now. `details` is JSON, and has nothing of a
    payload in it. Call it in the transaction of what it tells of: either both are there, or neither.
    """
    settings = conf.kafka().dead_letters
    now = timezone.now()
    common = {
        "at": now,
        **_person(user),
        "address": storable(_address.get()),
        "verb": storable(verb)[:50],
        "reason": storable(reason.strip()),
        "details": _storable(details or {}),
        "keep_until": None if settings.audit_retention is None else now + timedelta(seconds=settings.audit_retention),
    }
    every = iter(rows)
    with transaction.atomic(using=settings.database):
        while piece := list(islice(every, _PIECE)):
            entries().bulk_create([AuditEntry(**common, **_about(row)) for row in piece])


def prune() -> int:
    """Delete entries whose time is over, as the settings said when they were written; return how many."""
    using = conf.kafka().dead_letters.database
    # A day later than it says: in projects whose times have no zone, the database's own clock may be of another one.
    before = timezone.now() - timedelta(days=1)
    count = 0
    while ids := list(_over(using, before).values_list("pk", flat=True)[:_PIECE]):
        count += QuerySet(AuditEntry, using=using).filter(pk__in=ids).delete()[0]
    return count


def _over(using: str, before: datetime) -> QuerySet[AuditEntry]:
    return QuerySet(AuditEntry, using=using).filter(keep_until__lt=before).order_by("keep_until")


def _person(user: Any) -> dict[str, Any]:
    if user is None or isinstance(user, str):
        return {"user_id": None, "user_name": storable(user or "")[:200]}
    return {"user_id": user.pk, "user_name": storable(str(user.get_username()))[:200]}


def _about(row: Any) -> dict[str, str]:
    return {
        "model": str(row._meta.model_name),
        "row": str(row.pk),
        "title": storable(str(row))[:300],
        "consumer": storable(getattr(row, "consumer", ""))[:200],
        "topic": storable(getattr(row, "topic", ""))[:249],
    }


def _storable(value: Any) -> Any:
    match value:
        case str():
            return storable(value)
        case dict():
            return {storable(str(key)): _storable(inner) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_storable(inner) for inner in value]
    return value
