"""Replay jobs: a frozen selection of letters, however many, replayed together; paused, resumed and cancelled at will.

    from django_kafka.dead_letters import jobs, replaying

    (job,) = jobs.create(replaying.letters().filter(topic="flights"), user=request.user, ramp=[1, 10, 100])
    jobs.progress(job).left

A worker of the consumer carries a job out, or what `carriers.dispatch(consumer)` names.
"""

from .planning import create
from .reporting import OUTCOMES, Progress, progress, report
from .rows import jobs as all_jobs
from .steering import cancel, change_rate, pause, resume

__all__ = [
    "OUTCOMES",
    "Progress",
    "all_jobs",
    "cancel",
    "change_rate",
    "create",
    "pause",
    "progress",
    "report",
    "resume",
]
