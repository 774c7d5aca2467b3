"""Times, as options say them and as tables show them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta

from django.core.management.base import CommandError
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from ... import conf
from ...exceptions import ConfigurationError


def moment(option: str, text: str, *, end: bool = False) -> datetime:
    """Return the time that an option says, aware: a day (its `end`, else its beginning), a time of it, or how long ago.

    Without an offset it is in the project's TIME_ZONE. Raises `CommandError`.
    """
    zone = timezone.get_current_timezone()
    try:
        if (day := parse_date(text)) is not None:
            return datetime.combine(day, time.max if end else time.min, zone)
        if (at := parse_datetime(text)) is not None:
            return at if timezone.is_aware(at) else timezone.make_aware(at, zone)
        if re.search(r"[a-z]$", text):
            return datetime.now(zone) - timedelta(seconds=conf.parse_duration(text))
    except (ValueError, OverflowError, ConfigurationError):
        pass
    raise CommandError(f"{option} {text!r} is no time; write 2026-11-23, 2026-11-23T15:00, or 2h for two hours ago.")


def ago(at: datetime, now: datetime | None = None) -> str:
    """Return how long ago something was, in one unit; what is to come was just now. `now`: by the clock of `at`."""
    now = now or (datetime.now(UTC) if timezone.is_aware(at) else timezone.now())
    return f"{span(max(timedelta(), now - at).total_seconds())} ago"


def span(seconds: float) -> str:
    """Return how long something takes, in one unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
