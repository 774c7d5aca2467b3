"""The clock of this machine against what others say that it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from .findings import Finding, unseen, warning, well

_APART = 5.0
"""Seconds between two clocks that do no harm: less than the heartbeats of a worker that counts as alive."""
_MEND = "Have both machines synchronize their clocks (chrony, systemd-timesyncd)."


def of_records(newest: Mapping[tuple[str, int], int], asked: bool) -> Finding:
    """Compare with the latest record: a record of the future means that a clock is wrong, and nothing else does.

    `newest` are times in milliseconds since the epoch: the broker's where a topic has LogAppendTime, else those of
    whoever sent.
    """
    if not newest:
        why = "no topic that is needed has a record" if asked else "no topic is there"
        return unseen("clock", f"{why}, and brokers tell their time in records only")
    (topic, number), at = max(newest.items(), key=lambda pair: pair[1])
    ahead = at / 1000 - time.time()
    where = f"{topic}[{number}]"
    if ahead > _APART:
        saw = f"A record in {where} is from {_span(ahead)} in the future: this clock is slow, or its sender's is fast."
        return warning("clock", saw, _MEND, seconds=round(ahead, 1))
    return well("clock", f"No record is of the future; the latest, in {where}, is {_span(-ahead)} old.")


def of_database(alias: str, ask: Callable[[], float]) -> Finding:
    """Compare with a database; `ask` returns its time in seconds since the epoch."""
    began = time.time()
    theirs = ask()
    took = time.time() - began
    apart = theirs - (began + took / 2)
    if abs(apart) - took / 2 > _APART:
        word = "ahead of" if apart > 0 else "behind"
        saw = f"The clock of the server of {alias!r} is {_span(abs(apart))} {word} that of this machine."
        return warning("clock", saw, _MEND, seconds=round(apart, 2))
    saw = f"The clock of the server of {alias!r} and that of this machine agree within {max(abs(apart), took):.2f} s."
    return well("clock", saw, seconds=round(apart, 2))


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
