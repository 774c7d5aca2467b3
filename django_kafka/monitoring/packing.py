"""What a worker has counted in the last minutes, as JSON in its row, small enough to be written with each heartbeat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..history import MINUTES, NOTHING, Buckets, Counts, Span
from .figures import Connections, Reported

_FORMAT = 1
"""How it is written: the number changes with the order below, and with the bounds of histograms."""


def packed(reported: Reported) -> dict[str, Any]:
    """Return it for a row, as JSON of about a hundred bytes for a minute in which something was done."""
    connections = reported.connections
    return {
        "format": _FORMAT,
        "connections": [connections.active, connections.total, connections.errors],
        "minutes": [_packed(span) for span in reported.minutes],
    }


def _packed(span: Span) -> list[Any]:
    counts = span.counts
    row = [
        round(span.seconds, 1), counts.messages, counts.bytes, counts.handled, _run(counts.durations),
        _run(counts.ages), counts.retries, counts.dead_lettered, counts.errors, counts.outages,
    ]  # fmt: skip
    while not row[-1] and len(row) > 1:
        row.pop()
    return row


def _run(buckets: Buckets) -> list[int]:
    """Return those buckets that are not empty, and what is between them, behind the place of the first."""
    filled = [place for place, count in enumerate(buckets) if count]
    return [filled[0], *buckets[filled[0] : filled[-1] + 1]] if filled else []


def unpacked(figures: Any) -> Reported | None:
    """Return what a worker wrote into its row; None when this version cannot read it, or there is nothing."""
    try:
        if figures["format"] != _FORMAT:
            return None
        active, total, errors = map(_number, figures["connections"])
        return Reported(
            minutes=[_unpacked(*row) for row in figures["minutes"][:MINUTES]],
            connections=Connections(active=active, total=total, errors=errors),
        )
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError):
        return None


def _unpacked(
    seconds: float, messages: int = 0, size: int = 0, handled: int = 0, durations: Sequence[int] = (),
    ages: Sequence[int] = (), retries: int = 0, dead_lettered: int = 0, errors: Mapping[str, int] | None = None,
    outages: Mapping[str, int] | None = None,
) -> Span:  # fmt: skip
    return Span(
        seconds=_seconds(seconds),
        counts=Counts(
            messages=_number(messages),
            bytes=_number(size),
            handled=_number(handled),
            durations=_buckets(durations, len(NOTHING.durations)),
            ages=_buckets(ages, len(NOTHING.ages)),
            retries=_number(retries),
            dead_lettered=_number(dead_lettered),
            errors=_by_name(errors),
            outages=_by_name(outages),
        ),
    )


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(value)
    return float(value)


def _buckets(run: Sequence[int], length: int) -> Buckets:
    if not run:
        return (0,) * length
    first, *counts = map(_number, run)
    if first + len(counts) > length:
        raise ValueError(run)
    return (*(0,) * first, *counts, *(0,) * (length - first - len(counts)))


def _by_name(counts: Mapping[str, int] | None) -> dict[str, int]:
    return {str(name): _number(count) for name, count in (counts or {}).items()}
