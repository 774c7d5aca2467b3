"""How fast a job may go: its rate, the steps of its ramp, and when it pauses by itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from ... import logs
from ...models import JobLane, Replay, ReplayJob
from ..replaying import replays
from . import planning
from .claiming import SWEPT
from .rows import jobs, lanes

log = logs.of(__name__)

_ENOUGH = 100
"""Letters of a step after which it may be judged before its end."""
_CREDIT = timedelta(seconds=2)
"""For how long letters that could have been taken, and were not, may be made up for."""


def reserve(job: ReplayJob, wanted: int) -> int:
    """Return how many letters may be taken now, up to `wanted`, and note that they are; 0: none yet."""
    if job.rate is None:
        return wanted
    taken = min(wanted, max(1, int(job.rate)))
    mine = jobs().filter(pk=job.pk)
    paced_at, now = mine.annotate(now=Now()).values_list("paced_at", "now").get()
    begin = now if paced_at is None else max(paced_at, now - _CREDIT)
    if begin > now:
        return 0
    # Whoever else takes letters now is first, or sees that we were.
    following = begin + timedelta(seconds=taken / job.rate)
    return taken if mine.filter(paced_at=paced_at).update(paced_at=following) else 0


def judge(job_id: int) -> None:
    """Pause a job when too many letters of its step have failed, and some are left that wait for somebody's word."""
    job = jobs().filter(pk=job_id).first()
    if job is None or job.step_done < _enough(job) or not _failed_too_often(job) or not _left(job):
        return
    _running(job).update(state=ReplayJob.State.PAUSED, state_reason=_why(job))
    log.warning("job=%s paused: %s", job.pk, _why(job))


def go_on(consumers: Sequence[str] | None, ids: Sequence[int] | None) -> bool:
    """Bring jobs to their next step, or to their end, whose lanes have nothing left; tell whether there was one."""
    left = lanes().filter(job=OuterRef("pk"))
    running = Q(state=ReplayJob.State.RUNNING) & ~Exists(left.filter(passed__lte=OuterRef("step")))
    cancelling = Q(state=ReplayJob.State.CANCELLING) & ~Exists(left.filter(passed__lt=SWEPT))
    # It was paused while its last letters came to their end: there is nothing to resume.
    waiting = replays().filter(job=OuterRef("pk"), state=Replay.State.REQUESTED)
    paused = Q(state=ReplayJob.State.PAUSED) & ~Exists(waiting)
    unended = (ReplayJob.State.RUNNING, ReplayJob.State.PAUSED, ReplayJob.State.CANCELLING)
    found = jobs().filter(running | paused | cancelling, state__in=unended)
    if consumers is not None:
        found = found.filter(consumer__in=consumers)
    if ids is not None:
        found = found.filter(pk__in=ids)
    moved = False
    for job in found:
        over = job.state != ReplayJob.State.RUNNING or job.allowed is None or not _left(job)
        moved |= _end(job) if over else _next_step(job)
    return moved


def _left(job: ReplayJob) -> bool:
    return replays().filter(job=job.pk, state=Replay.State.REQUESTED).exists()


def _next_step(job: ReplayJob) -> bool:
    following = ReplayJob(pk=job.pk, ramp=job.ramp, step=job.step + 1)
    changes: dict[str, Any] = {
        "step": following.step,
        "allowed": planning.last_of_step(following, after=job.allowed or job.after),
        "step_done": 0,
        "step_failed": 0,
    }
    if job.step_done and _failed_too_often(job):
        # It is in its next step already, and begins that when somebody resumes it.
        changes |= {"state": ReplayJob.State.PAUSED, "state_reason": _why(job)}
        log.warning("job=%s paused: %s", job.pk, _why(job))
    return bool(_running(job).update(**changes))


def _end(job: ReplayJob) -> bool:
    finished = job.state != ReplayJob.State.CANCELLING
    state = ReplayJob.State.FINISHED if finished else ReplayJob.State.CANCELLED
    why = job.state_reason
    if finished and job.step_done and _failed_too_often(job):
        # It would have paused, had anything been left: whoever looks at it is told.
        why = _why(job)
    mine = jobs().filter(pk=job.pk, state=job.state)
    if not mine.update(state=state, state_reason=why, finished_at=timezone.now()):
        return False
    JobLane.objects.using(jobs().db).filter(job=job.pk).delete()
    log.info("job=%s consumer=%s %s", job.pk, job.consumer, state)
    return True


def _running(job: ReplayJob) -> QuerySet[ReplayJob]:
    return jobs().filter(pk=job.pk, state=ReplayJob.State.RUNNING, step=job.step)


def _enough(job: ReplayJob) -> int:
    return min(_ENOUGH, job.ramp[job.step]) if job.step < len(job.ramp) else _ENOUGH


def _failed_too_often(job: ReplayJob) -> bool:
    return job.failure_ratio is not None and job.step_failed > job.failure_ratio * job.step_done


def _why(job: ReplayJob) -> str:
    return (
        f"In step {job.step + 1} {job.step_failed} of {job.step_done} letters failed, "
        f"more than the bound of {job.failure_ratio:g}."
    )
