"""What people do with a job while it runs."""

from __future__ import annotations

from ...models import ReplayJob
from . import ramp
from .claiming import SWEPT, LaneClaims
from .planning import check_rate
from .rows import jobs, waiting_in
from .settling import Outcomes, cancel_waiting, settle

_STATES = ReplayJob.State
_AT_ONCE = 5000


def pause(job: ReplayJob | int, *, why: str = "") -> bool:
    """Let no further letters of a running job be taken; tell whether it ran. What runs comes to its end."""
    running = jobs().filter(pk=_id(job), state=_STATES.RUNNING)
    return bool(running.update(state=_STATES.PAUSED, state_reason=why))


def resume(job: ReplayJob | int) -> bool:
    """Let a paused job go on; tell whether it was paused. Failures of its step up to now count no longer."""
    paused = jobs().filter(pk=_id(job), state=_STATES.PAUSED)
    return bool(paused.update(state=_STATES.RUNNING, state_reason="", paced_at=None, step_done=0, step_failed=0))


def change_rate(job: ReplayJob | int, rate: float | None) -> bool:
    """Have a job take at most so many letters a second (None: as many as there can be); tell whether it goes on.

    Raises `ValueError` for a rate that cannot be meant.
    """
    check_rate(rate)
    unended = jobs().filter(pk=_id(job), state__in=(_STATES.RUNNING, _STATES.PAUSED))
    return bool(unended.update(rate=rate, paced_at=None))


def cancel(job: ReplayJob | int, *, most: int = 20_000) -> bool:
    """Take back all of a job that nobody works on; tell whether it was not at its end.

    About `most` replays are cancelled at once; those beyond, and those in lanes that somebody works in, by whoever
    carries jobs out. Until then the job is being cancelled, and it may be asked again.
    """
    pk = _id(job)
    mine = jobs().filter(pk=pk)
    unended = mine.filter(state__in=(_STATES.RUNNING, _STATES.PAUSED, _STATES.CANCELLING))
    if not unended.update(state=_STATES.CANCELLING, state_reason=""):
        return False
    claims = LaneClaims(ids=[pk])
    left = most
    try:
        while left > 0 and (taken := claims.take()) is not None:
            lane, _ran_out = taken
            if lane.cursor or lane.unsettled:
                settle(claims, lane, Outcomes())
            done = 1
            while left > 0 and done:
                done = cancel_waiting(claims, lane, min(left, _AT_ONCE)).cancelled
                left -= done
            claims.release(lane, **({} if waiting_in(lane).exists() else {"passed": SWEPT}))
    finally:
        claims.close()
    ramp.go_on(None, [pk])
    return True


def _id(job: ReplayJob | int) -> int:
    return int(job.pk if isinstance(job, ReplayJob) else job)
